"""The page in one file: what is put in stays data, and without the built page it says how to build it."""

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import networks
from unspool import introspect
from unspool.errors import ConfigError, InputError
from unspool.kernels.contract import Cell, Gate
from unspool.model import Model
from unspool.page import example, saved
from unspool.page.answers import Answers
from unspool.page.opened import Opened

BUILT = """<!doctype html>
<html><head><title>unspool</title>
<link rel="icon" href="./icon.svg" /><script type="module" crossorigin src="./assets/a.js"></script>
<link rel="stylesheet" crossorigin href="./assets/a.css">
</head><body><div id="page"></div></body></html>"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return example.train(Cell.LSTM, tmp_path_factory.mktemp("example"))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text(BUILT)
    (tmp_path / "assets" / "a.js").write_text('const end = "</script>";')
    (tmp_path / "assets" / "a.css").write_text("p{color:red}")
    return tmp_path


def test_the_file_holds_what_introspect_measures(network: Model, built: Path) -> None:
    text = "the film was not good </script><script>alert(1)</script> ."

    written = saved.html(Opened("a model", network, None, ""), text, built)

    assert written.count("<script") == 2
    assert written.count("</script") == 2
    assert "<style>p{color:red}</style>" in written
    assert "unsafe-inline" not in written  # only these very texts may run or be applied
    for kind, text_of in (("script", r'type="module">(.*?)</script>'), ("style", r"<style>(.*?)</style>")):
        (inside,) = re.findall(text_of, written, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in written
    assert "src=" not in written
    assert "href=" not in written
    found = re.search(r'id="kept">(.*?)</script>', written, re.DOTALL)
    assert found is not None
    kept = json.loads(found[1])
    assert kept["things"][0][1]["text"] == text
    forget = next(answer for given, answer in kept["sentence"] if given == {"layer": 0, "quantity": "f"})
    recording = introspect.record(network, text)
    for direction in (0, 1):
        expected = recording.gate(Gate.FORGET, direction=direction)
        np.testing.assert_allclose(forget["maps"][direction], expected, rtol=1e-6)
    assert {cell["verdict"] for _, answer in kept["paths"] for cell in answer["cells"].values()} >= {
        "vanishes",
        "explodes",
    }


def test_what_reaches_a_word_is_kept_for_every_layer(tmp_path: Path) -> None:
    network = networks.build("lstm", 2).model
    page, text = Answers({"it": Opened("it", network, None, "")}, {}, [], tmp_path), "the film was good"

    kept = saved._kept(Opened("it", network, None, ""), text)

    found = {tuple(given.items()): answer for given, answer in kept["reach"]}
    directions = page.ask("model", {})["layers"][0]["directions"]
    for layer, at, d in itertools.product((0, 1), range(4), range(directions)):
        given = {"layer": layer, "at": at, "direction": d}
        assert found.pop(tuple(given.items())) == page.ask("reach", {"text": text, **given})
    assert not found
    assert kept["reach"][0][0]["layer"] == 1  # what a page asks for that says no layer


def test_what_the_small_layers_begin_with_is_kept(network: Model, tmp_path: Path) -> None:
    page = Answers({}, {}, [], tmp_path)

    kept = saved._kept(Opened("a model", network, None, ""), "good")

    begun = {key: argument.default for key, argument in page.questions["paths"].arguments.items()}
    assert [answer for given, answer in kept["paths"] if given == begun] == [page.ask("paths", {})]
    for key, slider in kept["grid"].items():
        stops = np.arange(slider["low"], slider["high"] + slider["step"] / 2, slider["step"])
        np.testing.assert_allclose(stops, sorted({given[key] for given, _ in kept["paths"]}), atol=1e-9)


def test_a_text_too_long_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "_SCALES", saved._SCALES[:2])
    network = Opened("it", networks.build("lstm", 2).model, None, "")
    kept = saved._kept(network, "good " * 8)
    values = sum(len(row) for _, s in kept["sentence"] for m in s["maps"] for row in m)
    values += sum(len(r[part]) for _, r in kept["reach"] for part in ("hidden", "cell", "cell_path"))
    monkeypatch.setattr(saved, "MOST_NUMBERS", values)
    assert saved._kept(network, "good " * 8)["reach"] == kept["reach"]
    monkeypatch.setattr(saved, "MOST_NUMBERS", values - 1)
    with pytest.raises(InputError, match=rf"one file(.|\n)*{values:,} numbers(.|\n)*a text of 7 words"):
        saved._kept(network, "good " * 8)


def test_a_page_that_is_not_built_is_said(network: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make page"):
        saved.html(Opened("a model", network, None, ""), "good", tmp_path)
