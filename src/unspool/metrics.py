"""What a task is scored with: numbers from predictions and gold labels.

Not for: what a label means (the recipe), nor for losses (torch).  NumPy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unspool.data import schemes
from unspool.errors import InputError, MissingExtra
from unspool.trees import Tree


def accuracy(predicted: ArrayLike, gold: ArrayLike) -> float:
    """Return the share of predictions that equal the gold label.

    Args:
        predicted: (N,) labels.
        gold: (N,) labels of the same kind.

    Raises:
        InputError: the shapes differ, or there is nothing to score (the share of nothing is undefined).
    """
    found: NDArray[Any] = np.asarray(predicted)
    wanted: NDArray[Any] = np.asarray(gold)
    if found.shape != wanted.shape or found.ndim != 1 or not found.size:
        raise InputError(
            "accuracy needs one prediction for each gold label, and at least one.\n"
            f"  Received: predicted {found.shape}, gold {wanted.shape}\n"
            "  Fix: two arrays of the same length."
        )
    return int(np.count_nonzero(found == wanted)) / found.size


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share.

        p = correct / n
        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)       z: the normal quantile

    Unlike p ± z√(p(1-p)/n) it stays within 0 and 1 and has a width even at a share of 0 or 1.

    Args:
        correct: how many of the n held, 0 to n.
        n: how many were tried, at least 1.
        confidence: how often such an interval is to hold the true share, between 0 and 1.

    Returns:
        Its lower and upper end.

    Raises:
        InputError: a number out of its range.

    Source: Wilson 1927, equation for the two roots in p.
    """
    if not 0 <= correct <= n or n < 1 or not 0 < confidence < 1:
        raise InputError(
            "the interval of a share needs 0 <= correct <= n, n >= 1 and a confidence between 0 and 1.\n"
            f"  Received: correct {correct}, n {n}, confidence {confidence}\n"
            "  Fix: count over at least one example."
        )
    share = correct / n
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = share + square / (2 * n)
    half = math.sqrt(square * (share * (1 - share) / n + square / (4 * n * n)))
    scale = 1 + square / n
    # The interval holds the share itself, and all of it lies within 0 and 1; rounding may miss both.
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))


@dataclass(frozen=True)
class Accuracy:
    """An accuracy with its 95 % interval."""

    value: float
    low: float
    high: float
    examples: int
    unit: str = "texts"

    @classmethod
    def of(cls, predicted: Sequence[str | None], gold: Sequence[str], *, unit: str = "texts") -> "Accuracy":
        """Count the predictions that equal the gold label; a prediction of None is wrong.

        Args:
            predicted, gold: (N,) labels.
            unit: what an example is called: texts, words.

        Raises:
            InputError: the lists differ in length, or are empty.
        """
        value = accuracy(
            ["" if label is None else f"={label}" for label in predicted], [f"={g}" for g in gold]
        )
        low, high = wilson(round(value * len(gold)), len(gold))
        return cls(value, low, high, len(gold), unit)

    @property
    def interval_text(self) -> str:
        """The interval in words."""
        return f"95 % interval {self.low:.4f} to {self.high:.4f}"

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        return (
            f"accuracy {self.value:.1%} (95 % interval {self.low:.1%} to {self.high:.1%}, "
            f"{self.examples:,} {self.unit})"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "metric": "accuracy",
            "value": self.value,
            "interval": [self.low, self.high],
            "examples": self.examples,
        }


@dataclass(frozen=True)
class SpanScore:
    """Precision, recall and F1 of labelled spans, exact matches of kind and borders alone.

        precision = right / found      recall = right / gold      F1 = 2 right / (found + gold)

    Source: the scorer of CoNLL-2000 (Tjong Kim Sang and Buchholz 2000).
    """

    right: int
    found: int
    gold: int

    @property
    def precision(self) -> float:
        """The share of the spans found that are right; 0 where none were found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """The share of the gold spans that were found; 0 where there are none."""
        return self.right / self.gold if self.gold else 0.0

    @property
    def value(self) -> float:
        """F1, the harmonic mean of precision and recall; 0 where there are no spans at all."""
        return 2 * self.right / (self.found + self.gold) if self.found + self.gold else 0.0

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        return (
            f"F1 {self.value:.2%} (precision {self.precision:.2%}, recall {self.recall:.2%}, "
            f"{self.gold:,} gold spans, {self.found:,} found)"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "metric": "f1",
            "value": self.value,
            "precision": self.precision,
            "recall": self.recall,
            "right": self.right,
            "found": self.found,
            "gold": self.gold,
        }

    @classmethod
    def of(cls, predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> "SpanScore":
        """Compare the labels of sentences.

        Raises:
            InputError: the sentences differ in number or length, or there are none.
        """
        if not gold or [len(labels) for labels in predicted] != [len(labels) for labels in gold]:
            raise InputError(
                f"one label a word is needed, predicted and gold.\n"
                f"  Received: {len(predicted)} and {len(gold)} sentences, or sentences of other lengths.\n"
                f"  Fix: pass the labels of the same sentences, one or more."
            )
        right = found = total = 0
        for mine, theirs in zip(predicted, gold, strict=True):
            a, b = set(schemes.spans(mine)), set(schemes.spans(theirs))
            right, found, total = right + len(a & b), found + len(a), total + len(b)
        return cls(right, found, total)


@dataclass(frozen=True)
class Bleu:
    """BLEU and chrF of a set of translations, by sacreBLEU, with the signature that makes them comparable.

    Source: Papineni et al. 2002; Popović 2015; Post 2018.
    """

    value: float
    chrf: float
    signature: str
    chrf_signature: str
    examples: int

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        return (
            f"BLEU {self.value:.2f} ({self.signature}), chrF {self.chrf:.2f} ({self.chrf_signature}), "
            f"{self.examples:,} texts"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "metric": "bleu",
            "value": self.value,
            "signature": self.signature,
            "chrf": self.chrf,
            "chrf_signature": self.chrf_signature,
            "examples": self.examples,
        }

    @classmethod
    def of(
        cls, predicted: Sequence[str], gold: Sequence[Sequence[str]], *, lowercase: bool = False
    ) -> "Bleu":
        """Compare translations with their references, the same number for each.

        Raises:
            InputError: the lists differ in length, or there are none.
            MissingExtra: sacreBLEU is not installed.
        """
        _check_references(predicted, gold)
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.chrf import CHRF
        except ModuleNotFoundError as error:
            raise MissingExtra("BLEU", "sacrebleu", "translate") from error
        references = [[row[k] for row in gold] for k in range(len(gold[0]))]
        bleu, chrf = BLEU(lowercase=lowercase), CHRF(lowercase=lowercase)
        found = [metric.corpus_score(list(predicted), references).score for metric in (bleu, chrf)]
        return cls(found[0], found[1], str(bleu.get_signature()), str(chrf.get_signature()), len(gold))


@dataclass(frozen=True)
class WordErrors:
    """The share of inputs whose output is none of its references, with its 95 % interval.

    Also the units, such as phonemes, to insert, delete or replace, over those of the nearest reference.
    """

    value: float
    low: float
    high: float
    unit_errors: float
    examples: int

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        return (
            f"word error {self.value:.2%} (95 % interval {self.low:.2%} to {self.high:.2%}, "
            f"{self.examples:,} words), unit error {self.unit_errors:.2%}"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "metric": "word-error",
            "value": self.value,
            "interval": [self.low, self.high],
            "unit_error": self.unit_errors,
            "examples": self.examples,
        }

    @classmethod
    def of(
        cls, predicted: Sequence[str], gold: Sequence[Sequence[str]], *, lowercase: bool = False
    ) -> "WordErrors":
        """Compare outputs with their references, units between spaces.

        Raises:
            InputError: the lists differ in length, or there are none.
        """
        _check_references(predicted, gold)
        wrong = errors = units = 0
        for text, references in zip(predicted, gold, strict=True):
            mine = (text.lower() if lowercase else text).split()
            theirs = [(r.lower() if lowercase else r).split() for r in references]
            wrong += mine not in theirs
            distance, size = min((edits(mine, reference), len(reference)) for reference in theirs)
            errors, units = errors + distance, units + size
        low, high = wilson(wrong, len(gold))
        return cls(wrong / len(gold), low, high, errors / max(units, 1), len(gold))


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """How many units to insert, delete or replace to make b of a (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, unit in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (unit != other))
    return row[-1]


