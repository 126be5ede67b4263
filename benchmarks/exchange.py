"""What the room exchange holds to: onnx's node cases, drawn models beside ONNX Runtime and onnx's reference.

python benchmarks/exchange.py          prints, and writes benchmarks/results/exchange.md
"""

import sys
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
from onnx.backend.test.loader import load_model_tests

from stamp import in_words, stamp
from unspool.exchange import OnnxBackend, onnx_file
from unspool.exchange.operators import Attributes, Node

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from exchange import generated  # noqa: E402

CASES = 500
PREFIXES = ("test_rnn", "test_simple_rnn", "test_lstm", "test_gru")


def what_ran(case: generated.Case) -> str:
    """Which kernels a drawn case ran on."""
    arrays = (case.arrays.get(name) for name in ("W", "R", "B", "P"))
    return Node(Attributes.of(case.operator, case.attributes), *arrays).describe()


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = [case for case in load_model_tests(kind="node") if case.name.startswith(PREFIXES)]
    node_worst, passed, ran_nodes = 0.0, 0, Counter[str]()
    for case in nodes:
        for inputs, expected in case.data_sets:
            outputs = OnnxBackend.run_model(case.model, inputs)
            differences = [np.abs(a - b).max() for a, b in zip(outputs, expected, strict=True)]
            node_worst = max(node_worst, float(max(differences)))
            passed += max(differences) <= 1e-5
        node = case.model.graph.node[0]
        rest = iter(inputs)
        by_role = [next(rest) if name else None for name in node.input] + [None] * 8
        weights = [by_role[at] for at in (1, 2, 3, 7)]
        ran_nodes[Node(Attributes.of(node.op_type, onnx_file.attributes(node)), *weights).describe()] += 1

    worst, asked, ran = Counter[str](), Counter[str](), Counter[str]()
    for number in range(CASES):
        case = generated.case(number)
        ran[what_ran(case)] += 1
        for name, difference in generated.differences(case).items():
            asked[name] += 1
            worst[name] = max(worst[name], difference)  # type: ignore[assignment]

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("onnx", "onnxruntime"))
    lines = [
        "# ONNX's recurrent operators on our kernels",
        "",
        f"{in_words(stamp('python benchmarks/exchange.py'))} {versions}.",
        "",
        f"onnx's node cases for RNN, LSTM and GRU: {passed} of {len(nodes)} within 1e-5, "
        f"the largest difference {node_worst:.1e}. They ran on: {said(ran_nodes)}.",
        "",
        f"{CASES} drawn models (lengths, zero lengths, reverse with lengths, clip, peepholes, both layouts). "
        f"They ran on: {said(ran)}.",
        "",
        "| beside | asked | largest difference, of the largest value above 1 |",
        "|---|---|---|",
        *(f"| {name} | {asked[name]} | {worst[name]:.1e} |" for name in asked),
        "",
        "Why onnx's reference is asked less often, and where ONNX Runtime is asked otherwise: "
        "tests/exchange/generated.py.",
        "",
    ]
    print("\n".join(lines))
    (ROOT / "benchmarks" / "results" / "exchange.md").write_text("\n".join(lines), encoding="utf-8")


def said(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())


if __name__ == "__main__":
    main()
