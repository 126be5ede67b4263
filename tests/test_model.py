"""The model without torch: torch's answers, whatever the batch; and files that are not what they should."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import networks
import unspool
from unspool import files
from unspool.errors import ConfigError, InputError, KernelsError, ModelFileError
from unspool.kernels.contract import Cell
from unspool.model import CONFIG, POOLINGS, VOCABULARY, Description, Encoded, Model, config_text, pool, shapes
from unspool.vocabulary import PAD_TOKEN, UNKNOWN, UNKNOWN_TOKEN, Vocabulary

pytestmark = pytest.mark.usefixtures("native", "one_torch_thread")

TEXTS = [
    "A quietly moving film.",
    "",
    "It was not good, it was fine",
    "bad",
    "zyx",
    " \n",
    "the film " * 12 + "was not moving",
    "Dull dull DULL!",
]


def ragged(seed: int, batch: int = 7, steps: int = 11) -> Encoded:
    """A batch with lengths of 0, 1 and all steps among others, and padding in its place."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, steps, batch)
    lengths[[1, 3, 5]] = 0, steps, 1
    tokens = rng.integers(UNKNOWN, 2 + len(networks.WORDS), (batch, steps))
    return Encoded(np.where(np.arange(steps) < lengths[:, None], tokens, 0), lengths)