def _check_references(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> None:
    if not gold or len(predicted) != len(gold) or not all(gold):
        raise InputError(
            f"one output an input is needed, and one reference or more.\n"
            f"  Received: {len(predicted)} outputs for {len(gold)} inputs."
        )


# The relations that CLAS leaves out; subtypes, behind a colon, are not looked at.
_FUNCTION = frozenset({"aux", "cop", "mark", "det", "clf", "case", "cc", "punct"})


@dataclass(frozen=True)
class ArcScore:
    """How much of dependency trees is right, over all words, punctuation included.

        UAS   words with the right head
        LAS   words with the right head and relation
        CLAS  the same of content words: 2 right / (predicted + gold), by their own relation each

    A relation's subtype, behind a colon, is not compared.

    Source: the evaluation of CoNLL 2018 (Zeman et al. 2018), on gold words.
    """

    words: int
    heads: int  # right ones
    both: int
    content: int
    content_gold: int
    content_predicted: int

    @classmethod
    def of(
        cls,
        predicted: Sequence[Tree],
        gold: Sequence[Tree],
    ) -> "ArcScore":
        """Compare the heads and relations of sentences.

        Raises:
            InputError: the sentences differ in number or length, or hold no word.
        """
        sizes = [[len(part) for tree in trees for part in tree[:2]] for trees in (predicted, gold)]
        if sizes[0] != sizes[1] or not sum(sizes[1]):
            raise InputError(
                "one head and one relation a word are needed, predicted and gold.\n"
                f"  Received: {len(predicted)} and {len(gold)} sentences, or sentences of other lengths.\n"
                "  Fix: pass the trees of the same sentences, with one word or more."
            )
        words = heads = both = content = content_gold = content_predicted = 0
        for mine, theirs in zip(predicted, gold, strict=True):
            for my_head, mine_is, head, is_ in zip(*mine[:2], *theirs[:2], strict=True):
                my_kind, kind = mine_is.partition(":")[0], is_.partition(":")[0]
                right = my_head == head and my_kind == kind
                words, heads, both = words + 1, heads + (my_head == head), both + right
                content_gold += kind not in _FUNCTION
                content_predicted += my_kind not in _FUNCTION
                content += right and kind not in _FUNCTION
        return cls(words, heads, both, content, content_gold, content_predicted)

    @property
    def uas(self) -> float:
        """The share of words with the right head."""
        return self.heads / self.words

    @property
    def value(self) -> float:
        """LAS, the share of words with the right head and relation."""
        return self.both / self.words

    @property
    def clas(self) -> float:
        """LAS of content words; 0 where there are none."""
        total = self.content_gold + self.content_predicted
        return 2 * self.content / total if total else 0.0

    @property
    def in_words(self) -> str:
        """All of it, for people."""
        low, high = wilson(self.both, self.words)
        return (
            f"LAS {self.value:.2%} (95 % interval {low:.2%} to {high:.2%}), UAS {self.uas:.2%}, "
            f"CLAS {self.clas:.2%}, {self.words:,} words"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "metric": "las",
            "value": self.value,
            "interval": list(wilson(self.both, self.words)),
            "uas": self.uas,
            "clas": self.clas,
            "words": self.words,
        }
