"""Time the layers against torch's, interleaved in one run, and write the ratios down.

    make bench        or        python benchmarks/kernels.py [--quick] [WORD …]

Each row times unspool and its peers on the same tensors in turn and compares medians; a ratio above 1 means
that unspool is faster.  The machine's limits are measured in the same process, between the rows; a row's
share of the floor is the time that its products alone would take at the best rate seen.  WORDs choose the
rows whose title holds one, and then nothing is written down.
Refuses to run when the contract suite is red.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from stamp import in_words, stamp
from unspool import nn
from unspool.exchange import to_onnx
from unspool.kernels import masks, native
from unspool.kernels.contract import Cell, State, Weights
from unspool.stream import Stream

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PATIENCE_SECONDS = 6.0  # for the rounds of one row
REST_SECONDS = 0.06  # ONNX Runtime's threads look for work for some 36 ms after a run


Ways = dict[str, Callable[[], object]]  # the ways of doing one piece of work, ours first


class Row(NamedTuple):
    """One row of the table."""

    title: str
    build: Callable[[], Ways]  # called when its turn comes
    products: int = 0  # multiplications with their additions in float32; 0: not counted
    rest_seconds: float = 0.0  # before each way's turn, for the threads of the one before to come to rest


def main() -> None:
    """Check the suite, time every row, write the table."""
    quick = "--quick" in sys.argv
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        str(HERE.parent / "tests" / "contract"),
    ]
    if not words and subprocess.run(suite, cwd=HERE.parent, stdout=subprocess.DEVNULL).returncode:
        sys.exit("the contract suite is red: nothing is timed until it is green")
    torch.manual_seed(0)
    torch.set_num_threads(native.threads())
    about = stamp("make bench")
    results = []
    limits = Limits()
    for title, build, products, rest in rows():
        if words and not any(word in title for word in words):
            continue
        limits.measure()
        medians = interleaved(build(), 1.0 if quick else PATIENCE_SECONDS, rest)
        results.append({"work": title, "us": medians, "products": products})
        ours, *peers = medians.items()
        said = "; ".join(f"{name} {us:,.1f} ({us / ours[1]:.2f}×)" for name, us in peers)
        print(f"{title}: {ours[1]:,.1f} µs; {said}", flush=True)
    if words:
        return
    RESULTS.mkdir(exist_ok=True)
    kept = {"about": about, "limits": limits.best, "rows": results}
    (RESULTS / "kernels.json").write_text(json.dumps(kept, indent=1) + "\n")
    (RESULTS / "kernels.md").write_text(table(about, limits, results))
    print(f"written: {RESULTS / 'kernels.md'}")


def rows() -> Iterator[Row]:
    """Every row, built when its turn comes."""
    for hidden in (64, 128, 256, 512):
        yield Row(f"one step, LSTM, B=1, H={hidden}", lambda H=hidden: step(H))
    for hidden in (128, 256, 512):
        yield Row(f"one step, LSTM, B=1, H={hidden}, by precision", lambda H=hidden: narrow_step(H))
    for directions in (1, 2):
        for training in (False, True):
            yield layer_row("LSTM", 100, 1, 128, directions, None, training)
    for layers in (2, 3):
        title = f"LSTM, T=100, B=1, I=H=64, {layers} layers: inference"
        products = layers * 100 * 4 * 64 * 2 * 64
        yield Row(title, lambda n=layers: layer("LSTM", 100, 1, 64, 1, False, False, n), products)
    for hidden in (64, 256):
        for training in (False, True):
            yield layer_row("LSTM", 200, 32, hidden, 1, "uniform", training)
    for cell in ("GRU", "RNN"):
        for hidden in (128, 256):
            for training in (False, True):
                yield layer_row(cell, 64, 32, hidden, 1, None, training)
    for hidden in (128, 256, 512):
        for batch in (8, 32, 128):
            for training in (False, True):
                yield layer_row("LSTM", 64, batch, hidden, 1, None, training)
    yield layer_row("LSTM", 20, 50, 48, 2, None, True)
    for hidden in (128, 256, 512):
        for batch in (8, 32):
            title = f"LSTM in bfloat16, T=64, B={batch}, I=H={hidden}: training, the kernels beside autocast"
            yield Row(title, lambda B=batch, H=hidden: bfloat16_training(B, H))
    for training in (False, True):
        what = "training" if training else "inference"
        title = f"LSTM with a projection, T=64, B=32, I=H=256, P=128: {what}"
        yield Row(title, lambda training=training: projection(training))
    for name, built in (
        ("recurrent dropout", recurrent_dropout),
        ("layer norm", layer_norm),
        ("zoneout, masks given", zoneout),
        ("zoneout, masks drawn", zoneout_drawn),
    ):
        yield Row(f"{name}, LSTM, T=64, B=32, I=H=256: training, beside plain training of ours", built)
    yield Row("resets at 3 % of steps, LSTM, T=128, B=16, H=128: forward and backward", resets)
    yield Row("the trace kept, LSTM, T=64, B=32, H=256: inference", traced)
    for hidden, classes in ((128, 2_000), (256, 5_000)):
        title = f"a whole training step: embedding, LSTM T=32 B=16 H={hidden}, {classes:,} classes, AdamW"
        yield Row(title, lambda H=hidden, n=classes: whole_step(H, n))
    for hidden in (64, 128, 256, 512):
        title = f"one step, LSTM, B=1, H={hidden}, beside ONNX Runtime"
        yield Row(title, lambda H=hidden: step_beside_onnx_runtime(H), rest_seconds=REST_SECONDS)


def step(hidden: int) -> Ways:
    """One streaming step against torch's two ways of taking it."""
    ours, layer, cell = (
        nn.LSTM(hidden, hidden),
        torch.nn.LSTM(hidden, hidden),
        torch.nn.LSTMCell(hidden, hidden),
    )
    stream = ours.stream()
    x = torch.randn(1, hidden)
    array, sequence = x.numpy(), x.unsqueeze(0)
    state = (torch.zeros(1, hidden), torch.zeros(1, hidden))
    states = (state[0].unsqueeze(0), state[1].unsqueeze(0))
    return {
        "unspool": lambda: stream.step(array),
        "nn.LSTM": without_gradient(lambda: layer(sequence, states)),
        "nn.LSTMCell": without_gradient(lambda: cell(x, state)),
        "from a tensor": lambda: stream.step(x),
    }


