"""Recordings against the kernels and the cells' equations; contributions against autograd; damaged files."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

import networks
from unspool import files
from unspool.errors import InputError, ModelFileError
from unspool.introspect import Contributions, Recording, attribution, contributions, record
from unspool.kernels.contract import Cell, Gate, Trace, Weights
from unspool.model import POOLINGS
from unspool.recipes import sentiment

pytestmark = pytest.mark.usefixtures("native", "one_torch_thread")

TEXT = "It was a quietly moving film, not dull: it was fine"
COUNT = 13


def far(found: Any, expected: Any) -> float:
    """The relative distance, in the norm."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def same(first: Recording, second: Recording) -> bool:
    """Whether two recordings hold the same bits."""

    def content(recording: Recording) -> Any:
        arrays = [
            None if array is None else (array.dtype, array.shape, array.tobytes())
            for trace in recording.traces
            for array in trace
        ]
        return recording.cell, recording.words, recording.known, arrays

    return bool(content(first) == content(second))


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Sums as small as these gain nothing from torch's threads, which wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- recordings


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_a_recording_is_what_the_kernels_kept(cell: str, num_layers: int, bidirectional: bool) -> None:
    network, model, _ = networks.build(cell, num_layers, bidirectional)
    recording = record(model, TEXT)
    assert recording.cell is Cell(cell)
    assert " ".join(recording.words) == "it was a quietly moving film , not dull : it was fine"
    assert recording.known == tuple(word not in (",", ":") for word in recording.words)
    assert recording.directions == 1 + bidirectional
    assert len(recording.traces) == num_layers

    state = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    tokens = model.vocabulary.encode(recording.words)
    x = state["embedding.weight"][tokens][:, None]
    for k, trace in enumerate(recording.traces):
        weights = []
        for suffix in ("_l0", "_l0_reverse")[: recording.directions]:
            w_ih, w_hh, b_ih, b_hh = (
                state[f"layers.{k}.{name}{suffix}"]
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if cell == "gru":
                both = np.concatenate([b_ih[:12] + b_hh[:12], b_ih[12:]])
                weights.append(Weights(w_ih, w_hh, both, b_hh[12:]))
            else:
                weights.append(Weights(w_ih, w_hh, b_ih + b_hh))
        expected, _ = model.kernels.forward(model.kernels.prepare(Cell(cell), weights), x)
        for part, found, wanted in zip(Trace._fields, trace, expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=f"layer {k}, {part}")
        x = expected.hidden.reshape(COUNT, 1, -1)
    ran = model.run(model.embed(tokens[None]), np.array([COUNT]))
    np.testing.assert_array_equal(recording.traces[-1].hidden, ran)


def previous(states: Any, direction: int) -> Any:
    """(T, H) what each step was handed: zeros at the first that is read."""
    shifted = np.zeros_like(states)
    if direction == 0:
        shifted[1:] = states[:-1]
    else:
        shifted[:-1] = states[1:]
    return shifted


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_gates_and_states_obey_the_cells_equations(cell: str, layer: int, direction: int) -> None:
    recording = record(networks.build(cell, 2, seed=1).model, TEXT)

    def gate(name: Gate) -> Any:
        return recording.gate(name, layer=layer, direction=direction)

    h = recording.hidden(layer=layer, direction=direction)
    h_prev = previous(h, direction)
    assert h.shape == (COUNT, 6)
    candidate = gate(Gate.CANDIDATE)
    if cell == "lstm":
        c = recording.cell_state(layer=layer, direction=direction)
        expected_c = gate(Gate.FORGET) * previous(c, direction) + gate(Gate.INPUT) * candidate
        assert far(c, expected_c) <= 1e-6
        expected = gate(Gate.OUTPUT) * np.tanh(c)
    elif cell == "gru":
        update = gate(Gate.UPDATE)
        expected = (1 - update) * candidate + update * h_prev
    else:
        expected = candidate
    assert far(h, expected) <= 1e-6
    shares = [gate(name) for name in recording.cell.gates if name is not Gate.CANDIDATE]
    assert all(((share > 0) & (share < 1)).all() and share.std() > 0.05 for share in shares)
    assert (candidate >= 0).all() if cell == "rnn_relu" else (abs(candidate) <= 1).all()
    assert (candidate < 0).any() or cell == "rnn_relu"


def test_the_grus_candidate_is_made_of_its_recorded_parts() -> None:
    """n = tanh(W_n x + b_n + r * (U_n h' + b'_n)), with the weights as torch keeps them."""
    network, model, _ = networks.build("gru", seed=2)
    recording = record(model, TEXT)
    layer = network.layers[0]
    x = model.embed(model.vocabulary.encode(recording.words)[None])[:, 0]
    for direction, suffix in enumerate(("_l0", "_l0_reverse")):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(layer, name + suffix).detach().numpy()[12:]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        kept = recording.traces[0].recurrent_candidate[:, 0, direction]
        assert far(kept, previous(recording.hidden(direction=direction), direction) @ w_hh.T + b_hh) <= 1e-6
        reset = recording.gate(Gate.RESET, direction=direction)
        expected = np.tanh(x @ w_ih.T + b_ih + reset * kept)
        assert far(recording.gate(Gate.CANDIDATE, direction=direction), expected) <= 1e-6


def test_layers_count_from_either_end() -> None:
    recording = record(networks.build(num_layers=3).model, TEXT)
    np.testing.assert_array_equal(recording.hidden(), recording.hidden(layer=2))
    np.testing.assert_array_equal(recording.gate(Gate.INPUT, layer=-3), recording.gate(Gate.INPUT, layer=0))
    assert not np.array_equal(recording.cell_state(layer=0), recording.cell_state(layer=1))
    assert not np.array_equal(recording.hidden(direction=0), recording.hidden(direction=1))


@pytest.mark.parametrize(("layer", "direction"), [(2, 0), (-3, 0), (0, 2), (0, -1), (-1, 1)])
def test_a_place_that_is_not_there_is_refused(layer: int, direction: int) -> None:
    recording = record(networks.build(num_layers=2, bidirectional=layer != -1).model, TEXT)
    told = (
        f"there is no layer {layer}, direction {direction}.\n"
        f"  Received: a recording of 2 layers and {recording.directions} directions."
    )
    for ask in (recording.hidden, recording.cell_state, lambda **place: recording.gate(Gate.FORGET, **place)):
        with pytest.raises(InputError, match=re.escape(told)):
            ask(layer=layer, direction=direction)


@pytest.mark.parametrize(
    ("cell", "absent", "named"),
    [
        ("lstm", Gate.RESET, "Gate.INPUT or Gate.FORGET or Gate.CANDIDATE or Gate.OUTPUT"),
        ("gru", Gate.FORGET, "Gate.RESET or Gate.UPDATE or Gate.CANDIDATE"),
        ("rnn_tanh", Gate.INPUT, "Gate.CANDIDATE"),
        ("lstm", "forget", "Gate.INPUT or Gate.FORGET or Gate.CANDIDATE or Gate.OUTPUT"),
    ],
)
def test_a_gate_that_a_cell_has_not_is_refused(cell: str, absent: Any, named: str) -> None:
    recording = record(networks.build(cell).model, TEXT)
    with pytest.raises(InputError) as caught:
        recording.gate(absent)
    assert str(caught.value) == (
        f"there is no such gate in a {cell}.\n  Received: {absent}.\n  Fix: ask for {named}."
    )
    if cell != "lstm":
        with pytest.raises(InputError, match=f"a {cell} has no cell state"):
            recording.cell_state()


def test_a_long_text_is_recorded_up_to_its_limit() -> None:
    model = networks.build().model
    recording = record(model, "film " * 99)
    assert len(recording.words) == len(recording.known) == len(recording.hidden()) == networks.MAX_LENGTH
    assert len(contributions(model, "film " * 99, steps=2).values) == networks.MAX_LENGTH


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_a_text_without_words_is_refused(text: str) -> None:
    model = networks.build().model
    for function in (record, contributions):
        with pytest.raises(InputError, match="the text has no words"):
            function(model, text)


@pytest.mark.parametrize("text", [["a", "film"], None, 3])
def test_what_is_no_text_is_refused(text: Any) -> None:
    model = networks.build().model
    for function in (record, contributions):
        with pytest.raises(InputError, match="list of texts"):
            function(model, text)


# ---- recordings on disk


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_a_saved_recording_is_read_back_bit_for_bit(cell: str, bidirectional: bool, tmp_path: Path) -> None:
    model = networks.build(cell, 11, bidirectional).model  # more layers than have one digit
    for text in (TEXT, 'naïve 映画 "quoted" \\ \x1b \udcff it\'s', "good"):
        recording = record(model, text)
        recording.save(tmp_path / "run.safetensors")
        found = Recording.load(tmp_path / "run.safetensors")
        assert same(found, recording)
        assert not same(found, record(model, "bad film"))
    found = Recording.load(str(tmp_path / "run.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.safetensors"]
    odd = dataclasses.replace(found, traces=tuple(t._replace(hidden=t.hidden * np.nan) for t in found.traces))
    odd.save(tmp_path / "run.safetensors")
    assert same(Recording.load(tmp_path / "run.safetensors"), odd)


def test_other_tools_read_the_numbers(tmp_path: Path) -> None:
    recording = record(networks.build("gru").model, TEXT)
    recording.save(tmp_path / "run.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "run.safetensors")
    np.testing.assert_array_equal(tensors["0.hidden"], recording.traces[0].hidden)
    assert json.loads(tensors["about"].tobytes())["words"] == list(recording.words)


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError, match=r"\n  Fix: ") as caught:
        Recording.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 2000
    return message


def test_every_cut_and_flip_of_a_recording_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    record(networks.build("gru", 1, False, hidden_size=2).model, "a good film").save(path)
    data = path.read_bytes()
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        refusal(path)
    rng = np.random.default_rng(0)
    for place in range(len(data)):
        flipped = bytes([data[place] ^ 1 << int(rng.integers(8))])
        path.write_bytes(data[:place] + flipped + data[place + 1 :])
        refusal(path)
    path.write_bytes(data + b"\0")
    refusal(path)
    path.write_bytes(data)
    Recording.load(path)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    assert "is not a recording" in refusal(path)  # absent
    assert "is not a recording" in refusal(tmp_path)  # a folder
    for data in (b"", b"{}", b"\x80\x04K\x01.", b"x" * 100, b"\xff" * 8, b"\0\0\0;\0\0\0\0{}"):
        path.write_bytes(data)
        refusal(path)
    path.write_bytes(networks.parts(networks.build())[files.WEIGHTS])
    assert "something else" in refusal(path)


def sealed(path: Path, about: Any, tensors: dict[str, Any]) -> None:
    """Write a file whose digest is right, whatever it says."""
    data = about if isinstance(about, bytes) else json.dumps(about).encode()
    tensors = {**tensors, "about": np.frombuffer(data, np.uint8)}
    path.write_bytes(files.pack({**tensors, "sha256": files._digest(tensors)}))


def taken_apart(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = safetensors.numpy.load_file(path)
    del tensors["sha256"]
    return json.loads(tensors.pop("about").tobytes()), tensors


def test_a_hostile_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    record(networks.build().model, TEXT).save(path)
    about, tensors = taken_apart(path)
    sealed(path, about, tensors)
    Recording.load(path)
    wrong: dict[str, list[Any]] = {
        "format": ["unspool-model", None, 3],
        "version": [0, 2, "1", None],
        "cell": ["gru", "rnn_tanh", "LSTM", "os.system", "", None, 4, ["lstm"], {"lstm": 1}],
        "words": [None, "it was a text of", COUNT, [], ["it"], [3] * COUNT, [["it"]] * COUNT, {"it": 1}],
        "known": [None, True, [], [True], [1] * COUNT, ["true"] * COUNT, [None] * COUNT],
    }
    changed: list[Any] = [{**about, name: value} for name, values in wrong.items() for value in values]
    changed += [{key: value for key, value in about.items() if key != name} for name in about]
    changed += [b"", b"[]", b"3", b"[" * 10**5, b'{"words":' * 10**5, b"\xff", b"{}}"]
    changed += [{**about, "words": ["x" * 10**5]}, {**about, "cell": "x" * 10**5}]
    for each in changed:
        sealed(path, each, tensors)
        refusal(path)


def test_tensors_that_are_no_trace_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    record(networks.build(num_layers=2).model, TEXT).save(path)
    about, tensors = taken_apart(path)
    hidden = tensors["1.hidden"]
    changed = [{name: array for name, array in tensors.items() if name != absent} for absent in tensors]
    changed += [{}, {**tensors, "extra": hidden}, {**tensors, "2.hidden": hidden}, {"hidden": hidden}]
    changed += [{**tensors, "0.recurrent_candidate": hidden}]
    changed += [{name.replace("1.", "7."): array for name, array in tensors.items()}]
    changed += [
        {**tensors, name: array}
        for name in ("0.hidden", "1.hidden", "1.gates")
        for array in (
            tensors[name][:-1],
            tensors[name][..., :-1],
            tensors[name][..., :0],
            tensors[name].astype(np.float64),
            tensors[name].view(np.int32),
            np.repeat(tensors[name], 2, 1),
            tensors[name][:, :, :1],
            tensors[name][:, 0],
            np.float32(1),
        )
    ]
    changed += [{name: array[:, :, :0] for name, array in tensors.items()}]
    changed += [{name: np.concatenate([array, array[:, :, :1]], 2) for name, array in tensors.items()}]
    changed += [{name: array[..., :0] for name, array in tensors.items()}]
    for each in changed:
        sealed(path, about, {name: np.ascontiguousarray(array) for name, array in each.items()})
        refusal(path)


# ---- contributions


TORCH_LAYERS: dict[str, Any] = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def torch_layers(network: sentiment.Network) -> list[nn.Module]:
    """The network's layers as torch's own, in float64."""
    made = []
    for layer in network.layers:
        options = {"nonlinearity": "relu"} if network.config.cell == "rnn_relu" else {}
        plain = TORCH_LAYERS[network.config.cell](
            layer.input_size, layer.hidden_size, bidirectional=network.config.bidirectional, **options
        )
        plain.load_state_dict(layer.state_dict())
        made.append(plain.double())
    return made


def margin(network: sentiment.Network, layers: list[nn.Module], x: Tensor, best: int, rival: int) -> Tensor:
    """(B,) the logit of one class minus that of another, from (T, B, E), by torch alone in float64."""
    for layer in layers:
        x, _ = layer(x)
    lengths = torch.full((x.size(1),), x.size(0))
    pooled = sentiment.pool(x, lengths, network.config.pooling, network.config.hidden_size)
    weights, bias = network.classifier.weight.double(), network.classifier.bias
    return pooled @ (weights[best] - weights[rival]) + bias[best] - bias[rival]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, True), (3, True), (2, False)])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_contributions_are_autograds_integrated_gradients(
    cell: str, num_layers: int, bidirectional: bool, pooling: str
) -> None:
    network, model, _ = networks.build(cell, num_layers, bidirectional, pooling, seed=num_layers)
    found = contributions(model, "It was not a good film", steps=12)

    layers = torch_layers(network)
    tokens = torch.from_numpy(model.vocabulary.encode(found.words))
    x = network.embedding(tokens).detach().double()[:, None]
    best, rival = networks.LABELS.index(found.label), networks.LABELS.index(found.rival)
    along = (torch.arange(12).double() + 0.5) / 12
    path = (x * along[None, :, None]).requires_grad_()
    margin(network, layers, path, best, rival).sum().backward()
    assert path.grad is not None
    expected = (x[:, 0] * path.grad.mean(1)).sum(1)
    assert far(found.values, expected) <= 1e-5

    with torch.no_grad():
        whole = float(margin(network, layers, x, best, rival))
        blank = float(margin(network, layers, torch.zeros_like(x), best, rival))
    assert found.margin == pytest.approx(whole, abs=1e-5)
    assert found.margin_without == pytest.approx(blank, abs=1e-5)
    assert found.gap == pytest.approx(whole - blank - float(expected.sum()), abs=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", networks.CELLS)
def test_contributions_add_up_to_the_change_of_the_margin(cell: str, pooling: str) -> None:
    """Where the path is smooth the gap falls as 1/steps²; the kinks of max and relu leave 1/steps."""
    model = networks.build(cell, 2, pooling=pooling, seed=4).model
    texts = [" ".join(np.random.default_rng(k).permutation(networks.WORDS)) for k in range(6)]

    def gaps(steps: int) -> Any:
        """The gap of each text, as a share of all that its words moved."""
        made = [contributions(model, text, steps=steps) for text in texts]
        for c in made:
            assert c.gap == pytest.approx(c.margin - c.margin_without - float(c.values.sum()), abs=1e-5)
        return np.array([abs(c.gap) / abs(c.values).sum() for c in made])

    few, many = gaps(8), gaps(128)
    smooth = cell != "rnn_relu" and "max" not in pooling
    assert many.max() <= (1e-4 if smooth else 0.02)
    assert many.mean() <= few.mean() / (100 if smooth else 5)


@pytest.mark.parametrize("cell", networks.CELLS)
def test_contributions_name_the_label_and_its_rival(cell: str) -> None:
    model = networks.build(cell, seed=5).model
    c = contributions(model, TEXT)
    logits = model.logits(model.encode([TEXT]))[0]
    _, rival, best = np.argsort(logits)
    assert (c.label, c.rival) == (networks.LABELS[best], networks.LABELS[rival])
    assert {"text": TEXT, "label": c.label, "score": c.score} == model.predict([TEXT])[0]
    assert c.margin == pytest.approx(float(logits[best] - logits[rival]), rel=1e-6)
    assert c.margin > 0
    assert c.words == record(model, TEXT).words
    assert c.values.shape == (COUNT,)
    assert c.values.std() > 0


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_word_has_all_of_the_change(bidirectional: bool, pooling: str) -> None:
    model = networks.build("lstm", 2, bidirectional, pooling).model
    c = contributions(model, "good", steps=256)
    assert c.words == ("good",)
    # One step, so every maximum stays where it is and the path is smooth.
    assert float(c.values[0]) == pytest.approx(c.margin - c.margin_without, abs=2e-5)
    assert abs(c.gap) <= 2e-5
    assert len(record(model, "good").hidden()) == 1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_word_of_zeros_moves_nothing(pooling: str) -> None:
    """A vector that is the baseline's own gets exactly 0, and a text of such words is the baseline."""
    model = networks.build("gru", pooling=pooling).model
    model.embedding[model.vocabulary.encode(["the"])] = 0
    c = contributions(model, "the film was the dull the", steps=16)
    np.testing.assert_array_equal(c.values == 0, [word == "the" for word in c.words])
    blank = contributions(model, "the the", steps=16)
    assert not blank.values.any()
    assert blank.gap == blank.margin - blank.margin_without == 0


def test_no_text_reaches_the_padding_word() -> None:
    model = networks.build().model
    text = "<pad> film <unk>"
    recording = record(model, text)
    assert recording.words == ("<", "pad", ">", "film", "<", "unk", ">")
    assert recording.known == (False, False, False, True, False, False, False)
    before = contributions(model, text, steps=4)
    model.embedding[0] = np.nan
    np.testing.assert_array_equal(contributions(model, text, steps=4).values, before.values)


def test_the_path_needs_a_point() -> None:
    model = networks.build().model
    for steps in (0, -1):
        with pytest.raises(InputError, match=f"steps should be 1 or more.\n  Received: {steps}"):
            contributions(model, TEXT, steps=steps)
    assert contributions(model, TEXT, steps=1).values.shape == (COUNT,)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", networks.CELLS)
def test_each_point_of_the_path_is_computed_as_if_alone(cell: str, pooling: str) -> None:
    model = networks.build(cell, 2, pooling=pooling).model
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (9, 6, 5)).astype(np.float32)
    lengths = np.array([9, 4, 0, 1, 9, 6])
    towards = np.array([1, 0, -1], np.float32)
    together = attribution._margin_gradient(model, x, lengths, towards)
    assert together.shape == x.shape
    for row, length in enumerate(lengths):
        if length:
            alone = attribution._margin_gradient(
                model, np.ascontiguousarray(x[:length, row : row + 1]), lengths[row : row + 1], towards
            )
            np.testing.assert_array_equal(alone[:, 0], together[:length, row])
            assert alone.any()
        assert not together[length:, row].any()


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_unpool_is_the_gradient_of_the_recipes_pooling(pooling: str, directions: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([5, 2, 0, 1, 5])
    live = np.arange(5)[:, None] < lengths
    hidden = rng.normal(0, 1, (5, 5, directions, 3)).astype(np.float32) * live[:, :, None, None]
    d_pooled = rng.normal(0, 1, (5, 3 * directions * (1 + (pooling == "mean-max")))).astype(np.float32)
    x = torch.from_numpy(hidden.reshape(5, 5, -1)).requires_grad_()
    sentiment.pool(x, torch.from_numpy(lengths), pooling, 3).backward(torch.from_numpy(d_pooled))
    assert x.grad is not None
    found = attribution._unpool(hidden, lengths, pooling, d_pooled)
    # What reaches the padding is nobody's: torch's mean gives it a share, and the kernels never read it.
    np.testing.assert_allclose(found, x.grad.numpy() * live[:, :, None], rtol=1e-6)
    assert not found[~live].any()
    assert found[live].any()


def test_contributions_are_data() -> None:
    c = contributions(networks.build().model, TEXT, steps=2)
    assert isinstance(c, Contributions)
    assert c.values.dtype == np.float32
    assert all(type(number) is float for number in (c.score, c.margin, c.margin_without, c.gap))
