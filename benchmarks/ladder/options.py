"""Time training with each option of a cell beside plain training, in processor time of one thread.

    UNSPOOL_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/ladder/options.py

LSTM, T=64, B=32, I=H=256, forward and backward, interleaved; prints medians in ms.  Processor time, since
what else the machine does hardly enters it.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from unspool import nn

ROUNDS = 9
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recurrent dropout": {"recurrent_dropout": 0.25},
    "layer norm": {"layer_norm": True},
    "zoneout, masks drawn": {"zoneout": (0.05, 0.5)},
    "zoneout, its mean (evaluation)": {"zoneout": (0.05, 0.5)},
    "peephole": {"peephole": True},
    "cell clip": {"cell_clip": 3.0},
    "projection": {"proj_size": 128},
}


def main() -> None:
    """Measure every option, and torch's projection."""
    warnings.filterwarnings("ignore", "LSTM with projections")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers: dict[str, Any] = {name: nn.LSTM(256, 256, **options) for name, options in OPTIONS.items()}
    layers["zoneout, its mean (evaluation)"].eval()
    layers["projection, nn.LSTM"] = torch.nn.LSTM(256, 256, proj_size=128)
    ways = {name: training(layer) for name, layer in layers.items()}
    for name in ("projection", "projection, nn.LSTM"):
        ways[f"{name}: inference"] = inference(layers[name])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            times[name].append(1000 * (time.process_time() - begun))
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}
    for name, ms in medians.items():
        print(f"{name:32s} {ms:7.1f} ms   {ms / medians['plain']:.2f} of plain training")


def training(layer: Any) -> Callable[[], object]:
    """Forward and backward."""
    x, d_out = torch.randn(64, 32, 256, requires_grad=True), torch.randn(64, 32, layer.proj_size or 256)
    return lambda: layer(x)[0].backward(d_out)


def inference(layer: Any) -> Callable[[], object]:
    """Forward alone."""
    x = torch.randn(64, 32, 256)

    def run() -> object:
        with torch.no_grad():
            return layer(x)

    return run


if __name__ == "__main__":
    main()
