"""Spans and their labels, against a scorer written another way."""

import itertools
import random

import pytest

from unspool.data import schemes
from unspool.data.schemes import Span, labels_of, marks_spans, scheme_of, spans
from unspool.errors import DataError
from unspool.metrics import SpanScore


def random_spans(draw: random.Random, length: int) -> list[Span]:
    found, at = [], 0
    while at < length:
        size = draw.randint(1, 3)
        if draw.random() < 0.6 and at + size <= length:
            found.append(Span(draw.choice(["LOC", "PER", "A-B"]), at, at + size))
        at += size
    return found


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_labels_and_spans_say_the_same(scheme: schemes.Scheme) -> None:
    draw = random.Random(3)
    written = []
    for _ in range(300):
        found = random_spans(draw, draw.randint(0, 9))
        labels = labels_of(found, 9, scheme)
        assert spans(labels) == found
        written.append(labels)
    assert scheme_of(written, "a.txt") == scheme


def by_the_tables(labels: list[str]) -> list[Span]:
    """The CoNLL-2000 scorer's two tables: does a span end between two labels, does one start."""
    ends = {"BB", "BS", "BO", "IB", "IS", "IO", "EE", "EI", "EO", "EB", "ES", "SE", "SI", "SO", "SB", "SS"}
    starts = {"BB", "IB", "OB", "EB", "SB", "BS", "IS", "OS", "ES", "SS", "EE", "EI", "SE", "SI", "OE", "OI"}
    found, first = [], None
    for at, (before, now) in enumerate(zip(["O", *labels], [*labels, "O"], strict=True)):
        pair = before[0] + now[0]
        other = before[2:] != now[2:]
        if first is not None and (pair in ends or (before != "O" and other)):
            found.append(Span(labels[at - 1][2:], first, at))
            first = None
        if pair in starts or (now != "O" and other):
            first = at
    return found


def test_broken_labels_are_scored_as_the_shared_task_scores_them() -> None:
    draw = random.Random(5)
    every = ["O", *(f"{p}-{k}" for p in "BIES" for k in ("X", "Y"))]
    for _ in range(3000):
        labels = draw.choices(every, k=draw.randint(0, 7))
        assert spans(labels) == by_the_tables(labels), labels


def test_what_bioes_allows_is_what_it_writes() -> None:
    draw = random.Random(7)
    for _ in range(200):
        labels = ["", *labels_of(random_spans(draw, 6), 6, "bioes"), ""]
        assert all(schemes.may_follow(a, b) for a, b in itertools.pairwise(labels))
    for a, b in (("", "I-X"), ("B-X", ""), ("B-X", "O"), ("B-X", "E-Y"), ("E-X", "I-X"), ("O", "E-X")):
        assert not schemes.may_follow(a, b)


def test_mixed_schemes_are_refused_with_an_example_each() -> None:
    with pytest.raises(DataError, match=r"sentence 2") as caught:
        scheme_of([["B-X", "I-X"], ["S-X", "O"], ["I-X", "O"]], "a.txt")
    assert "Not bioes" in str(caught.value)
    assert "Fix:" in str(caught.value)


def test_which_labels_mark_spans() -> None:
    assert marks_spans(["O", "B-X"])
    assert not marks_spans(["O"])
    assert not marks_spans(["NOUN", "I"])
    assert not marks_spans(["B-X", "NOUN"])


def test_f1_counts_exact_matches() -> None:
    gold = [["B-X", "I-X", "O", "B-Y"], ["O"]]
    found = SpanScore.of([["B-X", "O", "O", "B-Y"], ["B-X"]], gold)
    assert (found.right, found.found, found.gold) == (1, 3, 2)
    assert (found.precision, found.recall, found.value) == (1 / 3, 1 / 2, 0.4)
    assert SpanScore.of([["O"]], [["O"]]).value == 0.0