def far(found: Any, expected: Any) -> float:
    """The relative distance, in the norm."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def torch_logits(built: networks.Built, encoded: Encoded) -> Any:
    with torch.no_grad():
        return built.network(torch.from_numpy(encoded.tokens), torch.from_numpy(encoded.lengths)).numpy()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Sums as small as these gain nothing from torch's threads, which wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the answers


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_logits_are_the_torch_networks(cell: str, num_layers: int, bidirectional: bool, pooling: str) -> None:
    built = networks.build(cell, num_layers, bidirectional, pooling, seed=num_layers)
    encoded = ragged(seed=len(cell) + num_layers)
    expected = torch_logits(built, encoded)
    found = built.model.logits(encoded)
    assert found.dtype == np.float32
    assert far(found, expected) <= 1e-6
    assert expected.std(0).min() > 0.02  # the rows differ, so agreement says something
    reference = networks.build(cell, num_layers, bidirectional, pooling, seed=num_layers, kernels="reference")
    assert far(reference.model.logits(encoded), expected) <= 1e-6
    np.testing.assert_array_equal(found[1], built.model.class_bias)  # no words: nothing but the bias


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("cell", "hidden_size"), [("lstm", 70), ("gru", 48), ("rnn_tanh", 17), ("rnn_relu", 1)]
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_bit_depends_on_the_batch(cell: str, hidden_size: int, bidirectional: bool, pooling: str) -> None:
    model = networks.build(cell, 2, bidirectional, pooling, hidden_size=hidden_size, seed=3).model
    encoded = ragged(seed=4, batch=33, steps=29)
    together = model.logits(encoded)
    rng = np.random.default_rng(5)
    for rows in [[row] for row in range(33)] + [list(rng.permutation(33)[:count]) for count in (2, 3, 8, 17)]:
        some = encoded.lengths[rows]
        cut = Encoded(encoded.tokens[rows][:, : max(some)], some)
        np.testing.assert_array_equal(model.logits(cut), together[rows])
    more = np.pad(encoded.tokens, ((0, 0), (0, 40)))
    np.testing.assert_array_equal(model.logits(Encoded(more, encoded.lengths)), together)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_predict_answers_each_text_as_if_alone(pooling: str) -> None:
    model = networks.build(
        num_layers=2,
        pooling=pooling,
    ).model
    answers = model.predict(TEXTS)
    assert [answer["text"] for answer in answers] == TEXTS
    assert answers == [model.predict([text])[0] for text in TEXTS]
    assert answers == model.predict(tuple(TEXTS), batch_size=3) == model.predict(TEXTS, batch_size=1)
    assert answers[::-1] == model.predict(TEXTS[::-1], batch_size=5)
    assert json.loads(json.dumps(answers)) == answers


def test_label_and_score_are_the_likeliest_class() -> None:
    built = networks.build(seed=5)
    texts = [text for text in TEXTS if text.strip()]
    probabilities = torch.from_numpy(torch_logits(built, built.model.encode(texts))).softmax(1)
    for answer, row in zip(built.model.predict(texts), probabilities, strict=True):
        assert answer["label"] == networks.LABELS[int(row.argmax())]
        assert answer["score"] == pytest.approx(float(row.max()), rel=1e-6)
    assert len({answer["label"] for answer in built.model.predict(texts)}) > 1


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_text_without_words_has_no_label(num_layers: int, pooling: str) -> None:
    model = networks.build(num_layers=num_layers, pooling=pooling).model
    for texts in ([""], [" \t\n"], ["", ""], ["", "good", "\u3000"]):
        for text, answer in zip(texts, model.predict(texts), strict=True):
            if not text.strip():
                assert answer == {"text": text, "label": None, "score": None}
            else:
                assert answer["label"] in networks.LABELS
    assert model.predict([]) == []


def test_unknown_words_are_all_one() -> None:
    model = networks.build().model
    first, second = model.predict(["xyzzy film", "plugh film"])
    assert first["score"] == second["score"]
    assert first["score"] != model.predict(["good film"])[0]["score"]
    np.testing.assert_array_equal(model.encode(["xyzzy Film <pad>"]).tokens, [[1, 5, 1, 1, 1]])


def test_a_long_text_is_read_up_to_its_limit() -> None:
    model = networks.build().model
    limit = model.description.max_length
    many = ["good", "bad", "film"] * limit
    long, cut, longer = model.predict([" ".join(many), " ".join(many[:limit]), " ".join(many[: limit - 1])])
    assert long["text"] == " ".join(many)
    assert long["score"] == cut["score"] != longer["score"]
    assert model.encode([" ".join(many)]).tokens.shape == (1, limit)


@pytest.mark.parametrize(
    ("wrong", "received"),
    [("a film", "'a film'"), ("", "''"), (["fine", 3], "3 among"), ([None], "None among")],
)
def test_what_is_no_list_of_texts_is_refused(wrong: Any, received: str) -> None:
    model = networks.build().model
    for call in (model.predict, model.encode):
        with pytest.raises(
            InputError, match=rf"list of texts\.\n  Received: {received}.*\n  Fix: .*predict\(\[text"
        ):
            call(wrong)
    with pytest.raises(InputError, match="batch_size should be 1 or more"):
        model.predict(["a film"], batch_size=0)


def test_threads_share_a_model(native: ModuleType) -> None:
    model = networks.build("gru", 2, hidden_size=40).model
    texts = [f"{' '.join(networks.WORDS[k % 12 :])} {'film ' * (k % 9)}" for k in range(40)]
    alone = model.predict(texts)
    threads = native.threads()
    native.set_threads(2)
    try:
        with ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(lambda k: model.predict(texts, batch_size=1 + k % 13), range(64)))
    finally:
        native.set_threads(threads)
    assert all(run == alone for run in runs)


def test_kernels_can_be_chosen(native: ModuleType, tmp_path: Path) -> None:
    built = networks.build()
    files.write_folder(tmp_path / "best", networks.parts(built))
    encoded = built.model.encode(TEXTS)
    auto, fast, slow = (
        Model.load(tmp_path / "best", kernels=name) for name in ("auto", "native", "reference")
    )
    np.testing.assert_array_equal(auto.logits(encoded), fast.logits(encoded))
    assert far(slow.logits(encoded), fast.logits(encoded)) <= 1e-6
    assert repr(auto) == (
        "Model(sentiment: 14 words × 5, 1 × lstm of 6, two directions, max pooling, bad/fine/good, "
        f"kernels={native.describe()})"
    )
    one_way = networks.build("gru", 2, bidirectional=False, pooling="last", kernels="reference").model
    assert "2 × gru of 6, one direction, last pooling" in repr(one_way)
    assert repr(one_way).endswith("kernels=reference)")
    with pytest.raises(KernelsError, match="'fast'"):
        Model.load(tmp_path / "best", kernels="fast")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_model_and_its_streams_run_in_a_precision(
    native: ModuleType, tmp_path: Path, precision: str
) -> None:
    built = networks.build(bidirectional=False, pooling="last")
    files.write_folder(tmp_path / "best", networks.parts(built))
    encoded = built.model.encode(TEXTS)
    narrow = Model.load(tmp_path / "best", precision=precision)
    slow = Model.load(tmp_path / "best", precision=precision, kernels="reference")
    assert far(narrow.logits(encoded), slow.logits(encoded)) <= 1e-3
    assert 1e-5 < far(narrow.logits(encoded), built.model.logits(encoded)) < 0.1
    assert repr(narrow).endswith(f"kernels={native.describe()}, {precision})")
    stream = narrow.stream(2)
    assert repr(stream).endswith(f"{native.describe()}, {precision})")
    x = np.ascontiguousarray(narrow.embed(encoded.tokens[:2])[:3])
    steps = np.stack([stream.step(one) for one in x])
    whole = narrow.run(x, np.array([3, 3]))
    assert steps.tobytes() == np.ascontiguousarray(whole[:, :, 0]).tobytes()


def test_int8_of_a_network_without_bounds_is_refused(tmp_path: Path) -> None:
    built = networks.build("rnn_relu")
    files.write_folder(tmp_path / "best", networks.parts(built))
    with pytest.raises(InputError, match="rnn_relu does not run in int8"):
        Model.load(tmp_path / "best", precision="int8")


def test_pooling_is_what_its_name_says() -> None:
    hidden = np.random.default_rng(0).normal(-1, 1, (4, 3, 2, 5)).astype(np.float32)
    lengths = np.array([4, 2, 0])
    hidden[2:, 1], hidden[:, 2] = 0, 0  # as kernels leave the padding
    for row, length in ((0, 4), (1, 2)):
        real = hidden[:length, row].reshape(length, 10)
        mean, most = real.mean(0), real.max(0)
        for pooling, expected in (
            ("max", most),
            ("mean", mean),
            ("mean-max", np.concatenate([mean, most])),
            ("last", np.concatenate([hidden[length - 1, row, 0], hidden[0, row, 1]])),
        ):
            np.testing.assert_allclose(pool(hidden, lengths, pooling)[row], expected, rtol=1e-6)
    for pooling in POOLINGS:
        assert not pool(hidden, lengths, pooling)[2].any()
        width = 20 if pooling == "mean-max" else 10
        assert pool(hidden[:0], lengths * 0, pooling).shape == (3, width)
        assert pool(hidden[:, :0], lengths[:0], pooling).shape == (0, width)


# ---- the folder


@pytest.fixture(scope="module")
def built() -> networks.Built:
    return networks.build("gru", 2)


@pytest.fixture(scope="module")
def whole(built: networks.Built) -> dict[str, bytes]:
    return networks.parts(built)


@pytest.fixture
def folder(whole: dict[str, bytes], tmp_path: Path) -> Path:
    files.write_folder(tmp_path / "best", whole)
    return tmp_path / "best"


def reseal(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes into a file of the folder, and vouch for them."""
    (folder / name).write_bytes(data)
    listed = [path for path in sorted(folder.iterdir()) if path.name != files.MARKER]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in listed]
    (folder / files.MARKER).write_text(f"# {len(lines)} files\n{''.join(lines)}")


