"""Sentences whose words carry labels: CoNLL-U, and files of columns with a blank line between sentences.

What is read is kept line by line, so that it can be written again with other labels and nothing else
changed: comments, multiword tokens, empty nodes and all other columns stay.  What a label means is not known
here; labels that mark spans are `schemes`'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from unspool.data.readers import open_bytes
from unspool.errors import DataError

Format = Literal["conllu", "columns"]

# The columns of CoNLL-U, in order.
COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
PLACE = re.compile(r"[2-9]|[1-9][0-9]{1,3}")  # of a column that is read beside the first, the word
# Where _ says that there is none; elsewhere it says that nothing has been filled in.
_MAY_BE_NONE = ("feats", "deps", "misc")
_WORD_ID = re.compile(r"[1-9][0-9]*")
_OTHER_ID = re.compile(r"[1-9][0-9]*-[1-9][0-9]*|[0-9]+\.[1-9][0-9]*")  # multiword token; empty node
_LONGEST_LINE = 1_000_000
_SPACES = " \t"  # U+0085 and its kin are part of a word


class Sentence(NamedTuple):
    """A sentence as it stands in its file."""

    words: tuple[str, ...]
    labels: tuple[str, ...]  # one a word; empty where none were asked for
    lines: tuple[str, ...]  # as read, without their ends; the blank line after them is not among them
    places: tuple[int, ...]  # where in `lines` each word stands
    number: int  # of the first line in its file, from 1
    columns: tuple[tuple[str, ...], ...] = ()  # what stands in the other columns asked for, of each word

    @property
    def given(self) -> Sequence[str | tuple[str, ...]]:
        """What a tagger reads: words, or with other columns, tuples of a word and what stands in them."""
        if not self.columns:
            return self.words
        return [(word, *values) for word, values in zip(self.words, self.columns, strict=True)]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Tell the format from a file's name: .conllu, possibly compressed, or columns."""
    return "conllu" if ".conllu" in Path(path).suffixes[-2:] else "columns"


def read(
    path: str | os.PathLike[str],
    *,
    column: str = "upos",
    features: Sequence[str] = (),
    labelled: bool = True,
    on_bad: Callable[[DataError], None] | None = None,
) -> list[Sentence]:
    """Read a file of sentences.

    Args:
        path: a file of CoNLL-U (.conllu) or of columns (any other name), with .gz, .bz2 or .xz after it
            if it is compressed.
        column: which column of CoNLL-U holds the labels: upos, xpos, feats, deprel, ….  Columns: the last.
        features: other columns to be read: of CoNLL-U by name, of columns by place, "2" the second.
        labelled: whether labels are read; without, columns may be one alone.
        on_bad: is given what is wrong with a sentence, which is then left out.  None: the first raises.

    Raises:
        DataError: the file cannot be read, holds no sentence, or a sentence is not what it should be.
    """
    with open_bytes(Path(path)) as file:
        found = list(
            sentences(
                file,
                str(path),
                format_of(path),
                column=column,
                features=features,
                labelled=labelled,
                on_bad=on_bad,
            )
        )
    if not found:
        raise DataError(f"{path}: there is no sentence in it.\n  Fix: give it at least one line with a word.")
    return found


def sentences(
    lines: Iterable[bytes],
    where: str,
    format: Format,
    *,
    column: str = "upos",
    features: Sequence[str] = (),
    labelled: bool = True,
    on_bad: Callable[[DataError], None] | None = None,
) -> Iterator[Sentence]:
    """Read sentences from lines as they come, such as those of a file or of stdin.

    Args:
        lines: bytes that end at LF or CRLF.
        where: what to call them in messages.
        format, column, features, labelled, on_bad: as for `read`, the format given.

    Yields:
        Sentences; lines in which no word stands, such as comments alone, are one only where no labels are
        read, to be written again.

    Raises:
        DataError: a sentence is not what it should be.
    """
    for name in (column, *features) if format == "conllu" else ():
        if name not in COLUMNS:
            raise DataError(
                f"CoNLL-U has no column {name!r:.40}.\n  Fix: use one of {', '.join(COLUMNS[2:])}."
            )
    if format == "columns" and not all(map(PLACE.fullmatch, features)):
        raise DataError(
            f"{where}: its columns are named by their place.\n"
            f"  Received: {', '.join(features):.100}.\n  Fix: 2 for the second."
        )
    block: list[str] = []
    first, bad = 1, False
    number = 0

    def parsed() -> Iterator[Sentence]:
        nonlocal bad
        if bad or not block:
            return
        try:
            sentence = _parse(block, where, first, format, column if labelled else None, features)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)
        else:
            if sentence.words or not labelled:
                yield sentence

    for number, raw in enumerate(lines, start=1):
        try:
            line = _text(raw, where, number)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)
            bad = True
            continue
        if line.strip(_SPACES):
            if not block:
                first = number
            block.append(line)
            continue
        yield from parsed()
        block, bad = [], False
    yield from parsed()


