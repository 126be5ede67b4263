"""Sentences of CoNLL-U whose words have heads: read and checked, and written with other ones.

The lines of a sentence stay what they were but for the columns that are predicted, as in `conll`.

    n words   0 the root, which is no word
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unspool import trees
from unspool.data import conll
from unspool.data.conll import Sentence
from unspool.errors import DataError
from unspool.trees import Tree

_HEAD, _DEPREL = conll.COLUMNS.index("head"), conll.COLUMNS.index("deprel")


def tree_of(sentence: Sentence, where: str = "the sentence") -> Tree:
    """Read the heads and relations of a sentence.

    Args:
        sentence: as `conll.read` reads it with column="deprel".
        where: its file, for messages.

    Raises:
        DataError: a head is no number of the sentence, there is no root or more than one, or heads go in a
            cycle; with the line's number.
    """
    heads = []
    for place in sentence.places:
        head = sentence.lines[place].split("\t")[_HEAD]
        if not head.isascii() or not head.isdigit() or int(head) > len(sentence.words):
            raise _bad(
                sentence,
                where,
                place,
                "the head is no word of the sentence",
                head,
                f"a number from 0, the root, to {len(sentence.words)}",
            )
        heads.append(int(head))
    roots = [place for place, head in zip(sentence.places, heads, strict=True) if head == 0]
    if len(roots) > 1:
        raise _bad(
            sentence,
            where,
            roots[1],
            f"there is a second root; the first is in line {sentence.number + roots[0]}",
            sentence.lines[roots[1]],
            "let one word alone have the head 0",
        )
    inside = trees.cycle(np.array(heads, np.int64))
    if inside:
        raise _bad(
            sentence,
            where,
            sentence.places[inside[0] - 1],
            "heads go in a cycle",
            " → ".join(map(str, [*inside[:8], inside[0]])),
            "every word should be reached from the root",
        )
    return Tree(tuple(heads), sentence.labels)


def with_tree(sentence: Sentence, tree: Tree, *, tag_column: str = "upos") -> str:
    """Write a sentence with other heads and relations, and other tags where the tree has them.

    Returns:
        Its lines and the blank line after them, each ended by LF.  All else is as it was read: comments,
        multiword tokens, empty nodes, and the graph in DEPS.
    """
    lines = list(sentence.lines)
    for at, place in enumerate(sentence.places):
        fields = lines[place].split("\t")
        fields[_HEAD], fields[_DEPREL] = str(tree.heads[at]), tree.relations[at]
        if tree.tags:
            fields[conll.COLUMNS.index(tag_column)] = tree.tags[at]
        lines[place] = "\t".join(fields)
    return "\n".join([*lines, "", ""])


def tags_of(sentence: Sentence, column: str) -> tuple[str, ...]:
    """What stands in another column of a sentence's words."""
    at = conll.COLUMNS.index(column)
    return tuple(sentence.lines[place].split("\t")[at] for place in sentence.places)


def as_sentence(words: Sequence[str]) -> Sentence:
    """Words as lines of CoNLL-U in which nothing else stands."""
    lines = tuple(f"{at}\t{word}" + "\t_" * 8 for at, word in enumerate(words, start=1))
    return Sentence(tuple(words), (), lines, tuple(range(len(words))), 1)


def read(path: str | os.PathLike[str], *, skip_bad: bool = False, quiet: bool = False) -> list[Sentence]:
    """Read a file of sentences with trees.

    Args:
        path: a file of CoNLL-U, possibly compressed.
        skip_bad: leave sentences out that are not what they should be, and say how many on stderr.
        quiet: do not say it.

    Raises:
        DataError: the file cannot be read, holds no sentence, or, without skip_bad, a bad one.
    """
    path = Path(path)
    if conll.format_of(path) != "conllu":
        raise DataError(
            f"{path} is no file of trees, to judge by its name.\n"
            f"  Fix: give CoNLL-U, in a file that ends in .conllu."
        )
    bad: list[DataError] = []
    good = []
    for sentence in conll.read(path, column="deprel", on_bad=bad.append if skip_bad else None):
        try:
            tree_of(sentence, str(path))
        except DataError as error:
            if not skip_bad:
                raise
            bad.append(error)
        else:
            good.append(sentence)
    if bad and not quiet:
        print(f"{path}: {len(bad)} sentences left out; the first: {bad[0]}", file=sys.stderr)
    if not good:
        raise DataError(f"{path}: no sentence is left of it.\n  The first bad one: {bad[0]}")
    return good


def _bad(sentence: Sentence, where: str, place: int, what: str, received: str, fix: str) -> DataError:
    return DataError(
        f"{where}:{sentence.number + place}: {what}.\n"
        f"  Received: {received!r:.100}.\n"
        f"  Fix: {fix}; --skip-bad leaves such sentences out."
    )