def refusal(folder: Path) -> str:
    """What loading the folder is refused with."""
    with pytest.raises(ModelFileError, match=r"\n  Fix: ") as caught:
        Model.load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert len(message) < 2000
    return message


@pytest.mark.parametrize("cell", networks.CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_saved_model_answers_as_before(cell: str, bidirectional: bool, tmp_path: Path) -> None:
    built = networks.build(cell, 2, bidirectional, "mean-max")
    files.write_folder(tmp_path / "best", networks.parts(built))
    for path in (tmp_path / "best", str(tmp_path / "best"), f"{tmp_path}/best/"):
        model = unspool.Model.load(path)
        assert model.description == built.model.description
        assert model.vocabulary == built.model.vocabulary
        assert model.predict(TEXTS) == built.model.predict(TEXTS)
    for file in (tmp_path / "best").iterdir():
        os.truncate(file, 0)  # which ends a process that has the file mapped
    assert model.predict(TEXTS) == built.model.predict(TEXTS)


def test_torch_reads_the_weights(built: networks.Built, folder: Path) -> None:
    state = safetensors.torch.load_file(folder / files.WEIGHTS)
    other = networks.build("gru", 2, seed=1).network
    other.load_state_dict(state, strict=True)
    encoded = ragged(seed=6)
    assert far(built.model.logits(encoded), torch_logits(networks.Built(other, *built[1:]), encoded)) <= 1e-6
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert found == shapes(built.model.description, len(built.model.vocabulary))


def test_every_cut_and_flip_is_found_and_named(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        lengths = {0, 1, len(data) - 1, *rng.integers(0, len(data), 20).tolist()}
        damaged = [data[:length] for length in lengths] + [data + b"\0"]
        for place in rng.integers(0, len(data), 25).tolist():
            flipped = bytes([data[place] ^ 1 << int(rng.integers(8))])
            damaged.append(data[:place] + flipped + data[place + 1 :])
        for content in damaged:
            path.write_bytes(content)
            message = refusal(folder)
            assert path.name in message or path.name == files.MARKER
        path.write_bytes(data)
    Model.load(folder)


def test_a_missing_file_is_named(whole: dict[str, bytes], folder: Path) -> None:
    for name in whole:
        (folder / name).rename(folder / "away")
        assert name in refusal(folder)
        (folder / "away").rename(folder / name)
    for name in (CONFIG, VOCABULARY, files.WEIGHTS):
        files.write_folder(folder, {other: data for other, data in whole.items() if other != name})
        assert f"holds no {name}" in refusal(folder)
    (folder / files.MARKER).unlink()
    assert f"holds no {files.MARKER}" in refusal(folder)
    shutil.rmtree(folder)
    assert "there is no model folder" in refusal(folder)


Tensors = dict[str, Any]

WRONG_TENSORS: dict[str, tuple[str, Callable[[Tensors], Any]]] = {
    "too many": ("extra.weight", lambda t: t.update({"extra.weight": np.ones(3, np.float32)})),
    "a third layer": (
        "layers.2.bias_hh_l0",
        lambda t: t.update({"layers.2.bias_hh_l0": np.ones(18, np.float32)}),
    ),
    "missing": ("layers.1.bias_hh_l0_reverse", lambda t: t.pop("layers.1.bias_hh_l0_reverse")),
    "none": ("embedding.weight", lambda t: t.clear()),
    "a row short": ("embedding.weight", lambda t: t.update({"embedding.weight": t["embedding.weight"][1:]})),
    "a gate short": (
        "layers.0.weight_hh_l0",
        lambda t: t.update({"layers.0.weight_hh_l0": t["layers.0.weight_hh_l0"][:12]}),
    ),
    "turned": (
        "layers.0.weight_ih_l0",
        lambda t: t.update({"layers.0.weight_ih_l0": t["layers.0.weight_ih_l0"].T}),
    ),
    "an axis more": ("classifier.bias", lambda t: t.update({"classifier.bias": t["classifier.bias"][None]})),
    "no axis": ("classifier.bias", lambda t: t.update({"classifier.bias": np.float32(1)})),
    "no classes": ("classifier.bias", lambda t: t.update({"classifier.bias": t["classifier.bias"][:0]})),
    **{
        f"{dtype} numbers": (
            "classifier.weight",
            lambda t, dtype=dtype: t.update({"classifier.weight": t["classifier.weight"].astype(dtype)}),
        )
        for dtype in ("float64", "float16", "int32", "uint8", "bool")
    },
}


@pytest.mark.parametrize("fault", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_named(
    built: networks.Built, whole: dict[str, bytes], folder: Path, fault: str
) -> None:
    name, change = WRONG_TENSORS[fault]
    tensors = files.unpack(whole[files.WEIGHTS], "weights")
    change(tensors)
    config = config_text(
        built.model.description.as_config(), tensors, "0"
    )  # its digests are those of the tensors
    reseal(folder, CONFIG, config)
    reseal(folder, files.WEIGHTS, files.pack(tensors))
    message = refusal(folder)
    assert name in message
    assert files.WEIGHTS in message


def test_bfloat16_weights_are_refused(whole: dict[str, bytes], folder: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load(whole[files.WEIGHTS]).items()}
    reseal(folder, files.WEIGHTS, safetensors.torch.save(state))
    assert files.WEIGHTS in refusal(folder)


def test_weights_of_another_training_are_found(whole: dict[str, bytes], folder: Path) -> None:
    """The folder is sealed and every shape is right, yet these are not the tensors that config.json names."""
    tensors = files.unpack(whole[files.WEIGHTS], "weights")
    tensors["classifier.bias"][0] += 1
    reseal(folder, files.WEIGHTS, files.pack(tensors))
    message = refusal(folder)
    assert f"{files.WEIGHTS}: the tensor 'classifier.bias' is not the one that was saved" in message


def test_a_vocabulary_of_another_size_is_refused(whole: dict[str, bytes], folder: Path) -> None:
    other = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN, "film"), lowercase=True)
    reseal(folder, VOCABULARY, other.to_bytes())
    message = refusal(folder)
    assert "embedding.weight" in message
    assert VOCABULARY in message
    for data in (b"{}", b"[]", b"", b'{"tokens": 1}'):
        reseal(folder, VOCABULARY, data)
        assert VOCABULARY in refusal(folder)


NOT_A_STRING: list[Any] = [None, 3, True, ["lstm"], {"lstm": 1}]
NOT_A_SIZE: list[Any] = [None, "6", 6.0, True, [6], 0, -1, 10**7, 10**400]
# What a field of "network" must not hold.
WRONG_VALUES: dict[str, list[Any]] = {
    "task": [
        *NOT_A_STRING,
        "",
        "os.system",
        "../best",
        "http://example.org/x",
        "a\x1b[2J",
        "\ud800",
        "A" * 10**5,
    ],
    "labels": [
        *[
            None,
            "bad",
            3,
            {"bad": 0, "good": 1},
            [],
            ["bad"],
            ["bad", "bad", "good"],
            ["bad", 3],
            ["bad", None],
        ],
        *[["bad", ["good"]], ["bad", {"good": 1}], ["bad", ""], ["bad", "\ud800"], ["x" * 10**5] * 2],
    ],
    "cell": [*NOT_A_STRING, "", "LSTM", "Cell.LSTM", "os", "x" * 10**5],
    "pooling": [*NOT_A_STRING, "", "MAX", "softmax", "x" * 10**5],
    "bidirectional": [None, 0, 1, "true", []],
    "embedding_size": NOT_A_SIZE,
    "hidden_size": NOT_A_SIZE,
    "num_layers": [*NOT_A_SIZE, 1001],
    "max_length": [*NOT_A_SIZE[:-2], 10**10, 10**400],
}


@pytest.mark.parametrize("field", WRONG_VALUES)
def test_a_description_with_a_wrong_value_is_refused(
    whole: dict[str, bytes], folder: Path, field: str
) -> None:
    config = json.loads(whole[CONFIG])
    for value in WRONG_VALUES[field]:
        changed = {**config, "network": {**config["network"], field: value}}
        reseal(folder, CONFIG, json.dumps(changed).encode())
        message = refusal(folder)
        assert CONFIG in message
        assert f"{field} should " in message
        message.encode()  # a terminal can show it


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 10**6),
        ("embedding_size", 7),
        ("num_layers", 1000),
        ("num_layers", 1),
        ("cell", "lstm"),
        ("bidirectional", False),
        ("pooling", "mean-max"),
        ("labels", ["bad", "good"]),
    ],
)
def test_a_description_of_another_network_is_refused(
    whole: dict[str, bytes], folder: Path, field: str, value: Any
) -> None:
    config = json.loads(whole[CONFIG])
    assert config["network"][field] != value
    config["network"][field] = value
    reseal(folder, CONFIG, json.dumps(config).encode())
    assert CONFIG in refusal(folder)


