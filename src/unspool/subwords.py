"""Subwords: texts cut into frequent pieces, down to the bytes of what was never seen.

Byte-pair encoding over bytes, by the library `tokenizers`; what is learned is a list of merges, and is kept
as a table like that of words.  Not for: numbers (`vocabulary`).

Source: Sennrich, Haddow and Birch 2016.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from unspool.errors import InputError, MissingExtra
from unspool.vocabulary import PAD_TOKEN, UNKNOWN_TOKEN, Vocabulary

_SPECIAL = (PAD_TOKEN, UNKNOWN_TOKEN)


def _library() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise MissingExtra("subwords", "tokenizers", "subwords") from error
    return tokenizers


class Subwords:
    """Merges, learned from texts, and the cutting and joining that follow from them.

    Raises:
        MissingExtra: `tokenizers` is not installed.
        InputError: a merge is not two pieces, each a byte or the product of an earlier merge.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        library = _library()
        pairs = [tuple(merge.split(" ")) for merge in merges]
        known = dict.fromkeys(sorted(library.pre_tokenizers.ByteLevel.alphabet()))
        for pair in pairs:
            if len(pair) != 2 or not set(pair) <= set(known):
                raise InputError(f"a merge of subwords cannot be used.\n  Received: {' '.join(pair)!r:.60}.")
            known["".join(pair)] = None
        self.merges = tuple(merges)
        numbers = {piece: number for number, piece in enumerate(known)}
        self._tokenizer = _tokenizer(library, library.models.BPE(vocab=numbers, merges=pairs))
        self._decoder = library.decoders.ByteLevel()

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> "Subwords":
        """Learn merges until there are `size` pieces, bytes included, or no pair occurs twice."""
        library = _library()
        tokenizer = _tokenizer(library, library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])

    def cut(self, text: str) -> list[str]:
        """Cut a text into pieces; a piece that begins a word begins with Ġ."""
        return list(self._tokenizer.encode(text).tokens)

    def join(self, pieces: Sequence[str]) -> str:
        """The opposite; bytes that are no UTF-8 become the replacement character."""
        return self.decode(pieces).removeprefix(" ")

    def decode(self, pieces: Sequence[str]) -> str:
        """The same with the space that stands before the first piece, where it begins a word."""
        return str(self._decoder.decode(list(pieces)))

    def pieces(self) -> tuple[str, ...]:
        """All that a text can be cut into: bytes, and products of merges."""
        return tuple(self._tokenizer.get_vocab())

    def as_table(self) -> Vocabulary:
        """The merges as a table that a model folder can hold."""
        return Vocabulary((*_SPECIAL, *self.merges), lowercase=False)

    @classmethod
    def from_table(cls, table: Vocabulary) -> "Subwords":
        """Read what `as_table` gave."""
        return cls(table.tokens[2:])


def _tokenizer(library: Any, model: Any) -> Any:
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer
