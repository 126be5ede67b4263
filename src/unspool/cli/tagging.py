"""What the verbs do with a tagger: eval, predict, inspect.  Without torch, and without a word printed."""

import itertools
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unspool import crf
from unspool.data import conll, tagged
from unspool.data.conll import Format, Sentence
from unspool.errors import ConfigError, DataError
from unspool.metrics import Accuracy, SpanScore
from unspool.tagger import Tagger

_AT_ONCE = 128


def evaluate(model: Path, data: Path | None, *, quiet: bool) -> SpanScore | Accuracy:
    """Measure a tagger on a file, or on what its run was measured on."""
    loaded = Tagger.load(model)
    d = loaded.description
    column = d.column if d.format == "conllu" else "upos"
    sentences = _own(model, column, quiet) if data is None else conll.read(data, column=column)
    answers = loaded.predict([sentence.words for sentence in sentences])
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
        Sentences as their format has them, or for texts a word and its label a line.
    """
    loaded = Tagger.load(model)
    d = loaded.description
    if texts:
        cut = [text.split() for text in texts]
        for words, labels in zip(cut, loaded.predict(cut), strict=True):
            yield "".join(f"{word}\t{label}\n" for word, label in zip(words, labels, strict=True)) + "\n"
        return
    format: Format = "conllu" if d.format == "conllu" else "columns"
    column = d.column if format == "conllu" else "upos"
    coming = conll.sentences(stdin, "stdin", format, column=column, labelled=False)
    while batch := list(itertools.islice(coming, 1 if sys.stdin.isatty() else _AT_ONCE)):
        answers = loaded.predict([sentence.words for sentence in batch])
        yield "".join(
            conll.with_labels(sentence, labels, format, column=column)
            for sentence, labels in zip(batch, answers, strict=True)
        )


def inspection(model: Path, text: str) -> dict[str, Any]:
    """The labels of a text's words, and how sure the tagger is of each: the three likeliest labels."""
    loaded = Tagger.load(model)
    words = text.split()
    (labels,) = loaded.predict([words])
    encoded = loaded.encode([words])
    likely = crf.marginals(loaded.emissions(encoded), encoded.lengths, loaded.chain)[:, 0]
    known = loaded.vocabulary.known([word.lower() for word in words])
    return {
        "words": words,
        "known": [bool(k) for k in known],
        "labels": labels,
        "likely": [
            {loaded.description.labels[k]: round(float(row[k]), 6) for k in row.argsort()[::-1][:3]}
            for row in likely
        ],
    }


def table(model: Path, text: str) -> str:
    """The same for people."""
    found = inspection(model, text)
    width = max((len(word) for word in found["words"]), default=0)
    wide = max((len(label) for label in found["labels"]), default=0)
    lines = []
    for word, known, label, likely in zip(
        *(found[k] for k in ("words", "known", "labels", "likely")), strict=True
    ):
        others = "  ".join(f"{name} {share:.1%}" for name, share in likely.items())
        lines.append(f"  {word:<{width}}{' ' if known else '*'} {label:<{wide}}  {others}")
    return "\n".join(
        [*lines, "probabilities over all labellings of the sentence; * a word unknown but for its letters"]
    )


def _own(model: Path, column: str, quiet: bool) -> list[Sentence]:
    """What the run of this model folder was measured on."""
    path = model.absolute().parent / "config.toml"
    fix = "  Fix: say what to measure on with --data FILE."
    if not path.is_file():
        raise DataError(f"what {model} was measured on is not known here: there is no {path}.\n{fix}")
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))["tagging"]
        for part in ("test", "dev"):
            if part in record:
                return conll.read(record[part], column=column)
        if "train" in record:
            return tagged.hold_out(conll.read(record["train"], column=column))[1]
        name, folder = record["data"], record.get("data_dir")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the record of a run.\n  Received: {error!r}\n{fix}") from error
    return tagged.benchmark(name, column=column, data_dir=folder, quiet=quiet).test
