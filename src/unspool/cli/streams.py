"""What the verbs read and print: lines of stdin, text and JSON on stdout, words for people on stderr."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from unspool.errors import DataError, InputError

# What stands for a sign of the heat map where stdout's encoding lacks it; one for one, so columns hold.
_PLAIN = str.maketrans("░▒▓█▐▌│→←…", ".:=##||><~")


def check_argument(text: str) -> None:
    """Refuse a text whose bytes were not UTF-8, as a file's line would be."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text is not UTF-8.\n  Received: {os.fsencode(text)[:100]!r}, character {error.start + 1}.\n"
            f"  Fix: iconv -f cp1252 -t utf-8, for instance."
        ) from None


def lines_of_stdin() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"stdin:{number}: the line is not UTF-8.\n  Received: byte 0x{line[error.start]:02x}.\n"
                f"  Fix: iconv -f cp1252 -t utf-8, for instance."
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def show(text: str) -> None:
    """Print a text; signs that stdout's encoding lacks become plain ones, or escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    print(text)


def show_json(value: dict[str, Any]) -> None:
    """Print a JSON line: UTF-8, or ASCII with JSON's escapes where stdout is something else."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        plain = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
        text.encode()
    except UnicodeEncodeError:  # a path may hold bytes that are no text
        plain = True
    print(json.dumps(value) if plain else text)


def say(line: str) -> None:
    print(line, file=sys.stderr)


def drop_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere; Python would complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