def step_beside_onnx_runtime(hidden: int) -> Ways:
    """The same against ONNX Runtime as it is fastest, whichever way that is: on one thread, on as many as
    ours, these waiting for work awake or asleep."""
    ours = nn.LSTM(hidden, hidden)
    stream, threads = ours.stream(), native.threads()
    x = np.random.default_rng(0).standard_normal((1, hidden), dtype=np.float32)
    zeros = np.zeros((1, 1, hidden), np.float32)
    fed = {"input": x[None], "sequence_lens": np.ones(1, np.int32), "initial_h": zeros, "initial_c": zeros}
    ways: Ways = {"unspool": lambda: stream.step(x)}
    for name, count, spinning in (
        ("ONNX Runtime on 1 thread", 1, False),
        (f"on {threads}, awake", threads, True),
        (f"on {threads}, asleep", threads, False),
    ):
        graph = onnx_runtime(ours, count, spinning)
        ways[name] = lambda graph=graph: graph.run(None, fed)
    return ways


def narrow_step(hidden: int) -> Ways:
    """One streaming step with weights in fewer bits, against ours in float32."""
    weights = [torch.randn(4 * hidden, hidden).numpy() / hidden**0.5 for _ in range(2)]
    parts = Weights(*weights, torch.zeros(4 * hidden).numpy())
    x = torch.randn(1, hidden).numpy()

    def way(precision: str) -> Callable[[], object]:
        stream = Stream([native.prepare(Cell.LSTM, [parts], precision=precision)], 1)
        return lambda: stream.step(x)

    return {"int8": way("int8"), "bfloat16": way("bfloat16"), "float32": way("float32")}


def bfloat16_training(batch: int, hidden: int) -> Ways:
    """Forward and backward of the kernels, their packing included, against torch's layer under autocast."""
    layer = torch.nn.LSTM(hidden, hidden)
    weights = [
        getattr(layer, f"{name}_l0").detach().numpy() for name in ("weight_ih", "weight_hh", "bias_ih")
    ]
    x, d_out = torch.randn(64, batch, hidden), torch.randn(64, batch, hidden)
    arrays = x.numpy(), d_out.unsqueeze(2).numpy()
    x = x.requires_grad_()

    def ours() -> object:
        prepared = native.prepare(Cell.LSTM, [Weights(*weights)], precision="bfloat16")
        trace, _ = native.forward(prepared, arrays[0])
        return native.backward(prepared, arrays[0], trace, d_hidden=arrays[1])

    def autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)[0]
        out.backward(d_out.to(out.dtype))

    return {"unspool": ours, "nn.LSTM, autocast": autocast}


def whole_step(hidden: int, classes: int) -> Ways:
    """What a user trains: our layer's work among torch's own, on the same cores."""

    def way(layer: Any) -> Callable[[], object]:
        torch.manual_seed(0)
        embedding, recurrent = torch.nn.Embedding(classes, hidden), layer(hidden, hidden)
        scores = torch.nn.Linear(hidden, classes)
        parameters = [*embedding.parameters(), *recurrent.parameters(), *scores.parameters()]
        optimizer = torch.optim.AdamW(parameters)
        x, gold = torch.randint(classes, (32, 16)), torch.randint(classes, (32 * 16,))

        def run() -> None:
            optimizer.zero_grad()
            given = scores(recurrent(embedding(x))[0]).flatten(0, 1)
            torch.nn.functional.cross_entropy(given, gold).backward()
            optimizer.step()

        return run

    return {"unspool": way(nn.LSTM), "nn.LSTM": way(torch.nn.LSTM)}


