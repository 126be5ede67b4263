"""Model files of layers with more than the plain cell: served without torch, versioned, refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import networks
from unspool import files, nn
from unspool.errors import ConfigError, InputError, KernelsError, ModelFileError
from unspool.exchange import to_onnx
from unspool.introspect import Recording, contributions, jacobian, memory_span, record, saturation
from unspool.kernels.contract import Cell, Trace
from unspool.model import CARD, CONFIG, VOCABULARY, Description, Model, config_text
from unspool.training import weights
from unspool.vocabulary import PAD_TOKEN, UNKNOWN_TOKEN, Vocabulary

pytestmark = pytest.mark.usefixtures("native")

# What an nn layer is told, and what a description says.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "projection": ({"proj_size": 4}, {"proj_size": 4}),
    "norm": ({"layer_norm": True}, {"layer_norm": True}),
    "peephole": ({"peephole": True}, {"peephole": True}),
    "zoneout": ({"zoneout": (0.2, 0.4)}, {"zoneout_hidden": 0.2, "zoneout_cell": 0.4}),
    "clip": ({"cell_clip": 0.25}, {"cell_clip": 0.25}),
}
OPTIONS["all"] = ({}, {})
for _each in list(OPTIONS.values()):
    for _all, _one in zip(OPTIONS["all"], _each, strict=True):
        _all.update(_one)
VOCABULARY_OF = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN, *networks.WORDS), lowercase=True)
TEXTS = ["A quietly moving film.", "", "It was not good, it was fine", "bad", "the film " * 12]


class Network(torch.nn.Module):
    """Embedding, layers with options, the last state's classes."""

    def __init__(self, d: Description, chosen: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding = torch.nn.Embedding(len(VOCABULARY_OF), d.embedding_size)
        kind = {Cell.LSTM: nn.LSTM, Cell.GRU: nn.GRU, Cell.RNN_TANH: nn.RNN}[d.cell]
        widths = (d.embedding_size, *(d.output_size * d.directions for _ in range(d.num_layers - 1)))
        self.layers = torch.nn.ModuleList(
            kind(width, d.hidden_size, bidirectional=d.bidirectional, **chosen) for width in widths
        )
        self.classifier = torch.nn.Linear(d.pooled_size, len(d.labels))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def hidden(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x, _ = layer(x, lengths=lengths)
        return x


def described(options: dict[str, Any], **changes: Any) -> Description:
    plain = networks.build("lstm", 2, bidirectional=False, pooling="mean-max").model.description
    return dataclasses.replace(plain, hidden_size=7, **(options | changes))


def built(chosen: str, **changes: Any) -> tuple[Network, Model]:
    of_layer, of_file = OPTIONS[chosen]
    d = described(of_file, **changes)
    network = Network(d, of_layer).eval()
    return network, Model(d, VOCABULARY_OF, weights(network))


def write(model: Model, folder: Path) -> None:
    files.write_folder(
        folder,
        {
            CONFIG: config_text(model.description.as_config(), model.tensors, "0"),
            VOCABULARY: model.vocabulary.to_bytes(),
            files.WEIGHTS: files.pack(model.tensors),
            CARD: b"a model",
        },
    )


def differ(a: Any, b: Any) -> bool:
    return bool(np.asarray(a).tobytes() != np.asarray(b).tobytes())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("chosen", OPTIONS)
def test_a_model_file_holds_options_and_serves_them(chosen: str, bidirectional: bool, tmp_path: Path) -> None:
    network, model = built(chosen, bidirectional=bidirectional)
    encoded = model.encode(TEXTS)
    x = model.embed(encoded.tokens)
    with torch.no_grad():
        want = network.hidden(torch.from_numpy(x), torch.from_numpy(encoded.lengths)).numpy()
    assert not differ(model.run(x, encoded.lengths).reshape(want.shape), want)
    write(model, tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.description == model.description
    assert not differ(again.logits(encoded), model.logits(encoded))
    reference = Model.load(tmp_path / "model", kernels="reference")
    np.testing.assert_allclose(reference.logits(encoded), model.logits(encoded), rtol=2e-5, atol=2e-5)
    config = json.loads((tmp_path / "model" / CONFIG).read_text())
    assert config["format_version"] == 2
    for name in OPTIONS[chosen][1]:
        assert name in repr(again)


@pytest.mark.parametrize("cell", [Cell.GRU, Cell.RNN_TANH])
def test_other_cells_have_norms_and_zoneout(cell: Cell, tmp_path: Path) -> None:
    d = described({"layer_norm": True, "zoneout_hidden": 0.25}, cell=cell)
    network = Network(d, {"layer_norm": True, "zoneout": 0.25}).eval()
    write(Model(d, VOCABULARY_OF, weights(network)), tmp_path / "model")
    model = Model.load(tmp_path / "model")
    encoded = model.encode(TEXTS)
    x = model.embed(encoded.tokens)
    with torch.no_grad():
        want = network.hidden(torch.from_numpy(x), torch.from_numpy(encoded.lengths)).numpy()
    assert not differ(model.run(x, encoded.lengths)[:, :, 0], want)


@pytest.mark.parametrize("chosen", OPTIONS)
def test_its_stream_has_the_bits_of_a_whole_run(chosen: str) -> None:
    _, model = built(chosen)
    x = np.random.default_rng(0).normal(size=(6, 3, model.description.embedding_size)).astype(np.float32)
    stream = model.stream(3)
    steps = np.stack([stream.step(step) for step in x])
    assert not differ(steps, model.run(x, np.array([6, 6, 6]))[:, :, 0])


def test_a_plain_network_is_written_as_ever() -> None:
    model = networks.build("lstm").model
    config = json.loads(config_text(model.description.as_config(), model.tensors, "0"))
    assert config["format_version"] == 1
    assert "peephole" not in config["network"]


def test_a_first_version_with_options_is_refused(tmp_path: Path) -> None:
    _, model = built("peephole")
    write(model, tmp_path / "model")
    parts = files.read_folder(tmp_path / "model")
    config = {**json.loads(parts[CONFIG]), "format_version": 1}
    files.write_folder(tmp_path / "model", {**parts, CONFIG: json.dumps(config).encode()})
    with pytest.raises(ModelFileError, match=r"version 1; such a network is read of .*, version 2"):
        Model.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"proj_size": 7}, "proj_size should be below hidden_size = 7"),
        ({"proj_size": -1}, "proj_size should"),
        ({"cell_clip": -1.0}, "cell_clip should"),
        ({"cell_clip": float("inf")}, "cell_clip should"),
        ({"zoneout_hidden": 1.0}, "zoneout_hidden should"),
        ({"zoneout_cell": float("nan")}, "zoneout_cell should"),
        ({"peephole": True, "cell": Cell.GRU}, "peephole belongs to an lstm"),
        ({"zoneout_cell": 0.5, "cell": Cell.RNN_RELU}, "zoneout_cell belongs to an lstm"),
    ],
)
def test_options_that_are_none_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        described({}, **change)
    with pytest.raises(ConfigError, match="layer_norm should be of type bool"):
        Description.from_config(described({}).as_config() | {"layer_norm": 1})


