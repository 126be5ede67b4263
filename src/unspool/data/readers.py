"""Files of labelled texts: the user's own, and the benchmarks'.

Every reader gives a list of examples or says which line of which file is wrong, what stands there and
what to do.  Lines end at LF or CRLF and nowhere else: U+0085 and its kin are part of a text.  Splitting
texts into words and numbering labels are not done here.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from unspool.errors import DataError, InputError

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Example(NamedTuple):
    """A text, its label, and the group that it must not be parted from (a film, say), if there is one."""

    text: str
    label: str
    group: str | None = None


class Splits(NamedTuple):
    """The three parts of a benchmark; no sentence is in two of them unless its reader says so."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]


def read(
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    label_column: str = "label",
    labels: Collection[str] | None = None,
) -> list[Example]:
    """Read a TSV, CSV or JSONL file of labelled texts.

    TSV and CSV need a header row.  A file of two columns without one is refused: whether its first line
    names columns or is an example could only be guessed.  TSV knows no quotes, a quotation mark is a
    character; CSV is read as Python's csv module reads it.  In JSONL each line is one object, the text
    is a string, and a label may also be an integer or true or false, which become "3" or "true".
    Other columns are not looked at.  Lines with nothing on them are passed over, a byte-order mark too,
    and spaces around a label are dropped.  A text may be of any length but must hold a visible character.

    Args:
        path: the file, named .tsv, .csv or .jsonl, with .gz, .bz2 or .xz after it if it is compressed.
        text_column: the name of the column, or of the object's member, that holds the text.
        label_column: the same for the label.
        labels: the labels that may occur, such as those of a trained model.  None: any.

    Returns:
        The examples in the order of the file, at least one.

    Raises:
        DataError: the file cannot be read, is not what its name says, is not UTF-8, holds a NUL, has no
            examples, lacks a column, or a line has other columns than the header, an empty text, no
            label, or a label that may not occur.
    """
    path = Path(path)
    kind = Path(path.stem).suffix if path.suffix.lower() in _OPENERS else path.suffix
    if kind.lower() == ".tsv":
        rows = _columns(path, _tsv(_text(path)), (text_column, label_column))
    elif kind.lower() == ".csv":
        rows = _columns(path, _csv(path, _text(path)), (text_column, label_column))
    elif kind.lower() == ".jsonl":
        rows = _objects(path, _text(path), text_column, label_column)
    else:
        raise DataError(
            f"{path}: what kind of file this is cannot be told from its name.\n"
            "  Fix: name it .tsv, .csv or .jsonl, with .gz, .bz2 or .xz after that if it is compressed."
        )
    examples = []
    for number, (text, label) in rows:
        if not text or text.isspace():
            raise _bad(path, number, "the text is empty", text, "give the line a text, or remove it")
        label = label.strip()
        if not label:
            raise _bad(path, number, "the label is empty", text, "give the line a label, or remove it")
        if labels is not None and label not in labels:
            known = ", ".join(sorted(labels))
            raise _bad(path, number, "this label is unknown", label, f"use one of: {known:.300}")
        examples.append(Example(text, label))
    if not examples:
        raise DataError(
            f"{path}: the file holds no examples.\n  Fix: give it at least one line of text and label."
        )
    return examples


def check_training(examples: Sequence[Example], where: str = "the training file") -> None:
    """Refuse examples that nothing can be learned from.

    Args:
        examples: what is to be trained on.
        where: what to call it, usually the file's name.

    Raises:
        DataError: there are no examples, or all have the same label.
    """
    if not examples:
        raise DataError(f"{where}: there are no examples to train on.\n  Fix: give it labelled texts.")
    if len({example.label for example in examples}) == 1:
        raise DataError(
            f"{where}: every example has the same label, so there is nothing to tell apart.\n"
            f"  Received: {len(examples):,} examples, all labelled {examples[0].label!r:.60}\n"
            "  Fix: give it examples of two labels or more."
        )


_ASCII_SIGNS = bytes(code for code in range(128) if not chr(code).isalnum())
_TRAIN_SHARE, _DEV_SHARE = 0.8, 0.1
_CP1252_REPAIR = {
    code: bytes([code]).decode("cp1252")
    for code in range(0x80, 0xA0)
    if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # the five that cp1252 leaves undefined
}
_PENN = {"-lrb-": "(", "-rrb-": ")", "-lcb-": "{", "-rcb-": "}", "-lsb-": "[", "-rsb-": "]"}
# Eight rows of this copy of IMDb are remarks on phone apps: (split, label, id).
_NOT_REVIEWS = frozenset(
    [("train", "pos", "0"), ("train", "pos", "7"), ("train", "neg", "2"), ("train", "neg", "9")]
    + [("test", "pos", number) for number in "0279"]
)