def without(entries: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != name}


def test_a_config_with_other_fields_is_refused(whole: dict[str, bytes], folder: Path) -> None:
    config = json.loads(whole[CONFIG])
    network = config["network"]
    changed: list[Any] = [without(config, name) for name in config]
    changed += [{**config, "network": without(network, name)} for name in network]
    changed += [{**config, "url": "x"}, {**config, "network": {**network, "import": "os"}}]
    changed += [{**config, "network": other} for other in (None, [], {}, 3, "lstm", [["task", "x"]])]
    changed += [{**config, "tensor_sha256": other} for other in (None, [], {}, 3, "x", {"a": None})]
    changed += [[config], "config", None, 3]
    contents = [json.dumps(each).encode() for each in changed]
    text = whole[CONFIG].decode()
    contents += [b"", b"{", b"\xff", b"[" * 10**5, b'{"a":' * 10**5, b"\x80\x04K\x01.", b"import os\n"]
    contents += [text.replace('"task"', '"cell": "gru", "task"').encode()]  # one key twice
    contents += [
        text.replace('"hidden_size": 6', f'"hidden_size": {other}').encode() for other in ("NaN", "9" * 5000)
    ]
    for content in contents:
        assert content != whole[CONFIG]
        reseal(folder, CONFIG, content)
        message = refusal(folder)
        assert CONFIG in message or files.WEIGHTS in message  # a digest that config.json lacks


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None, [], "9" * 10**5])
def test_another_format_version_is_refused(whole: dict[str, bytes], folder: Path, version: Any) -> None:
    config = {**json.loads(whole[CONFIG]), "format_version": version, "unspool_version": "7.1"}
    reseal(folder, CONFIG, json.dumps(config).encode())
    message = refusal(folder)
    assert f"{CONFIG} is of a format that this unspool does not read" in message
    assert "'7.1'" in message
    config = {**json.loads(whole[CONFIG]), "format": "pickle"}
    reseal(folder, CONFIG, json.dumps(config).encode())
    assert "'pickle'" in refusal(folder)