def onnx_runtime(layer: nn.LSTM, threads: int, spinning: bool) -> Any:
    """An ONNX Runtime session of a layer, on so many threads, which wait for work awake or asleep."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        to_onnx(layer, Path(folder) / "layer.onnx")
        data = (Path(folder) / "layer.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def layer_row(
    cell: str, steps: int, batch: int, hidden: int, directions: int, ragged: str | None, training: bool
) -> Row:
    """A layer's inference, or its forward and backward pass."""
    lengths = f", lengths {ragged} 1…{steps}" if ragged else ""
    what = "training" if training else "inference"
    two = ", two directions" if directions == 2 else ""
    title = f"{cell}, T={steps}, B={batch}, I=H={hidden}{two}{lengths}: {what}"
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    products = (
        0 if ragged else steps * batch * directions * gates * hidden * 2 * hidden * (3 if training else 1)
    )
    return Row(title, lambda: layer(cell, steps, batch, hidden, directions, bool(ragged), training), products)


def layer(
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    directions: int,
    ragged: bool,
    training: bool,
    layers: int = 1,
) -> Ways:
    """The ways of running one layer, or some; ragged also with all padding computed."""
    options: Any = {"bidirectional": directions == 2, "num_layers": layers}
    theirs = getattr(torch.nn, cell)(hidden, hidden, **options)
    ours = getattr(nn, cell)(hidden, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden, requires_grad=True)
    lengths = torch.randint(1, steps + 1, (batch,)) if ragged else None
    d_out = torch.randn(steps, batch, hidden * directions)

    def packed() -> torch.Tensor:
        return theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data

    ways: dict[str, Callable[[], torch.Tensor]] = {"unspool": lambda: ours(x, lengths=lengths)[0]}
    if ragged:
        ways["PackedSequence"] = packed
    ways["padded" if ragged else f"nn.{cell}"] = lambda: theirs(x)[0]
    if not training:
        return {name: without_gradient(way) for name, way in ways.items()}

    def train(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            out = way()
            out.backward(d_out if out.dim() == 3 else d_out.view(-1, d_out.size(2))[: out.size(0)])

        return run

    return {name: train(way) for name, way in ways.items()}


def projection(training: bool) -> Ways:
    """A projected LSTM, forward or forward and backward, against torch's."""
    theirs, ours = torch.nn.LSTM(256, 256, proj_size=128), nn.LSTM(256, 256, proj_size=128)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(64, 32, 256, requires_grad=training)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], atol=1e-5, rtol=1e-5)
    ways: dict[str, Any] = {"unspool": ours, "nn.LSTM": theirs}
    if not training:
        return {name: without_gradient(lambda layer=layer: layer(x)) for name, layer in ways.items()}
    d_out = torch.randn(64, 32, 128)
    return {name: lambda layer=layer: layer(x)[0].backward(d_out) for name, layer in ways.items()}


def recurrent_dropout() -> Ways:
    """Masks drawn at every call, against none: what dropout costs is the reverse of the ratio."""
    return beside_plain("with dropout", recurrent_dropout=0.25)


def layer_norm() -> Ways:
    """Three norms a step, against none: what they cost is the reverse of the ratio."""
    return beside_plain("with layer norm", layer_norm=True)


def beside_plain(name: str, **options: Any) -> Ways:
    """Forward and backward of ours with options and without."""
    layers = {name: nn.LSTM(256, 256, **options), "plain": nn.LSTM(256, 256)}
    x, d_out = torch.randn(64, 32, 256, requires_grad=True), torch.randn(64, 32, 256)
    return {which: lambda layer=layer: layer(x)[0].backward(d_out) for which, layer in layers.items()}


def zoneout_drawn() -> Ways:
    """The layer, which draws masks at every call, against none."""
    return beside_plain("with zoneout", zoneout=(0.05, 0.5))


def zoneout() -> Ways:
    """The kernels with masks of zoneout, which are given to them, against the plain ones."""
    weights = [torch.randn(4 * 256, 256).numpy() / 16 for _ in range(2)]
    prepared = native.prepare(Cell.LSTM, [Weights(*weights, torch.zeros(4 * 256).numpy())])
    x, d_out = torch.randn(64, 32, 256).numpy(), torch.randn(64, 32, 1, 256).numpy()
    kept = [
        masks.zoneout(0, 0, 0, 1, 32, 256, 64, share, part)
        for part, share in (("hidden", 0.05), ("cell", 0.5))
    ]

    def way(**options: Any) -> Callable[[], object]:
        def run() -> object:
            trace, _ = native.forward(prepared, x, **options)
            return native.backward(prepared, x, trace, d_hidden=d_out, **options)

        return run

    return {"with zoneout": way(zoneout=State(*kept)), "plain": way()}


def resets() -> Ways:
    """Episode boundaries inside a batch against a Python loop that stops at each of them."""
    steps, batch, hidden = 128, 16, 128
    theirs, ours = torch.nn.LSTM(hidden, hidden), nn.LSTM(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden, requires_grad=True)
    cut = torch.rand(steps, batch) < 0.03
    d_out = torch.randn(steps, batch, hidden)
    stops = [0, *(t for t in range(1, steps) if cut[t].any()), steps]

    def loop() -> torch.Tensor:
        h = c = torch.zeros(1, batch, hidden)
        parts = []
        for start, stop in pairwise(stops):
            keep = (~cut[start]).float().unsqueeze(1)
            out, (h, c) = theirs(x[start:stop], (h * keep, c * keep))
            parts.append(out)
        return torch.cat(parts)

    torch.testing.assert_close(ours(x, resets=cut)[0], loop(), atol=1e-5, rtol=1e-5)
    return {
        "unspool": lambda: ours(x, resets=cut)[0].backward(d_out),
        "a loop over segments": lambda: loop().backward(d_out),
    }


def traced() -> Ways:
    """Every gate and state kept, against none; the ratio is what keeping them costs the other way round."""
    hidden = 256
    weights = [torch.randn(4 * hidden, hidden).numpy() / 16 for _ in range(2)]
    prepared = native.prepare(Cell.LSTM, [Weights(*weights, torch.zeros(4 * hidden).numpy())])
    x = torch.randn(64, 32, hidden).numpy()
    return {
        "with the trace": lambda: native.forward(prepared, x),
        "without": lambda: native.infer(prepared, x),
    }


def without_gradient(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def interleaved(ways: Ways, seconds: float, rest_seconds: float) -> dict[str, float]:
    """The median time of each way in µs; all are called in turn, many times a turn where they are short."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    calls = {}
    for name, way in ways.items():
        way()
        started = time.perf_counter()
        way()
        calls[name] = max(1, min(1000, int(0.003 / (time.perf_counter() - started))))
    begun, rounds = time.perf_counter(), 0
    while rounds < 5 or (rounds < 200 and time.perf_counter() - begun < seconds):
        rounds += 1
        for name, way in ways.items():
            time.sleep(rest_seconds)
            started = time.perf_counter()
            for _ in range(calls[name]):
                way()
            times[name].append(1e6 * (time.perf_counter() - started) / calls[name])
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


class Limits:
    """The best rates seen of what the machine can do."""

    SIZES = (16 << 10, 512 << 10, 8 << 20, 64 << 20)

    def __init__(self) -> None:
        self.best: dict[str, float] = {}

    def measure(self) -> None:
        """Once more; a tenth of a second or two."""
        for precision in ("float32", "bfloat16", "int8"):
            self._keep(precision, native.roofline(precision)[0])
        for size in self.SIZES:
            self._keep(f"read {size >> 10} KiB", native.roofline("float32", size)[1])

    def _keep(self, name: str, rate: float) -> None:
        self.best[name] = max(rate, self.best.get(name, 0.0))


def table(about: dict[str, object], limits: Limits, results: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    said = ", ".join(
        f"{name} {2 * rate / 1e9:,.0f} GFLOP/s" if "read" not in name else f"{name} {rate / 1e9:,.0f} GB/s"
        for name, rate in limits.best.items()
    )
    lines = [
        "# unspool against torch",
        "",
        in_words(about),
        "",
        "Medians of interleaved calls in one run, in µs; in brackets how many times faster the first is.",
        f"Beside ONNX Runtime a turn begins {1e3 * REST_SECONDS:.0f} ms after the one before: awake, as they",
        "are by default, its threads keep both cores for some 36 ms after a run; others would pay.",
        "The machine at the most (the best of a measurement before each row; all threads at once, each",
        f"reading a block of its own): {said}.",
        "Share: the time that a row's products alone would take at that rate, of the time unspool took.",
        "",
        "| work | unspool | peers | share |",
        "|---|---|---|---|",
    ]
    for row in results:
        (_, ours), *peers = row["us"].items()
        said = "; ".join(f"{name} {us:,.1f} (**{us / ours:.2f}×**)" for name, us in peers)
        floor = 1e6 * row["products"] / limits.best["float32"]
        share = f"{floor / ours:.0%}" if floor else ""
        lines.append(f"| {row['work']} | {ours:,.1f} | {said} | {share} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
