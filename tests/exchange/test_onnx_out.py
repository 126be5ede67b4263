"""Files that `to_onnx` writes: right in ONNX Runtime, whole or not there, and nothing silently left out."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.utils import parametrizations

import networks
from unspool import exchange, nn
from unspool.errors import InputError, ModelFileError
from unspool.exchange import gates, onnx_out
from unspool.kernels.contract import Cell, Gate

KINDS: dict[str, Any] = {
    "LSTM": {},
    "GRU": {},
    "RNN": {},
    "RNN relu": {"nonlinearity": "relu"},
}


def made(kind: str, library: Any = torch.nn, **options: Any) -> Any:
    torch.manual_seed(3)
    module = getattr(library, kind.split()[0])(5, 6, **KINDS[kind], **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("library", [torch.nn, nn], ids=["torch", "unspool"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_the_grid_is_written_and_checked(kind: str, library: Any, tmp_path: Path) -> None:
    for layers, two, batch_first, bias in itertools.product((1, 2), *[(False, True)] * 3):
        options = {"num_layers": layers, "bidirectional": two, "batch_first": batch_first, "bias": bias}
        check = exchange.to_onnx(made(kind, library, **options), tmp_path / "layers.onnx")
        assert check.sequences == 12
        assert check.largest_difference <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_onnx_runtime_gives_what_torch_gives_at_other_sizes(
    kind: str, batch_first: bool, tmp_path: Path
) -> None:
    module = made(kind, num_layers=2, bidirectional=True, batch_first=batch_first).eval()
    exchange.to_onnx(module, tmp_path / "layers.onnx")
    x = torch.randn(4, 11, 5) if batch_first else torch.randn(11, 4, 5)
    lengths = torch.tensor([11, 3, 7, 1])
    state = [torch.randn(4, 4, 6) for _ in range(2 if kind == "LSTM" else 1)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, lengths, batch_first=batch_first, enforce_sorted=False
    )
    output, final = module(packed, tuple(state) if kind == "LSTM" else state[0])
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=batch_first)
    feeds = {"input": x.numpy(), "sequence_lens": lengths.int().numpy()}
    feeds |= {name: part.numpy() for name, part in zip(("initial_h", "initial_c"), state, strict=False)}
    found = session(tmp_path / "layers.onnx").run(None, feeds)
    expected = [output, *(final if kind == "LSTM" else [final])]
    for theirs, mine in zip(found, expected, strict=True):
        assert np.abs(theirs - mine.detach().numpy()).max() < 1e-5


def test_what_a_file_looks_like(tmp_path: Path) -> None:
    exchange.to_onnx(made("LSTM", num_layers=2, bidirectional=True), tmp_path / "layers.onnx")
    written = onnx.load(tmp_path / "layers.onnx")
    assert [node.op_type for node in written.graph.node].count("LSTM") == 2
    assert [given.name for given in written.graph.input] == [
        "input",
        "sequence_lens",
        "initial_h",
        "initial_c",
    ]
    assert [output.name for output in written.graph.output] == ["output", "final_h", "final_c"]
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in written.graph.input]
    assert dims == [["time", "batch", 5], ["batch"], [4, "batch", 6], [4, "batch", 6]]
    assert all(node.name for node in written.graph.node)
    assert not any(tensor.external_data for tensor in written.graph.initializer)
    assert written.opset_import[0].version == onnx_out.OPSET


def test_the_same_layers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        exchange.to_onnx(made("GRU", num_layers=2), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("pooling", ["max", "mean", "mean-max", "last"])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_a_whole_model(cell: str, pooling: str, tmp_path: Path) -> None:
    model = networks.build(cell, 2, pooling == "max", pooling).model
    check = exchange.to_onnx(model, tmp_path / "model.onnx")
    assert check.sequences == 24
    encoded = model.encode(["a quietly moving film", "", "not good"])
    feeds = {"tokens": encoded.tokens, "sequence_lens": encoded.lengths.astype(np.int32)}
    logits, odds = session(tmp_path / "model.onnx").run(None, feeds)
    expected = model.logits(encoded)
    assert np.abs(logits - expected).max() < 1e-4
    assert np.abs(odds.sum(1) - 1).max() < 1e-6
    read = exchange.from_onnx(tmp_path / "model.onnx")
    assert isinstance(read, type(model))
    assert read.vocabulary == model.vocabulary
    assert read.description == model.description
    assert {k: v.tobytes() for k, v in read.tensors.items()} == {
        k: v.tobytes() for k, v in model.tensors.items()
    }
    assert np.array_equal(read.logits(encoded), expected)


def test_weights_behind_a_parametrization_are_written_as_they_act(tmp_path: Path) -> None:
    module = made("LSTM")
    parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(3)
    exchange.to_onnx(module, tmp_path / "layers.onnx")
    read = exchange.from_onnx(tmp_path / "layers.onnx")
    assert isinstance(read, exchange.Stack)
    assert np.array_equal(read.layers[0].directions[0].weight_hh, module.weight_hh_l0.detach().numpy())


# ---- a mismatch, and what cannot be written


def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the writer stack an LSTM's gates in a wrong order."""
    wrong = gates.GateOrder((Gate.INPUT, Gate.FORGET, Gate.OUTPUT, Gate.CANDIDATE))
    monkeypatch.setitem(gates._ORDERS, (gates.Format.ONNX, Cell.LSTM), wrong)