def test_a_description_checks_itself() -> None:
    description = networks.build().model.description
    assert Description.from_config(json.loads(json.dumps(description.as_config()))) == description
    assert dataclasses.replace(description, cell=Cell.GRU, max_length=10**9).cell is Cell.GRU
    for change in ({"max_length": 0}, {"labels": ("good",)}, {"pooling": "sum"}, {"hidden_size": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} should"):
            dataclasses.replace(description, **change)  # type: ignore[arg-type]


def test_the_constructor_checks_the_tensors(built: networks.Built) -> None:
    model = built.model
    with pytest.raises(InputError, match=r"Missing: classifier\.bias.* Not known: none"):
        Model(model.description, model.vocabulary, without(files_of(built), "classifier.bias"))


def files_of(built: networks.Built) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in built.network.state_dict().items()}


AUDITED = """
    import json, sys
    import unspool
    folder = sys.argv[1]
    unspool.Model.load(folder).predict(["good"])    # so that all modules are there
    events = []
    sys.addaudithook(lambda name, given: events.append((name, str(given[0]) if given else "")))
    model = unspool.Model.load(folder)
    model.predict(["good"])
    seen = list(events)
    print(json.dumps(seen))
"""


def test_loading_opens_the_folder_and_does_nothing_else(whole: dict[str, bytes], folder: Path) -> None:
    """What Python's audit hooks see: no import, compile, exec or socket; names in the file stay names."""
    config = json.loads(whole[CONFIG])
    config["network"] |= {"task": "antigravity", "labels": ["antigravity", "os.system", "__import__('this')"]}
    reseal(folder, CONFIG, json.dumps(config).encode())
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDITED), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert {name for name, _ in seen} == {"open"}
    opened = {path for _, path in seen if not path.isdecimal()}  # a number is a file that is open already
    assert opened == {str(folder), files.MARKER, *whole}