def test_what_does_not_run_them_says_so(tmp_path: Path) -> None:
    _, model = built("all")
    write(model, tmp_path / "model")
    for precision in ("bfloat16", "int8"):
        with pytest.raises(InputError, match=f"does not run in {precision}"):
            Model.load(tmp_path / "model", precision=precision)
    with pytest.raises(InputError, match=r"cannot be looked at yet(.|\n)*proj_size, layer_norm"):
        jacobian(model, TEXTS[0], at=2, of=0)
    with pytest.raises(InputError, match="operators have no proj_size"):
        to_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(KernelsError, match="native kernels alone"):
        Model.load(tmp_path / "model", kernels="reference").stream()


@pytest.mark.parametrize("chosen", OPTIONS)
def test_it_is_recorded_and_attributed(chosen: str, tmp_path: Path) -> None:
    _, model = built(chosen)
    recording = record(model, TEXTS[2])
    recording.save(tmp_path / "recording")
    again = Recording.load(tmp_path / "recording")
    for trace, other in zip(recording.traces, again.traces, strict=True):
        for field in Trace._fields:
            if getattr(trace, field) is not None:
                assert not differ(getattr(trace, field), getattr(other, field))
    assert recording.columns()
    for measure in (saturation, memory_span):
        assert str(measure(model, TEXTS[2])) == str(measure(recording))
        with pytest.raises(InputError, match="only texts are looked at"):
            measure(model, np.zeros((3, 5), np.float32))
    if not model.description.layer_norm:  # a norm of W x hardly knows how large x is, and all of it near 0
        found = contributions(model, TEXTS[2], steps=1024)
        assert abs(found.gap) < 0.001 * abs(found.values).sum()