def test_a_mismatch_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planted(monkeypatch)
    with pytest.raises(ModelFileError, match=r"not ours; it was not written"):
        exchange.to_onnx(made("LSTM"), tmp_path / "layers.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelFileError, match=r"not ours; it was not written"):
        exchange.to_onnx(networks.build("lstm").model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_after_a_mismatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exchange.to_onnx(made("LSTM"), tmp_path / "layers.onnx")
    before = (tmp_path / "layers.onnx").read_bytes()
    planted(monkeypatch)
    with pytest.raises(ModelFileError):
        exchange.to_onnx(made("LSTM", num_layers=2), tmp_path / "layers.onnx")
    assert (tmp_path / "layers.onnx").read_bytes() == before


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    module = made("GRU")
    with torch.no_grad():
        module.weight_ih_l0[0, 0] = float("nan")
    with pytest.raises(ModelFileError, match="not ours"):
        exchange.to_onnx(module, tmp_path / "layers.onnx")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: torch.nn.LSTM(5, 6, proj_size=3), "proj_size"),
        (lambda: nn.LSTM(5, 6, layer_norm=True), "layer_norm"),
        (lambda: nn.LSTM(5, 6, zoneout=0.1), "zoneout"),
        (lambda: nn.LSTM(5, 6, cell_clip=1.0), "cell_clip"),
        (lambda: torch.nn.LSTM(5, 6).double(), "float64"),
        (lambda: torch.nn.LSTM(5, 6).half(), "float16"),
        (lambda: torch.nn.Linear(5, 6), "Linear"),
        (lambda: torch.nn.LSTMCell(5, 6), "LSTMCell"),
        (lambda: None, "NoneType"),
    ],
)
def test_what_cannot_be_written_is_refused(build: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        exchange.to_onnx(build(), tmp_path / "layers.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_the_operators_have_no_place_for_is_refused(tmp_path: Path) -> None:
    module = made("LSTM")
    module.register_parameter("attention", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(InputError, match="attention"):
        exchange.to_onnx(module, tmp_path / "layers.onnx")


def test_layers_of_several_kinds_are_refused(tmp_path: Path) -> None:
    lower = exchange.Stack.from_state_dict("lstm", torch.nn.LSTM(5, 6).state_dict())
    upper = exchange.Stack.from_state_dict("gru", torch.nn.GRU(6, 4).state_dict())
    with pytest.raises(InputError, match="a file of each"):
        exchange.to_onnx(exchange.Stack([*lower.layers, *upper.layers]), tmp_path / "layers.onnx")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be written"):
        exchange.to_onnx(made("GRU"), tmp_path / "nowhere" / "layers.onnx")


@pytest.mark.parametrize("gain", [2, 8])
def test_chaotic_layers_are_written_all_the_same(gain: int, tmp_path: Path) -> None:
    """Rounding grows from step to step there, in ONNX Runtime as in ours; that is no mismatch."""
    module = torch.nn.RNN(8, 64)
    with torch.no_grad():
        module.weight_hh_l0.normal_(0, gain / 8, generator=torch.Generator().manual_seed(0))
    assert exchange.to_onnx(module, tmp_path / "layers.onnx").largest_difference > 1e-6


def test_peepholes_of_a_layer_are_written(tmp_path: Path) -> None:
    layer = made("LSTM", nn, peephole=True, num_layers=2, bidirectional=True)
    exchange.to_onnx(layer, tmp_path / "layer.onnx")
    x, zeros = torch.randn(7, 3, 5), np.zeros((4, 3, 6), np.float32)
    fed = {
        "input": x.numpy(),
        "sequence_lens": np.full(3, 7, np.int32),
        "initial_h": zeros,
        "initial_c": zeros,
    }
    (output, *_) = session(tmp_path / "layer.onnx").run(None, fed)
    np.testing.assert_allclose(output, layer(x)[0].detach(), atol=1e-5)
    with torch.no_grad():
        layer.peephole_l1 *= -1
    assert np.abs(output - layer(x)[0].detach().numpy()).max() > 1e-2
