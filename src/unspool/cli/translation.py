"""What the verbs do with a translator: eval, predict, inspect.  Without torch, and without a word printed."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unspool import files
from unspool.cli.own_part import own_part
from unspool.data import pairs
from unspool.metrics import Bleu, WordErrors
from unspool.page import alignment, structures
from unspool.translator import TASK, Translator


def evaluate(
    model: Path, data: Path | None, target: Path | None, *, beam: int, quiet: bool
) -> Bleu | WordErrors:
    """Measure a translator on files, or on what its run was measured on."""
    loaded = Translator.load(model)
    gold = _own(model, quiet) if data is None else pairs.read(data, target)
    texts = [made.text for made in loaded.translate([pair.source for pair in gold], width=beam)]
    measure = Bleu.of if loaded.description.metric == "bleu" else WordErrors.of
    lowercase = loaded.target.table.lowercase
    return measure(texts, [pair.targets for pair in gold], lowercase=lowercase)


def predict(model: Path, texts: Iterable[str], at_once: int, beam: int) -> Iterator[list[str]]:
    """Translate texts as they come, `at_once` at a time; the order is kept."""
    loaded = Translator.load(model)
    coming = iter(texts)
    while batch := list(itertools.islice(coming, at_once)):
        yield [made.text for made in loaded.translate([pairs.tidy(text) for text in batch], width=beam)]


def inspection(model: Path, text: str, beam: int) -> dict[str, Any]:
    """A translation with its attention, for programs."""
    return structures.translated(Translator.load(model), pairs.tidy(text), beam)


def picture(model: Path, text: str, beam: int, output: Path | None) -> str:
    """The same for people; and as a page or as numbers, where a file is named."""
    (found,) = Translator.load(model).translate([pairs.tidy(text)], width=beam)
    if output is not None and output.suffix == ".html":
        files.write_file(output, alignment.html(found).encode())
    elif output is not None:
        files.write_file(output, files.pack({"attention": found.attention}))
    return alignment.terminal(found)


def _own(model: Path, quiet: bool) -> list[pairs.Pair]:
    """What the run of this model folder was measured on."""
    return own_part(
        model,
        TASK,
        ("skip_bad",),
        read=lambda record, part: pairs.read_told(
            record[part], record.get(f"{part}_target"), skip_bad=record["skip_bad"], quiet=quiet
        ),
        hold_out=pairs.hold_out,
        benchmark=lambda record: (
            pairs.benchmark(record["data"], data_dir=record.get("data_dir"), quiet=quiet).test
        ),
    )[1]
