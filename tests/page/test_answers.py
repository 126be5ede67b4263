"""What the page is told: the numbers of `introspect`, in strict JSON; and bad questions refused in words."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import networks
from unspool import LanguageModel, Tagger, files, introspect, language, nn, tagger, training
from unspool.errors import InputError, ModelFileError
from unspool.kernels.contract import Cell, Gate
from unspool.model import Model
from unspool.page import example, runs
from unspool.page import opened as opened_module
from unspool.page.answers import MOST_WORDS, Answers
from unspool.page.opened import Opened, of_path
from unspool.page.paths import paths
from unspool.recipes import language_model, reader, tagging
from unspool.sentences import Tables
from unspool.vocabulary import Vocabulary

TEXT = "the film was not good ."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answers(cache: Path) -> Answers:
    return Answers({}, {}, [], cache)


def test_the_examples_learn_what_but_and_not_do(answers: Answers, cache: Path) -> None:
    for cell, least in ((Cell.LSTM, 0.98), (Cell.GRU, 0.98), (Cell.RNN_TANH, 0.8)):
        folder = example.folder(cell, cache)
        model = Model.load(folder / "best")
        held = example.sentences(300, seed=9)
        told = model.predict([text for text, _ in held])
        right = [one["label"] == example.LABELS[label] for one, (_, label) in zip(told, held, strict=True)]
        assert np.mean(right) >= least, cell
        assert example.folder(cell, cache) == folder  # and is not trained again


def test_the_numbers_are_introspects(answers: Answers, cache: Path) -> None:
    model = Model.load(example.folder(Cell.LSTM, cache) / "best")
    recording = introspect.record(model, TEXT)
    told = answers.ask("sentence", {"text": TEXT, "quantity": "f"})
    for d in (0, 1):
        want = recording.gate(Gate.FORGET, direction=d)
        np.testing.assert_allclose(told["maps"][d], want, rtol=1e-6)
        np.testing.assert_allclose(told["means"][d], want.mean(1), rtol=1e-6)
    assert told["prediction"] == model.predict([TEXT])[0]
    cell = answers.ask("sentence", {"text": TEXT, "quantity": "c"})
    np.testing.assert_allclose(cell["maps"][1], recording.cell_state(direction=1), rtol=1e-6)
    moved = introspect.contributions(model, TEXT, steps=64)
    np.testing.assert_allclose(
        answers.ask("contributions", {"text": TEXT})["values"], moved.values, rtol=1e-6
    )
    step = answers.ask("step", {"text": TEXT, "at": 3})
    np.testing.assert_allclose(step["hidden"], recording.hidden()[3], rtol=1e-6)
    np.testing.assert_allclose(step["gates"]["forget"]["value"], recording.gate(Gate.FORGET)[3], rtol=1e-6)
    np.testing.assert_allclose(np.add(step["kept"], step["written"]), step["cell_state"], atol=1e-5)
    reach = answers.ask("reach", {"text": TEXT, "at": 4})
    assert len(reach["hidden"]) == len(recording.words) == 6
    assert reach["hidden"][5] == 0 < reach["hidden"][4]


def test_two_texts_are_compared_word_by_word(answers: Answers) -> None:
    told = answers.ask("sentence", {"text": TEXT, "against": "the film was very good ."})
    assert told["changed"] == [3]
    difference = np.subtract(told["maps"][0], told["against"]["maps"][0])
    np.testing.assert_allclose(told["differences"][0], difference, atol=1e-6)
    assert not difference[:3].any()
    assert difference[3:].any()
    assert told["prediction"]["label"] != told["against"]["prediction"]["label"]


def test_a_planted_place_is_found(answers: Answers) -> None:
    corpus = "\n".join([*example.corpus()[:20], TEXT, "it is dull ."])
    told = answers.ask(
        "search", {"text": TEXT, "unit": 3, "first": 3, "last": 4, "quantity": "c", "corpus": corpus}
    )
    assert told["texts"] == 22
    assert any(one["text"] == 20 and one["first"] <= 3 and one["last"] >= 4 for one in told["found"])
    sign = 1 if told["above"] else -1
    assert all(sign * one["mean"] >= sign * told["bound"] - 1e-6 for one in told["found"])


def test_the_scale_turns_vanishing_into_exploding_by_its_power() -> None:
    for scale, verdict in ((0.5, "vanishes"), (1.0, "stays"), (1.3, "explodes"), (1.6, "explodes")):
        told = paths(scale=scale, keep=1.0, steps=40, clip=1.0, relu=True, seed=0)["cells"]["rnn"]
        assert told["verdict"] == verdict
        np.testing.assert_allclose(told["by_lag"], told["by_lag"][0] * scale ** np.arange(40.0), rtol=1e-9)
        assert told["clipped"] == pytest.approx(min(1, 1 / told["norm"]))
        assert told["growing"][-1] == pytest.approx(told["norm"])
    kept = paths(scale=0.9, keep=6.0, steps=40, clip=1.0, relu=True, seed=0)["cells"]
    lost = paths(scale=0.9, keep=-2.0, steps=40, clip=1.0, relu=True, seed=0)["cells"]
    for cell in ("lstm", "gru"):
        assert kept[cell]["ratio"] > 0.5
        assert lost[cell]["verdict"] == "vanishes"


def test_every_answer_is_strict_json_and_described(answers: Answers) -> None:
    described = answers.openapi()
    assert set(described["paths"]) >= {f"/api/{name}" for name in answers.questions}
    for name in answers.questions:
        asked = {"text": TEXT} if "text" in answers.questions[name].arguments else {}
        for which in ("example-lstm", "example-gru", "example-rnn_tanh"):
            given = asked | ({"which": which} if "which" in answers.questions[name].arguments else {})
            json.dumps(answers.ask(name, given), allow_nan=False)
    hostile = '<script>alert(1)</script> \x1b[2J "\\ \u202e'
    assert json.loads(json.dumps(answers.ask("sentence", {"text": hostile})))["words"][0].startswith("<")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("sentence", {}, "no words"),
        ("sentence", {"text": "   "}, "no words"),
        ("sentence", {"text": "a " * (MOST_WORDS + 1)}, "too long"),
        ("sentence", {"text": 5}, "text does not fit"),
        ("sentence", {"text": "\ud800"}, "text does not fit"),
        ("sentence", {"text": TEXT, "layer": 1}, "no layer 1"),
        ("sentence", {"text": TEXT, "quantity": "z"}, "no 'z'"),
        ("sentence", {"text": TEXT, "which": "../../etc"}, "nothing is open"),
        ("sentence", {"words": TEXT}, "takes no words"),
        ("step", {"text": TEXT, "at": 6}, "no step"),
        ("paths", {"scale": float("nan")}, "scale does not fit"),
        ("paths", {"steps": 10**9}, "steps does not fit"),
        ("paths", {"steps": True}, "steps does not fit"),
        ("search", {"text": TEXT, "unit": 16}, "no unit 16"),
        ("search", {"text": TEXT, "corpus": "good\n" * 2001}, r"too many texts(.|\n)*2,001"),
        ("search", {"text": TEXT, "corpus": "good\n" + "a " * (MOST_WORDS + 1)}, "too long to be shown"),
        ("training", {"run": "../.."}, "nothing is open"),
        ("secrets", {}, "no question"),
    ],
)
def test_a_bad_question_is_refused_in_words(
    answers: Answers, name: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        answers.ask(name, given)


def test_what_is_dropped_is_opened_or_refused_in_words(answers: Answers, tmp_path: Path) -> None:
    built = networks.build("gru", 2)
    which = answers.open(networks.parts(built) | {files.MARKER: _marker(tmp_path, networks.parts(built))})
    told = answers.ask("model", {"which": which["which"]})
    assert told["cell"] == "GRU"
    assert told["kind"] == "classifier"
    layers = [name for name in built.model.tensors if name.startswith("layers.0.")]
    # torch keeps two biases a gate, which are one
    per_layer = sum(built.model.tensors[n].size for n in layers if "bias_hh" not in n)
    assert told["layers"][0]["parameters"] == per_layer + 2 * 6
    recording = introspect.record(built.model, TEXT)
    recording.save(tmp_path / "r.safetensors")
    data = (tmp_path / "r.safetensors").read_bytes()
    which = answers.open({"r.safetensors": data})
    told = answers.ask("sentence", {"which": which["which"], "quantity": "u"})
    np.testing.assert_allclose(told["maps"][0], recording.gate(Gate.UPDATE), rtol=1e-6)
    assert told["prediction"] is None
    with pytest.raises(InputError, match="no weights"):
        answers.ask("step", {"which": which["which"], "text": TEXT})
    tensors, about = files.unseal("recording", 1, tmp_path / "r.safetensors")
    with pytest.raises(ModelFileError, match="version 2"):
        answers.open(
            {
                "r.safetensors": files.seal(
                    "recording", 2, tensors, {k: about[k] for k in ("cell", "words", "known")}
                )
            }
        )
    for parts in (
        {"notes.txt": b"no recording"},
        {"../../evil": b"x" * 100},
        {"config.json": b"{}", "evil.py": b""},
        {"config.json": b"{}", "model.safetensors": b""},
        {"r.safetensors": data[:-7]},
        {"r.safetensors": data[:40] + b"\x00" + data[41:]},
        {},
    ):
        with pytest.raises(ModelFileError) as refused:
            answers.open(parts)
        assert "Fix:" in str(refused.value)
        assert "/tmp" not in str(refused.value)


def _marker(folder: Path, parts: dict[str, bytes]) -> bytes:
    files.write_folder(folder / "m", parts)
    return (folder / "m" / files.MARKER).read_bytes()


def test_a_failure_report_opens_where_it_points(answers: Answers, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(2, 4, 2), torch.randn(9, 2, 2)
    x[6, 1, 0] = torch.nan
    with introspect.capture(layer) as taken, torch.no_grad():
        layer(x)
    taken.save(tmp_path / "fault.safetensors")
    told = answers.open({"fault.safetensors": (tmp_path / "fault.safetensors").read_bytes()})
    fault = introspect.locate_captured(layer, taken)
    assert fault is not None
    assert told["fault"] == fault.title()
    assert (told["shows"]["layer"], told["shows"]["at"]) == (fault.layer, fault.step) == (0, 6)
    heat = answers.ask("sentence", {"which": told["which"], "layer": 1})
    assert heat["maps"][0][8][0] is None  # what is no number stays none
    assert "infinity" not in json.dumps(heat).lower()
    opened, run, _ = of_path(tmp_path / "fault.safetensors")
    assert opened["fault.safetensors"].fault is not None
    assert run == {}


def the_tagger(labels: tuple[str, ...] = ("A", "B", "C")) -> Tagger:
    torch.manual_seed(3)
    known = Vocabulary.build([["the", "cat", "sat"]], lowercase=True)
    letters = Vocabulary.build([list("abcdefghijklmnopqrstuvwxyz")], lowercase=False)
    config = tagging.Config(num_layers=2, hidden_size=12, word_size=6, letter_size=5, letter_hidden_size=4)
    tables = Tables(known, letters, Vocabulary.build([], lowercase=True))
    network = tagging.Network(config, reader.Words(tables, np.zeros((2, 0), np.float32)), len(labels))
    cell = Cell(config.cell)
    d = tagger.Description(tagger.TASK, labels, "none", "columns", "label", cell, 6, 0, 8, 5, 4, 12, 2)
    return Tagger(d, tables, training.weights(network))


def the_language_model() -> LanguageModel:
    torch.manual_seed(3)
    config = language_model.Config(num_layers=2, hidden_size=12, embedding_size=6)
    known = Vocabulary.build([[chr(97 + i)] for i in range(26)], lowercase=False)
    network = language_model.Network(config, len(known))
    d = language.Description(language.TASK, "characters", Cell(config.cell), 6, 12, 2, 0)
    return LanguageModel(d, known, training.weights(network))


@pytest.mark.parametrize(
    ("network", "kind"), [(the_tagger(), "tagger"), (the_language_model(), "language model")]
)
def test_taggers_and_language_models_are_shown_too(
    network: Tagger | LanguageModel, kind: str, tmp_path: Path
) -> None:
    page = Answers({"it": Opened("it", network, None, "")}, {}, ["the dog sat"], tmp_path)
    text = "the cat sat"
    recording = introspect.record(network, text)
    told = page.ask("model", {})
    assert told["kind"] == kind
    assert told["parameters"] > sum(layer["parameters"] for layer in told["layers"]) > 0
    assert [layer["hidden_size"] for layer in told["layers"]] == [12, 12]
    heat = page.ask("sentence", {"text": text, "quantity": "h"})
    assert heat["words"] == list(recording.words)
    np.testing.assert_allclose(
        heat["maps"][-1], recording.hidden(direction=recording.directions - 1), rtol=1e-6
    )
    step = page.ask("step", {"text": text, "at": 1, "layer": 0})
    np.testing.assert_allclose(step["hidden"], recording.hidden(layer=0)[1], rtol=1e-6)
    z = np.array(step["gates"]["candidate"]["preactivation"])
    np.testing.assert_allclose(np.tanh(z), step["gates"]["candidate"]["value"], atol=1e-5)
    for name in ("contributions", "reach"):
        assert len(page.ask(name, {"text": text})["words"]) == len(recording.words)
    assert page.ask("search", {"text": text, "last": 0})["texts"] == 1
    if isinstance(network, Tagger):
        assert heat["prediction"]["labels"] == network.predict([text.split()])[0]
    else:
        logs, _ = network.run(network.encode([text]).tokens[0])
        assert heat["prediction"]["score"] == pytest.approx(float(np.exp(logs[-1].max())), rel=1e-5)
        np.testing.assert_allclose(heat["surprisal"][1:], network.surprisal(text), rtol=1e-6)
    with pytest.raises(InputError, match="Fix:"):
        page.ask("sentence", {"text": ""})


def test_a_tagger_of_one_label_is_certain(tmp_path: Path) -> None:
    page = Answers({"it": Opened("it", the_tagger(("A",)), None, "")}, {}, [], tmp_path)
    told = page.ask("sentence", {"text": "the cat"})["prediction"]
    assert (told["label"], told["score"], told["labels"]) == ("the: A", 1.0, ["A", "A"])


def test_what_is_dropped_pushes_out_only_what_was_dropped(tmp_path: Path) -> None:
    built = networks.build("gru", 2)
    parts = networks.parts(built)
    parts |= {files.MARKER: _marker(tmp_path, parts)}
    named = {f"dropped-{k}": Opened(f"a folder's name, {k}", built.model, None, "") for k in (1, 2)}
    page = Answers(named, {}, [], tmp_path)
    for _ in range(6):
        newest = page.open(parts)["which"]
    shown = {thing["id"]: thing["title"] for thing in page.ask("things", {})["things"]}
    for key, opened in named.items():
        assert shown[key] == page.ask("model", {"which": key})["title"] == opened.title
    assert page.ask("model", {"which": newest})["title"] == "dropped model"
    assert sum(title == "dropped model" for title in shown.values()) == 4


def test_what_is_dropped_while_the_list_is_made_does_not_end_it(tmp_path: Path) -> None:
    parts = networks.parts(networks.build("gru", 2))
    parts |= {files.MARKER: _marker(tmp_path, parts)}

    class Late(Opened):
        @property
        def title(self) -> str:  # type: ignore[override]
            return f"beside {page.open(parts)['which']}"

    page = Answers({"late": Late("", None, None, "")}, {}, [], tmp_path)
    assert page.ask("things", {})["things"][0]["title"] == "beside dropped-1"


def test_a_long_text_is_refused_by_what_the_model_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Answers({"it": Opened("it", the_language_model(), None, "")}, {}, [], tmp_path)
    assert len(page.ask("reach", {"text": "a" * 300})["words"]) == 300
    with pytest.raises(InputError, match="too long to be shown"):
        page.ask("sentence", {"text": "a" * (MOST_WORDS + 1)})  # one word, as many units as characters
    monkeypatch.setattr("unspool.page.answers.MOST_NUMBERS", 120)
    assert len(page.ask("sentence", {"text": "a" * 10})["words"]) == 10
    with pytest.raises(InputError, match=r"too long for so many units(.|\n)*a text of 10 words"):
        page.ask("sentence", {"text": "a" * 11})
    assert len(page.ask("sentence", {"text": "aaa", "against": "aab"})["differences"][0]) == 3
    assert "differences" not in page.ask("sentence", {"text": "a" * 6, "against": "b" * 4})
    for text, against in (("a" * 4, "b" * 4), ("a" * 8, "b" * 3)):  # with what the two differ by
        with pytest.raises(InputError, match=r"a text of 3 words, and another of as many"):
            page.ask("sentence", {"text": text, "against": against})


def test_a_path_is_opened_with_the_runs_beside_it(cache: Path, tmp_path: Path) -> None:
    run, *_ = (example.folder(cell, cache) for cell in (Cell.LSTM, Cell.GRU, Cell.RNN_TANH))
    for path in (run, run / "best"):
        models, found, _ = of_path(path)
        assert [one.where for one in models.values()] == [str(run / "best")]
        assert next(iter(found)) == run.name
        assert len(found) == 3
    models, found, _ = of_path(run.parent)
    assert len(models) == len(found) == 3
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    assert of_path(begun) == ({}, {"begun": begun.resolve()}, [])
    with pytest.raises(ModelFileError, match="nothing to look at"):
        of_path(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no recording")
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        of_path(tmp_path / "notes.txt")


def test_what_cannot_be_shown_of_runs_is_said_and_the_rest_is_shown(cache: Path, tmp_path: Path) -> None:
    sound = example.folder(Cell.LSTM, cache)
    for name in ("a-damaged", "b-damaged", "c-sound"):
        shutil.copytree(sound, tmp_path / name)
    weights = tmp_path / "a-damaged" / "best" / files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    config = tmp_path / "b-damaged" / "best" / "config.json"
    config.write_text(config.read_text().replace('"sentiment"', '"parsing"'))
    models, found, left_out = of_path(tmp_path)
    assert (list(models), list(found)) == (["c-sound/best"], ["a-damaged", "b-damaged", "c-sound"])
    assert [said.partition(" is left out: ")[0] for said in left_out] == ["a-damaged/best", "b-damaged/best"]
    assert "config.json" in left_out[1]
    for name, said in zip(("a-damaged", "b-damaged"), left_out, strict=True):
        one = of_path(tmp_path / name)  # the same as among others
        assert (one.models, next(iter(one.runs)), one.left_out) == ({}, name, [said])
        (tmp_path / name / "metrics.jsonl").unlink()
        with pytest.raises(ModelFileError, match="Fix:"):
            of_path(tmp_path / name)  # nothing of it can be shown
    for k in range(opened_module._MOST_BESIDE):
        (tmp_path / f"d{k:03}").mkdir()
    assert any(said.startswith("3 of 203 entries") for said in of_path(tmp_path).left_out)
    assert any(said.startswith("3 of 203 entries") for said in of_path(tmp_path / "c-sound").left_out)


def test_a_run_that_is_being_written_is_read_on(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert runs.read(tmp_path)["next"] == 0
    lines = [json.dumps({"step": k, "loss": 1 / (k + 1)}) + "\n" for k in range(5)]
    log.write_text("".join(lines[:2]) + lines[2][:7])
    first = runs.read(tmp_path)
    assert [record["step"] for record in first["losses"]] == [0, 1]
    log.write_text(
        "".join(lines) + '{"epoch": 1, "step": 5, "train_loss": 1.0, "dev_loss": 2.0, "accuracy": 0.5}\n'
    )
    then = runs.read(tmp_path, first["next"])
    assert [record["step"] for record in then["losses"]] == [2, 3, 4]
    assert then["epochs"][0]["accuracy"] == 0.5
    assert then["metric"] == "accuracy"
    assert runs.read(tmp_path, then["next"])["losses"] == []
    log.write_text(lines[0])
    again = runs.read(tmp_path, then["next"])
    assert [record["step"] for record in again["losses"]] == [0]
    assert again["next"] == len(lines[0])
    strange = ['"epoch"', '["epoch"]', '{"monitor": {"l/exploded": 1}}', '{"loss": 1}', '{"epoch": 1}']
    strange += [f'{{"step": 1, "monitor": {{"l/exploded": 1{"0" * 400}}}}}', "[" * 100_000]
    log.write_text("\n".join(strange) + "\n")
    told = runs.read(tmp_path)
    assert not any(told[name] for name in ("epochs", "losses", "monitor", "warnings"))
    log.write_text("no json\n[1]\n" + lines[1])
    assert [record["step"] for record in runs.read(tmp_path)["losses"]] == [1]
