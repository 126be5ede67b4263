"""From raw text to words, and from words to numbers.

This is the one tokenizer and the one table of words that every task on text shares; both are stored
with a model, so what was trained is what is served.  Labels, batches and files of examples are not
known here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError, ModelFileError

PAD = 0
UNKNOWN = 1
PAD_TOKEN = "<pad>"
UNKNOWN_TOKEN = "<unk>"

_FORMAT = "unspool-vocabulary"
_VERSION = 1

# Kana and Han are written without spaces: each character counts as a word.
_SINGLE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Marks that stand on or join the letters of one word, and that Python's \w leaves out: accents, Hebrew
# and Arabic points, the vowel signs of India and Thailand, the two joiners.
_MARKS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u200c\u200d"
_CLITICS = "(?:[smdSMD]|re|ve|ll|RE|VE|LL)"


def _pattern(letter: str) -> re.Pattern[str]:
    clitic = rf"{_CLITICS}(?!{letter})"
    return re.compile(
        rf"[0-9]+(?:[.,][0-9]+)+"  # 2.5 and 10,000
        rf"|{letter}+(?:'(?!{clitic}){letter}+)*"  # film; o'clock, n't, but not it's
        rf"|'{clitic}"
        r"|\.\.\.|--|``|''"  # marks of two or three signs, as treebanks write them
        r"|\S"
    )


_WORD = _pattern(rf"(?:[^\W_{_SINGLE}]|[{_MARKS}])")
_ASCII_WORD = _pattern("[A-Za-z0-9]")  # the same on plain ASCII, and three times as fast
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


def words(text: str, *, lowercase: bool = True) -> list[str]:
    """Split raw text into words by one fixed rule.

    A word is a run of letters and digits; an apostrophe inside belongs to it (o'clock).  English
    contractions come apart as treebanks have them: it's → it 's, don't → do n't.  Numbers keep their
    points and commas.  Every other sign is a word by itself, the hyphen included, but for the ellipsis
    and the double dash.  Curly quotes become straight ones.  Text that a treebank has already split
    passes through nearly unchanged (its hyphened words and abbreviations such as "mr." come apart).

    Args:
        text: any text.
        lowercase: whether capitals become small letters.

    Returns:
        The words in reading order; none for a text without a visible character, and only for such a text.
    """
    if lowercase:
        text = text.lower()
    pattern = _ASCII_WORD
    if not text.isascii():
        pattern = _WORD
        text = unicodedata.normalize("NFC", text).translate(_STRAIGHT)
    text = text.replace("n't", " n't")
    if not lowercase:
        text = text.replace("N'T", " N'T")
    return pattern.findall(text)


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows; a word's number is its place.

    Args:
        tokens: all words; the first two stand for padding and for words not known.
        lowercase: whether texts were, and are to be, split with small letters.

    Raises:
        InputError: the first two tokens are not the two special ones, or a token is empty, occurs twice
            or cannot be written as UTF-8.
    """

    tokens: tuple[str, ...]
    lowercase: bool

    def __post_init__(self) -> None:
        fault = _fault(self.tokens)
        if fault:
            raise InputError(
                f"this is not a vocabulary: {fault}\n"
                f"  Received: {len(self.tokens)} tokens, the first of them {list(self.tokens[:3])!r:.80}\n"
                "  Fix: make vocabularies with Vocabulary.build."
            )

    @classmethod
    def build(
        cls,
        texts: Iterable[Sequence[str]],
        *,
        min_count: int = 1,
        max_size: int | None = None,
        lowercase: bool,
    ) -> Vocabulary:
        """Count the words of tokenised texts and keep the frequent ones.

        Words are ordered by falling count and, where counts are equal, by the alphabet, so the same texts
        give the same vocabulary in whatever order they come.

        Args:
            texts: texts already split into words.
            min_count: how often a word must occur to be kept, 1 or more.
            max_size: how many tokens to keep at most, the two special ones included.  None: all.
            lowercase: whether the texts were split with small letters; stored for later texts.

        Raises:
            InputError: min_count below 1, max_size below 2, or a word that cannot be written as UTF-8.
        """
        if min_count < 1:
            raise InputError(f"min_count must be 1 or more.\n  Received: {min_count}")
        if max_size is not None and max_size < 2:
            raise InputError(
                "max_size must leave room for the padding and the unknown word, so 2 or more.\n"
                f"  Received: {max_size}"
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        for special in (PAD_TOKEN, UNKNOWN_TOKEN):
            counts.pop(special, None)
        kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        tokens = (PAD_TOKEN, UNKNOWN_TOKEN, *(word for _, word in kept))
        return cls(tokens[:max_size], lowercase)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        # A text may spell the padding token; it must not become padding in the middle of a sequence.
        return {token: number for number, token in enumerate(self.tokens) if number != PAD}

    def encode(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Turn words into their numbers.

        Args:
            words: (T,) words as `words` splits them.

        Returns:
            (T,) numbers; UNKNOWN for a word that is not in the vocabulary, never PAD.  No words: (0,).
        """
        numbers = self._numbers
        return np.fromiter((numbers.get(word, UNKNOWN) for word in words), dtype=np.int64, count=len(words))

    def known(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """Say of each word whether the vocabulary has it: (T,)."""
        return np.not_equal(self.encode(words), UNKNOWN, dtype=np.bool_)

    def to_bytes(self) -> bytes:
        """Write the vocabulary as vocab.json holds it."""
        return files.json_text(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "lowercase": self.lowercase,
                "tokens": list(self.tokens),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Vocabulary:
        """Read what `to_bytes` wrote.

        Args:
            data: the whole file.
            where: its name, for messages.

        Raises:
            ModelFileError: it is cut off, of another format version, or not a vocabulary.
        """
        content = files.parse_json(data, where)
        version = content.get("version")
        if content.get("format") != _FORMAT or version != _VERSION:
            raise ModelFileError(
                f"{where} is of a format that this unspool does not read.\n"
                f"  Received: {content.get('format')!r:.60}, version {version!r:.40}; "
                f"read is {_FORMAT!r}, version {_VERSION}.\n"
                "  Fix: load it with the unspool that wrote it, or install a newer one."
            )
        tokens, lowercase = content.get("tokens"), content.get("lowercase")
        fault = None
        if not isinstance(lowercase, bool):
            fault = '"lowercase" is neither true nor false'
        elif not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            fault = '"tokens" is not a list of words'
        else:
            fault = _fault(tokens)
        if fault or tokens is None:
            raise ModelFileError(
                f"the vocabulary {where} cannot be used: {fault}.\n"
                "  Fix: copy the model's folder again from where it came, or train it anew."
            )
        return cls(tuple(tokens), bool(lowercase))


def _fault(tokens: Sequence[str]) -> str | None:
    """Say what keeps tokens from being a vocabulary; None if nothing does."""
    if tuple(tokens[:2]) != (PAD_TOKEN, UNKNOWN_TOKEN):
        return f"the first two tokens are not {PAD_TOKEN} and {UNKNOWN_TOKEN}"
    if len(set(tokens)) != len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        return f"the token {twice!r:.40} occurs twice"
    if "" in tokens:
        return "a token is empty"
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a token cannot be written as UTF-8 ({error.reason})"
    return None
