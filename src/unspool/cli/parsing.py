"""What the verbs do with a parser: eval, predict, inspect.  Without torch, and without a word printed."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unspool.cli.own_part import own_part
from unspool.data import conll, dependencies, tagged
from unspool.data.conll import Sentence
from unspool.kernels.contract import Gate
from unspool.metrics import ArcScore
from unspool.page import structures
from unspool.parser import TASK, Parser

_AT_ONCE = 64


def evaluate(model: Path, data: Path | None, *, quiet: bool) -> ArcScore:
    """Measure a parser on a file of trees, or on what its run was measured on."""
    loaded = Parser.load(model)
    sentences = _own(model, quiet) if data is None else dependencies.read(data)
    answers = loaded.predict([sentence.words for sentence in sentences])
    return ArcScore.of(answers, [dependencies.tree_of(sentence) for sentence in sentences])


def predict(model: Path, texts: Sequence[str], stdin: Iterable[bytes]) -> Iterator[str]:
    """Parse the texts, or the sentences of stdin as they come; the order is kept.

    Yields:
        Sentences as CoNLL-U.
    """
    loaded = Parser.load(model)
    coming: Iterator[Sentence]
    if texts:
        coming = (dependencies.as_sentence(text.split()) for text in texts)
    else:
        coming = conll.sentences(stdin, "stdin", "conllu", labelled=False)
    awaited = not texts and sys.stdin.isatty()
    while batch := list(itertools.islice(coming, 1 if awaited else _AT_ONCE)):
        answers = loaded.predict([sentence.words for sentence in batch])
        yield "".join(
            dependencies.with_tree(sentence, tree, tag_column=loaded.description.tag_column)
            for sentence, tree in zip(batch, answers, strict=True)
        )


def inspection(model: Path, text: str) -> dict[str, Any]:
    """A text's tree, how sure the parser is of each arc and relation, and the mean gates of each layer."""
    return structures.parsed(Parser.load(model), text)


def table(model: Path, text: str) -> str:
    """The same for people; of the gates, how much the top layer kept at each word."""
    found = inspection(model, text)
    words, heads = found["words"], found["heads"]
    kept = found["mean gates"][-1]
    gate = next((g.value for g in (Gate.FORGET, Gate.UPDATE) if g.value in kept["forward"]), None)
    names = ["ROOT", *words]
    rows = []
    for at, word in enumerate(words):
        likely = "  ".join(f"{arc['word']} {arc['share']:.1%}" for arc in found["arcs"][at])
        kinds = "  ".join(f"{name} {share:.1%}" for name, share in found["kinds"][at].items())
        rows.append(
            (
                f"{at + 1}",
                f"{word}{' ' if found['known'][at] else '*'}",
                *found["tags"][at : at + 1],
                f"{heads[at]} {names[heads[at]]}",
                found["relations"][at],
                likely,
                kinds,
                *((f"{kept[d][gate][at]:.2f}" for d in ("forward", "reverse")) if gate else ()),
            )
        )
    titles = [
        *("", "word", *(["tag"] if found["tags"] else []), "head", "relation", "likely heads"),
        *("likely relations", *([f"{gate} →", f"{gate} ←"] if gate else [])),
    ]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
    return "\n".join(
        [
            *lines,
            f"score of the tree {found['score']:.4f}; shares of each word's heads, and of relations to the "
            "head chosen; * a word unknown but for its letters",
        ]
    )


def _own(model: Path, quiet: bool) -> list[Sentence]:
    """What the run of this model folder was measured on."""
    return own_part(
        model,
        TASK,
        ("skip_bad",),
        read=lambda record, part: dependencies.read(record[part], skip_bad=record["skip_bad"], quiet=quiet),
        hold_out=tagged.hold_out,
        benchmark=lambda record: (
            tagged.benchmark(
                record["data"], column="deprel", data_dir=record.get("data_dir"), quiet=quiet
            ).test
        ),
    )[1]
