"""What the verbs do with a tagger: eval, predict, inspect.  Without torch, and without a word printed."""

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unspool import crf, introspect
from unspool.cli.own_part import own_part
from unspool.data import conll, tagged
from unspool.data.conll import Format, Sentence
from unspool.metrics import Accuracy, SpanScore
from unspool.sentences import word_of
from unspool.tagger import TASK, Tagger

_AT_ONCE = 128


def evaluate(model: Path, data: Path | None, *, quiet: bool) -> SpanScore | Accuracy:
    """Measure a tagger on a file, or on what its run was measured on."""
    loaded = Tagger.load(model)
    d = loaded.description
    column = d.column if d.format == "conllu" else "upos"
    sentences = (
        _own(model, column, d.features, quiet)
        if data is None
        else conll.read(data, column=column, features=d.features)
    )
    answers = loaded.predict([sentence.given for sentence in sentences])
    gold = [sentence.labels for sentence in sentences]
    if d.scheme != "none":
        return SpanScore.of(answers, gold)
    words = [list(itertools.chain.from_iterable(part)) for part in (answers, gold)]
    return Accuracy.of(words[0], words[1], unit="words")


def name(found: SpanScore | Accuracy) -> str:
    """The metric's name."""
    return "accuracy" if isinstance(found, Accuracy) else "F1"


def predict(model: Path, texts: Sequence[str], stdin: Iterable[bytes]) -> Iterator[str]:
    """Label the texts, or the sentences of stdin as they come; the order is kept.

    Yields:
        Sentences as their format has them, or for texts a word, its other columns and its label a line.
    """
    loaded = Tagger.load(model)
    d = loaded.description
    if texts:
        cut = [loaded.cut(text) for text in texts]
        for words, labels in zip(cut, loaded.predict(cut), strict=True):
            lines = [
                "\t".join((word, label) if isinstance(word, str) else (*word, label))
                for word, label in zip(words, labels, strict=True)
            ]
            yield "\n".join([*lines, "", ""])
        return
    format: Format = "conllu" if d.format == "conllu" else "columns"
    column = d.column if format == "conllu" else "upos"
    coming = conll.sentences(stdin, "stdin", format, column=column, features=d.features, labelled=False)
    while batch := list(itertools.islice(coming, 1 if sys.stdin.isatty() else _AT_ONCE)):
        answers = loaded.predict([sentence.given for sentence in batch])
        yield "".join(
            conll.with_labels(sentence, labels, format, column=column)
            for sentence, labels in zip(batch, answers, strict=True)
        )


def details(model: Tagger, text: str, at: int) -> tuple[dict[str, Any], str]:
    """What an inspection says besides, for programs and for people: each word's three likeliest labels."""
    cut = model.cut(text)
    words = [word_of(word) for word in cut]
    (labels,) = model.predict([cut])
    encoded = model.encode([cut])
    likely = crf.marginals(model.emissions(encoded), encoded.lengths, model.chain)[:, 0]
    known = model.tables.words.known([word.lower() for word in words])
    three = [
        {model.description.labels[k]: round(float(row[k]), 6) for k in row.argsort()[::-1][:3]}
        for row in likely
    ]
    width, wide = max(map(len, words)), max(map(len, labels))
    lines = [
        f"  {word:<{width}}{' ' if there else '*'} {label:<{wide}}  "
        + "  ".join(f"{name} {share:.1%}" for name, share in shares.items())
        for word, there, label, shares in zip(words, known, labels, three, strict=True)
    ]
    told = "probabilities over all labellings of the sentence; * a word unknown but for its letters"
    return {"labels": labels, "likely": three, "at": at}, "\n".join([*lines, told])


def as_answer(moved: introspect.Contributions, at: int) -> introspect.Contributions:
    """What moved a label, for a picture whose heading is to say which word's."""
    return dataclasses.replace(moved, label=f"{moved.words[at]!r}: {moved.label}")


def _own(model: Path, column: str, features: Sequence[str], quiet: bool) -> list[Sentence]:
    """What the run of this model folder was measured on."""
    return own_part(
        model,
        TASK,
        ("skip_bad",),
        read=lambda record, part: tagged.read(
            record[part], column=column, features=features, skip_bad=record["skip_bad"], quiet=quiet
        ),
        hold_out=tagged.hold_out,
        benchmark=lambda record: (
            tagged.benchmark(
                record["data"],
                column=column,
                features=features,
                data_dir=record.get("data_dir"),
                quiet=quiet,
            ).test
        ),
    )[1]