def rotten_tomatoes(path: str | os.PathLike[str]) -> Splits:
    """Read the film-review sentences of Rotten Tomatoes, labelled "fresh" or "rotten".

    Plot summaries and empty texts are left out, and line breaks inside a sentence become spaces.  The
    split is by film, about 80, 10 and 10 in a hundred, and is fixed by the SHA-256 of the film's name.
    Films that share a sentence count as one film under the name that comes first in the alphabet: most
    are one film under two titles.  Of a sentence that occurs more than once (with the same letters and
    digits) the first copy is kept.  So neither a film nor a sentence is in two parts.

    Args:
        path: rotten_tomatoes_corpus_full.csv.bz2, the source "rotten-tomatoes".

    Returns:
        The parts; an example's group is its film.

    Raises:
        DataError: the file is not this corpus.
    """
    path = Path(path)
    films: dict[str, str] = {}  # film → a film that it goes with and that stands before it in the alphabet

    def leader(film: str) -> str:
        while films[film] != film:
            film = films[film]
        return film

    first: dict[str, Example] = {}  # sentence's key → its first copy
    rows = _columns(path, _csv(path, _text(path)), ("category", "text", "movie_name"))
    for number, (label, text, film) in rows:
        if label not in ("fresh", "rotten", "plot"):
            raise _bad(
                path, number, "the category is none of fresh, rotten, plot", label, "fetch the file again"
            )
        text = " ".join(text.split())
        if label == "plot" or not text:
            continue
        films.setdefault(film, film)
        copy = first.setdefault(_key(text), Example(text, label, film))
        low, high = sorted((leader(film), leader(copy.group or film)))
        films[high] = low

    def part(example: Example) -> int:
        digest = hashlib.sha256(leader(example.group or "").encode("utf-8")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        return 0 if place < _TRAIN_SHARE else 1 if place < _TRAIN_SHARE + _DEV_SHARE else 2

    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for example in first.values():
        parts[part(example)].append(example)
    return Splits(*parts)


def mr(path: str | os.PathLike[str], *, seed: int, fold: int = 0) -> Splits:
    """Read the MR sentences, labelled "negative" or "positive", and split them for cross-validation.

    The different sentences are put in an order that the seed alone decides and cut into ten folds.  One
    fold is the test part, a tenth of the others the development part.  All copies of a repeated sentence
    (with the same letters and digits) go together.

    Args:
        path: rt-polarity.all.gz, the source "mr".
        seed: another seed, another order.
        fold: which fold is tested on, 0 to 9.

    Raises:
        DataError: the file is not of this form.
        InputError: the fold is not one of ten.

    Source: Pang and Lee 2005; ten folds as usual since.
    """
    return _folds(_labelled_lines(path, "cp1252", ("negative", "positive")), seed, fold)


def subj(path: str | os.PathLike[str], *, seed: int, fold: int = 0) -> Splits:
    """Read the Subj sentences, labelled "subjective" or "objective", split as `mr` splits.

    Args:
        path: subj.all.gz, the source "subj".
        seed: another seed, another order.
        fold: which fold is tested on, 0 to 9.

    Raises:
        DataError: the file is not of this form.
        InputError: the fold is not one of ten.

    Source: Pang and Lee 2004.
    """
    return _folds(_labelled_lines(path, "cp1252", ("subjective", "objective")), seed, fold)


def sst2(train: str | os.PathLike[str], dev: str | os.PathLike[str], test: str | os.PathLike[str]) -> Splits:
    """Read the sentences of the Stanford Sentiment Treebank in two classes, "negative" and "positive".

    The parts are the published ones, although three short sentences are in two of them.  The treebank's
    spellings of brackets and slashes are undone.

    Args:
        train: stsa.binary.train.gz, the source "sst2-train".
        dev: stsa.binary.dev.gz, the source "sst2-dev".
        test: stsa.binary.test.gz, the source "sst2-test".

    Raises:
        DataError: a file is not of this form.

    Source: Socher et al. 2013.
    """

    def part(path: str | os.PathLike[str]) -> list[Example]:
        examples = _labelled_lines(path, "utf-8", ("negative", "positive"))
        return [example._replace(text=_unescape(example.text)) for example in examples]

    return Splits(part(train), part(dev), part(test))


def imdb(path: str | os.PathLike[str], *, seed: int = 0) -> Splits:
    """Read the IMDb film reviews, labelled "negative" or "positive".

    Train and test are the published parts, although 123 test reviews are in train too; a tenth of train
    becomes the development part, all copies of a repeated review together.  Eight rows of this copy that
    are no film reviews are left out, `<br />` becomes a space, and the control characters that stand for
    cp1252 punctuation become that punctuation.

    Args:
        path: imdb50k.tsv.xz, the source "imdb".
        seed: decides which tenth of train becomes the development part.

    Raises:
        DataError: the file is not of this form.

    Source: Maas et al. 2011.
    """
    path = Path(path)
    names = {"pos": "positive", "neg": "negative"}
    parts: dict[str, list[Example]] = {"train": [], "test": []}
    for number, row in _tsv(_text(path)):
        if len(row) != 5 or row[0] not in parts or row[1] not in names:
            wanted = "the line is not split, label, rating, number and text"
            raise _bad(path, number, wanted, "\t".join(row), "fetch the file again")
        split, label, _, review, text = row
        if (split, label, review) in _NOT_REVIEWS:
            continue
        text = text.replace("<br />", " ")
        if not text.isascii():
            text = text.translate(_CP1252_REPAIR)
        parts[split].append(Example(text, names[label]))
    train, dev = _take_tenth(parts["train"], seed, 0)
    return Splits(train, dev, parts["test"])


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Part a tenth from a file of examples, to choose by; the same tenth for the same texts.

    Returns:
        The nine tenths and the tenth, all copies of a sentence on one side.
    """
    return _take_tenth(examples, 0, 0)


def _key(text: str) -> str:
    """Return what two copies of a sentence have in common: its letters and digits, in small letters."""
    if text.isascii():  # the same as below, and fifteen times as fast
        key = text.lower().encode().translate(None, _ASCII_SIGNS).decode()
    else:
        key = re.sub(r"[\W_]+", "", text.lower())
    return key or text


def _take_tenth(examples: Sequence[Example], seed: int, part: int) -> tuple[list[Example], list[Example]]:
    """Part the examples into nine tenths and one, all copies of a sentence on one side.

    The different sentences are ordered by a hash that the seed salts, so that no change in a random
    number generator can change the split, and cut into ten parts of one size.

    Returns:
        The rest, and the tenth that was asked for, both in the order given.
    """
    keys = [_key(example.text) for example in examples]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    tenth = frozenset(order[len(order) * part // 10 : len(order) * (part + 1) // 10])
    rest: list[Example] = []
    taken: list[Example] = []
    for example, key in zip(examples, keys, strict=True):
        (taken if key in tenth else rest).append(example)
    return rest, taken


def _folds(examples: Sequence[Example], seed: int, fold: int) -> Splits:
    if fold not in range(10):
        raise InputError(f"fold must be one of ten.\n  Received: {fold}\n  Fix: give a number from 0 to 9.")
    rest, test = _take_tenth(examples, seed, fold)
    train, dev = _take_tenth(rest, seed, 0)
    return Splits(train, dev, test)


def _labelled_lines(path: str | os.PathLike[str], encoding: str, names: tuple[str, str]) -> list[Example]:
    """Read lines of "0 TEXT" and "1 TEXT"."""
    path = Path(path)
    examples = []
    for number, line in _lines(_text(path, encoding)):
        text = line[2:].strip()
        if line[:2] not in ("0 ", "1 ") or not text:
            raise _bad(
                path, number, "the line is not 0 or 1, a space, and a text", line, "fetch the file again"
            )
        examples.append(Example(text, names[int(line[0])]))
    return examples


def _unescape(text: str) -> str:
    return " ".join(_PENN.get(word, word) for word in text.replace("\\/", "/").replace("\\*", "*").split(" "))


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it if its name ends in .gz, .bz2 or .xz.

    Args:
        path: the file.

    Yields:
        The file, to be read as bytes.

    Raises:
        DataError: the file is not there or may not be read, or, while it is read, that it is damaged.
    """
    opener = _OPENERS.get(path.suffix.lower())
    try:
        with opener(path) if opener else path.open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(
            f"{path}: the file cannot be read.\n"
            f"  Received: {error.strerror}\n"
            "  Fix: give the name of a file that is there."
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: the file is damaged or not packed as its name says.\n"
            f"  Received: {error}\n"
            "  Fix: copy or pack it again."
        ) from None


def _text(path: Path, encoding: str = "utf-8") -> str:
    """Read a whole file as text, without its byte-order mark."""
    with open_bytes(path) as file:
        data = file.read()
    if not data:
        raise DataError(f"{path}: the file is empty.\n  Fix: give it a header and examples.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: the file is UTF-16.\n  Fix: save it as UTF-8.")
    where = data.find(b"\0")
    if where >= 0:
        raise _bad(path, data.count(b"\n", 0, where) + 1, "there is a NUL byte", None, "remove it")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        received = f"byte 0x{data[error.start]:02x}, the line's byte {error.start - begin + 1}"
        fix = "save the file as UTF-8, for instance: iconv -f cp1252 -t utf-8 OLD > NEW"
        if encoding != "utf-8":
            fix = "fetch the file again"
        raise _bad(
            path, data.count(b"\n", 0, begin) + 1, f"the line is not {encoding}", received, fix
        ) from None
    return text.removeprefix("\ufeff")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Give each line that has something on it, with its number from 1, without its LF or CRLF."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line:
            yield number, line


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(text):
        yield number, line.split("\t")


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    rows = []
    # The module's limit on a field, 131,072 characters, holds for the whole process; a long text is legal.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader((line + "\n" for line in text.removesuffix("\n").split("\n")), strict=True)
        number = 1
        for row in reader:
            if row:
                rows.append((number, row))
            number = reader.line_num + 1
    except csv.Error as error:
        fix = "close the quotation marks and double those inside a text"
        raise _bad(path, number, f"the line is not CSV ({error})", None, fix) from None
    finally:
        csv.field_size_limit(limit)
    return iter(rows)


def _columns(
    path: Path, rows: Iterator[tuple[int, list[str]]], names: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """Give of each row after the header the named columns."""
    header: list[str] | None = None
    places: list[int] = []
    for number, row in rows:
        if header is None:
            header = [name.strip() for name in row]
            for name in names:
                if header.count(name) != 1:
                    fault = "twice" if name in header else "nowhere"
                    raise DataError(
                        f"{path}:{number}: the header names the column {name!r} {fault}.\n"
                        f"  Received: the columns {', '.join(map(repr, header)):.200}\n"
                        f"  Fix: make the first line name the columns, {name!r} once among them, "
                        "or say which columns hold text and label."
                    )
            places = [header.index(name) for name in names]
        elif len(row) != len(header):
            raise _bad(
                path,
                number,
                f"the line has {len(row)} columns, the header {len(header)}",
                "\t".join(row),
                "a text may hold no tab (TSV), and stands in quotation marks if it holds a comma (CSV)",
            )
        else:
            yield number, [row[place] for place in places]


def _objects(path: Path, text: str, text_name: str, label_name: str) -> Iterator[tuple[int, list[str]]]:
    """Give of each JSON line the text and the label."""
    for number, line in _lines(text):
        try:
            item: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad(
                path, number, f"the line is not JSON ({error})", line, "write one object a line"
            ) from None
        if not isinstance(item, dict):
            raise _bad(path, number, "the line is not a JSON object", line, "write {…} on every line")
        for name in (text_name, label_name):
            if name not in item:
                fix = "give every object a text and a label, or say which members they are"
                raise _bad(path, number, f"the object has no {name!r}", line, fix)
        text, label = item[text_name], item[label_name]
        if not isinstance(text, str):
            raise _bad(
                path, number, f"{text_name!r} is not a string", line, "put the text in quotation marks"
            )
        if isinstance(label, bool):
            label = "true" if label else "false"
        elif isinstance(label, int):
            label = str(label)
        elif not isinstance(label, str):
            fix = "make the label a string, an integer, true or false"
            raise _bad(path, number, f"{label_name!r} is not a label", line, fix)
        for value in (text, label):
            if "\0" in value or re.search("[\ud800-\udfff]", value):
                raise _bad(path, number, "an escape stands for no character", line, "remove the escape")
        yield number, [text, label]


def _bad(path: Path, number: int, fault: str, received: str | None, fix: str) -> DataError:
    shown = "" if received is None else f"  Received: {received[:100]!r}\n"
    return DataError(f"{path}:{number}: {fault}.\n{shown}  Fix: {fix}.")
