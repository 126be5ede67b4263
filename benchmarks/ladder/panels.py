"""Time the gradients of layers whose sizes do not fill their last panel of columns.

    UNSPOOL_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/ladder/panels.py

Prints the least and the median of each shape's calls, forward and backward, by processor time.  To compare
two builds, run it with each in turn, a few times.
"""

import statistics
import time

import torch

import unspool.nn

CALLS, WARMING = 25, 3
# T, B, I, H; two directions, ragged.
SHAPES = (
    (26, 50, 200, 48),
    (14, 32, 236, 200),
    (14, 32, 400, 200),
    (7, 77, 32, 64),
    (14, 64, 256, 300),
    (32, 32, 256, 256),  # fills its panels
)


def main() -> None:
    """Time every shape."""
    torch.set_num_threads(1)
    for time_steps, batch, input_size, hidden_size in SHAPES:
        torch.manual_seed(0)
        layer = unspool.nn.LSTM(input_size, hidden_size, bidirectional=True)
        x = torch.randn(time_steps, batch, input_size, requires_grad=True)
        lengths = torch.randint(time_steps // 2, time_steps + 1, (batch,))
        lengths[0] = time_steps
        d_output = torch.randn(time_steps, batch, 2 * hidden_size)
        seconds: list[tuple[float, float]] = []
        for _ in range(CALLS):
            begin = time.process_time()
            output, _ = layer(x, lengths=lengths)
            middle = time.process_time()
            output.backward(d_output)
            seconds.append((middle - begin, time.process_time() - middle))
        told = [
            f"{name} {1e3 * min(each):.2f} ({1e3 * statistics.median(each):.2f}) ms"
            for name, each in zip(("forward", "backward"), zip(*seconds[WARMING:], strict=True), strict=True)
        ]
        print(f"T={time_steps} B={batch} I={input_size} H={hidden_size}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
