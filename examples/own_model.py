"""Look inside a torch model of one's own: torch.nn layers, swapped, trained, and read like a log.

    python examples/own_model.py --plot own-model.png

The network names the first symbol of a sequence after 40 others.  Needs unspool[torch,plot]; a few seconds.
"""

import argparse
from pathlib import Path

import torch

from unspool import introspect, nn
from unspool.kernels.contract import Gate
from unspool.page import plot

STEPS, SYMBOLS = 40, 8


class Network(torch.nn.Module):
    """Symbols in, the scores of the first one out; nothing in it knows unspool."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(SYMBOLS, 8)
        self.reader = torch.nn.LSTM(8, 24, batch_first=True)
        self.scores = torch.nn.Linear(24, SYMBOLS)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.reader(self.embedding(symbols))
        scores: torch.Tensor = self.scores(hidden[-1])
        return scores


def trained(forget_bias: float, updates: int) -> Network:
    """A network after some training; the bias on its forget gate decides how far the gradient reaches."""
    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        network.reader.bias_ih_l0[24:48] += forget_bias
    nn.swap(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    monitor = introspect.Monitor(network, every=100)
    for update in range(updates):
        symbols = torch.randint(0, SYMBOLS, (64, STEPS))
        with monitor.step(update):
            loss = torch.nn.functional.cross_entropy(network(symbols), symbols[:, 0])
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for warning in monitor.warnings:
            print(f"update {update}: {warning}")
    return network


def main() -> None:
    """Train two networks, and look at the one that learned."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, help="the picture to write: .png, .svg or .pdf")
    parser.add_argument("--updates", type=int, default=400)
    arguments = parser.parse_args()

    for bias in (0.0, 4.0):
        print(f"forget bias {bias:g}")
        network = trained(bias, arguments.updates)
        symbols = torch.randint(0, SYMBOLS, (512, STEPS))
        right = float((network(symbols).argmax(1) == symbols[:, 0]).float().mean())
        print(f"right: {right:.2f}")
    one = symbols[:1]
    terms = introspect.gradient_terms(network, one, at=-1)
    flow = introspect.gradient_flow(network, one, at=-1)
    saturated = introspect.saturation(network, symbols)
    span = introspect.memory_span(network, symbols)
    moved = introspect.contributions(network, one)
    recording = introspect.record(network, one)
    forgetful = introspect.patch(network, symbols, Gate.FORGET, 0.0, steps=[STEPS // 2]).output
    print(recording)
    for result in (terms, flow, saturated, span, moved):
        print(result.title())
    print(
        f"one forget gate shut at step {STEPS // 2}, right: "
        f"{float((forgetful.argmax(1) == symbols[:, 0]).float().mean()):.2f}"
    )
    print(f"anything not finite? {introspect.locate(network, symbols)}")
    if arguments.plot:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "own-model"}):
            figure = Figure(figsize=(10, 8), layout="constrained")
            axes = figure.subplots(3, 2)
            plot(terms, axes[0, 0])
            plot(flow, axes[0, 1])
            plot(saturated, axes[1, 0])
            plot(span, axes[1, 1])
            plot(moved, axes[2, 0])
            plot(recording, axes[2, 1], what=Gate.FORGET)
            dated = {".svg": {"Date": None, "Creator": None}, ".pdf": {"CreationDate": None}}
            figure.savefig(arguments.plot, metadata=dated.get(arguments.plot.suffix, {}), dpi=120)


if __name__ == "__main__":
    main()