def with_labels(sentence: Sentence, labels: Sequence[str], format: Format, *, column: str = "upos") -> str:
    """Write a sentence with other labels: CoNLL-U in its column, columns as one more at the end.

    Args:
        sentence: as read.
        labels: one a word.
        format, column: as for `sentences`.

    Returns:
        Its lines and the blank line after them, each ended by LF.
    """
    lines = list(sentence.lines)
    for place, label in zip(sentence.places, labels, strict=True):
        if format == "conllu":
            fields = lines[place].split("\t")
            fields[COLUMNS.index(column)] = label
            lines[place] = "\t".join(fields)
        else:
            lines[place] += ("\t" if "\t" in lines[place] or " " not in lines[place] else " ") + label
    return "\n".join([*lines, "", ""])


def _text(raw: bytes, where: str, number: int) -> str:
    line = raw.removesuffix(b"\n").removesuffix(b"\r")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if len(line) > _LONGEST_LINE:
        raise DataError(
            f"{where}:{number}: the line is longer than {_LONGEST_LINE:,} bytes.\n"
            f"  Fix: is it a file of sentences, one word a line?"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}:{number}: the line is not UTF-8.\n"
            f"  Received: byte 0x{line[error.start]:02x}, after {line[: error.start].decode()!r:.60}.\n"
            f"  Fix: iconv -f cp1252 -t utf-8, for instance."
        ) from None


def _parse(
    block: Sequence[str],
    where: str,
    first: int,
    format: Format,
    column: str | None,
    features: Sequence[str],
) -> Sentence:
    words: list[str] = []
    labels: list[str] = []
    places: list[int] = []
    columns: list[tuple[str, ...]] = []
    for place, line in enumerate(block):
        number = first + place
        if format == "conllu":
            fields = _conllu(line, where, number, len(words) + 1)
            if fields is None:
                continue
            word, label = fields[1], None if column is None else fields[COLUMNS.index(column)]
            values = [_filled(fields, name) for name in features]
        else:
            fields = line.split("\t") if "\t" in line.strip(_SPACES) else re.split(" +", line.strip(_SPACES))
            if fields[0] == "-DOCSTART-":
                continue
            if column is not None and len(fields) < 2:
                raise _bad(where, number, "there is no label", line, "give the line a word and a label")
            word, label = fields[0], None if column is None else fields[-1]
            # The label must not be read as an input.
            values = (fields if column is None else fields[:-1])[1:]
            values = [values[int(name) - 2] if int(name) - 2 < len(values) else "" for name in features]
        if not word.strip():
            raise _bad(where, number, "the word is empty", line, "give the line a word, or remove it")
        if label is not None:
            if not label.strip():
                raise _bad(where, number, "the label is empty", line, "give the line a label")
            labels.append(label)
        for name, value in zip(features, values, strict=True):
            if not value.strip():
                what = f"there is nothing in column {name}"
                what += " before the label" if format == "columns" and column is not None else ""
                raise _bad(where, number, what, line, "fill it: it is read beside the word")
        words.append(word)
        places.append(place)
        columns += [tuple(values)] if features else []
    return Sentence(tuple(words), tuple(labels), tuple(block), tuple(places), first, tuple(columns))


def _filled(fields: Sequence[str], name: str) -> str:
    """What stands in a column of CoNLL-U; "" where it says that nothing does."""
    value = fields[COLUMNS.index(name)]
    return "" if value == "_" != fields[1] and name not in _MAY_BE_NONE else value


def _conllu(line: str, where: str, number: int, expected: int) -> list[str] | None:
    """The fields of a word's line; None where the line is none: a comment, multiword token, empty node."""
    if line.startswith("#"):
        return None
    fields = line.split("\t")
    if len(fields) != len(COLUMNS):
        raise _bad(
            where,
            number,
            f"there are {len(fields)} columns",
            line,
            "separate ten columns by tabs, _ for none",
        )
    if _OTHER_ID.fullmatch(fields[0]):
        return None
    if not _WORD_ID.fullmatch(fields[0]) or int(fields[0]) != expected:
        raise _bad(
            where,
            number,
            f"the word's number is not {expected}",
            fields[0],
            "count words from 1 in each sentence",
        )
    return fields


def _bad(where: str, number: int, what: str, received: str, fix: str) -> DataError:
    return DataError(f"{where}:{number}: {what}.\n  Received: {received!r:.100}.\n  Fix: {fix}.")
