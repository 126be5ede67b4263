"""A parser's tree and a translator's attention on the page: the same numbers as the models themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unspool import Parser, Translator, files, introspect, parser, translator
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate
from unspool.page import saved
from unspool.page.answers import Answers
from unspool.page.opened import Opened, of_folder
from unspool.sentences import Tables
from unspool.translator import Side
from unspool.vocabulary import Vocabulary

WORDS = ["the", "cat", "sees", "a", "dog"]
TEXT = "the cat sees Whiskers"


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    chance = np.random.default_rng(1)
    return {name: chance.normal(0, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}


def the_parser(cell: Cell = Cell.LSTM) -> Parser:
    letters = Vocabulary.build([list("abcdefghijklmnopqrstuvwxyz")], lowercase=False)
    tables = Tables(Vocabulary.build([WORDS], lowercase=True), letters, Vocabulary.build([], lowercase=True))
    relations, tags = ("root", "nsubj", "obj", "det"), ("NOUN", "VERB")
    d = parser.Description(
        parser.TASK, relations, "root", "upos", tags, cell, 6, 0, 5, 4, 7, 2, arc_size=9, relation_size=8
    )
    return Parser(d, tables, drawn(parser.shapes(d, tables)))


def the_translator(cell: Cell = Cell.LSTM) -> Translator:
    source = Side.learn("words", [TEXT, "a dog"], size=0, min_count=1, lowercase=True)
    target = Side.learn("characters", ["eine katze sieht"], size=0, min_count=1, lowercase=True)
    d = translator.Description(
        translator.TASK, "words", "characters", "bleu", cell, 6, 7, 2, "general", False, True
    )
    return Translator(d, source, target, drawn(translator.shapes(d, len(source.table), len(target.table))))


def page_of(network: Parser | Translator) -> Answers:
    return Answers({"it": Opened("it", network, None, "")}, {}, ["the dog sees", "a cat"], Path())


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_TANH])
def test_a_parsers_tree_and_gates_are_its_own(cell: Cell) -> None:
    network = the_parser(cell)
    told = page_of(network).ask("sentence", {"text": TEXT, "quantity": "h"})
    tree, (found,) = told["tree"], network.predict([TEXT.split()])
    assert (tree["heads"], tree["relations"]) == (list(found.heads), list(found.relations))
    assert tree["tags"] == list(found.tags)
    (scored,) = network.scored(network.encode([TEXT.split()]))
    for t, (head, likely) in enumerate(zip(found.heads, tree["arcs"], strict=True)):
        others = np.delete(scored.arcs[t].astype(np.float64), t + 1)  # no word is its own head
        shares = np.exp(others) / np.exp(others).sum()
        for arc in likely:
            assert arc["score"] == pytest.approx(float(scored.arcs[t, arc["head"]]), rel=1e-4)
        assert likely[0]["share"] == pytest.approx(shares.max(), abs=2e-6)
        assert tree["shares"][t] == pytest.approx(shares[head - (head > t + 1)], abs=2e-6)
    assert told["prediction"]["label"] == TEXT.split()[found.heads.index(0)]
    recording = introspect.record(network, TEXT)
    assert told["known"] == list(recording.known) == [True, True, True, False]
    # What the tree was read from is what is drawn.
    states = network.reader.read(network.encode([TEXT.split()]))
    top = np.concatenate([recording.hidden(direction=d) for d in (0, 1)], 1)
    np.testing.assert_allclose(top, states[:, 0], rtol=1e-6)
    np.testing.assert_allclose(told["maps"][1], recording.hidden(direction=1), rtol=1e-6)


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU])
def test_a_translators_output_attention_and_encoder_are_its_own(cell: Cell) -> None:
    network = the_translator(cell)
    told = page_of(network).ask("sentence", {"text": f"  {TEXT} ", "quantity": "h"})
    (found,) = network.translate([TEXT])
    made = told["translation"]
    assert (made["text"], told["prediction"]["label"]) == (found.text, found.text)
    assert (made["source"], made["target"]) == (list(found.source), list(found.target))
    np.testing.assert_allclose(made["attention"], found.attention, atol=1e-6)
    assert told["words"] == [*TEXT.lower().split(), "</s>"]
    memory = network.read(network.encode([TEXT]))
    recording = introspect.record(network, TEXT)
    top = np.concatenate([recording.hidden(direction=d) for d in (0, 1)], 1)
    np.testing.assert_allclose(top, memory.looked.places[:, 0], rtol=1e-6)
    np.testing.assert_allclose(told["maps"][0], recording.hidden(), rtol=1e-6)


@pytest.mark.parametrize("network", [the_parser(), the_translator()], ids=["parser", "translator"])
def test_every_view_has_them(network: Parser | Translator, tmp_path: Path) -> None:
    page, words = page_of(network), len(introspect.record(network, TEXT).words)
    step = page.ask("step", {"text": TEXT, "at": 2, "direction": 1})
    gate = introspect.record(network, TEXT).gate(Gate.FORGET, direction=1)[2]
    np.testing.assert_allclose(step["gates"]["forget"]["value"], gate, rtol=1e-6)
    assert len(page.ask("reach", {"text": TEXT})["hidden"]) == words
    assert page.ask("search", {"text": TEXT, "last": 0})["texts"] == 2
    told = page.ask("sentence", {"text": TEXT, "against": "the dog sees Whiskers"})
    assert told["changed"] == [1]
    key = "tree" if isinstance(network, Parser) else "translation"
    assert told[key] != told["against"][key]
    model = page.ask("model", {})
    assert model["kind"] == type(network).__name__.lower()
    assert model["parameters"] == sum(array.size for array in network._tensors.values())
    with pytest.raises(InputError, match="no one margin"):
        page.ask("contributions", {"text": TEXT})
    with pytest.raises(InputError, match="no words"):
        page.ask("sentence", {"text": " "})
    with pytest.raises(InputError, match=r"too long to be shown(.|\n)*(400|200) words"):
        page.ask("sentence", {"text": "a " * 401})
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.html").write_text("<html><head></head><body></body></html>")
    assert f'"{key}"' in saved.html(Opened("it", network, None, ""), TEXT, static)


def test_a_translators_decoder_is_counted_beside_its_encoder() -> None:
    network = the_translator()
    told = page_of(network).ask("model", {})
    assert [layer["directions"] for layer in told["layers"]] == [2, 2]
    assert [layer["input_size"] for layer in told["decoder"]] == [12, 7]  # with what was read out before


def test_folders_of_both_are_opened_by_path_and_when_dropped(tmp_path: Path) -> None:
    for name, network in (("p", the_parser()), ("t", the_translator())):
        place = tmp_path / name
        parts = {"README.md": b"# drawn\n"} | _parts(network)
        files.write_folder(place, parts)
        opened = of_folder(place)
        assert type(opened.network) is type(network)
        page = Answers({}, {}, [], tmp_path)
        which = page.open({path.name: path.read_bytes() for path in place.iterdir()})["which"]
        told = page.ask("sentence", {"which": which, "text": TEXT})
        assert told["prediction"] == page_of(network).ask("sentence", {"text": TEXT})["prediction"]


def _parts(network: Parser | Translator) -> dict[str, bytes]:
    tables: dict[str, Vocabulary]
    if isinstance(network, Parser):
        t = network.tables
        tables = {"vocab.json": t.words, "letters.json": t.letters, "vectors.json": t.vectors}
    else:
        tables = {"vocab.json": network.source.table, translator.TARGET: network.target.table}
        tables |= {translator.SOURCE_MERGES: network.source.merges}
        tables |= {translator.TARGET_MERGES: network.target.merges}
    config = parser.serving.config_text(network.description.as_config(), dict(network._tensors), "0")
    return {
        "config.json": config,
        files.WEIGHTS: files.pack(dict(network._tensors)),
        **{name: table.to_bytes() for name, table in tables.items()},
    }
