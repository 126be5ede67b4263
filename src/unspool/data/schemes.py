"""Labels that mark spans (entities, chunks): IOB1, IOB2 and BIOES, read, checked and converted.

    IOB1    I-X inside; B-X only where a span follows on one of the same kind at once
    IOB2    B-X at every beginning, I-X inside
    BIOES   B-X, I-X, E-X at the end; S-X a span of one word (IOBES, BILOU with other letters)

A span is (kind, first word, word after the last).  Spans are found as the scorer of the CoNLL-2000 task
finds them, by the same rule whatever the labels: what breaks its scheme can be scored too.

Source: Ramshaw and Marcus 1995; Tjong Kim Sang and Veenstra 1999; Tjong Kim Sang and Buchholz 2000 (scoring).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from unspool.errors import DataError

Scheme = Literal["iob1", "iob2", "bioes"]
OUTSIDE = "O"
_PREFIXES = frozenset("BIES")


class Span(NamedTuple):
    """Some words that belong together."""

    kind: str
    first: int
    stop: int


def split(label: str) -> tuple[str, str]:
    """Cut a label into its prefix and its kind: B-LOC to (B, LOC), O to (O, "")."""
    prefix, _, kind = label.partition("-")
    return prefix, kind


def marks_spans(labels: Iterable[str]) -> bool:
    """Say whether these labels mark spans: O, or B, I, E, S before a kind; and not O alone."""
    seen = set(labels)
    marked = seen - {OUTSIDE}
    return bool(marked) and all(
        label[:1] in _PREFIXES and label[1:2] == "-" and len(label) > 2 for label in marked
    )


def spans(labels: Sequence[str]) -> list[Span]:
    """List the spans of a sentence's labels, in order.

    A span begins at B and S, and wherever I or E stands behind O, another kind, E or S; it ends before the
    next beginning or O, and after E and S.
    """
    found: list[Span] = []
    kind, first, before = "", 0, OUTSIDE
    for at, label in enumerate([*labels, OUTSIDE]):
        prefix, now = split(label)
        inside = kind != ""
        starts = prefix in ("B", "S") or (
            prefix in ("I", "E") and (not inside or now != kind or before in ("E", "S"))
        )
        if inside and (starts or prefix == OUTSIDE):
            found.append(Span(kind, first, at))
            kind = ""
        if starts:
            kind, first = now, at
        before = prefix
    return found


def labels_of(found: Iterable[Span], length: int, scheme: Scheme) -> list[str]:
    """Write spans that do not overlap as labels."""
    labels = [OUTSIDE] * length
    previous: Span | None = None
    for span in sorted(found, key=lambda span: span.first):
        kind, first, stop = span
        touches = previous is not None and previous.stop == first and previous.kind == kind
        if scheme == "bioes":
            inner = [f"I-{kind}"] * (stop - first - 2)
            whole = [f"B-{kind}", *inner, f"E-{kind}"] if stop - first > 1 else [f"S-{kind}"]
        else:
            begins = "B" if scheme == "iob2" or touches else "I"
            whole = [f"{begins}-{kind}", *[f"I-{kind}"] * (stop - first - 1)]
        labels[first:stop] = whole
        previous = span
    return labels


def scheme_of(sentences: Iterable[Sequence[str]], where: str) -> Scheme:
    """Tell which scheme the labels of a file follow.

    Raises:
        DataError: they follow none: mixed schemes, or a label that no scheme puts there.
    """
    candidates: dict[Scheme, str | None] = {"iob2": None, "iob1": None, "bioes": None}
    for number, labels in enumerate(sentences, start=1):
        for scheme, fault in candidates.items():
            if fault is None and labels_of(spans(labels), len(labels), scheme) != list(labels):
                candidates[scheme] = f"sentence {number}: {' '.join(labels)!r:.100}"
        if None not in candidates.values():
            lines = "\n".join(f"  Not {scheme}: {fault}." for scheme, fault in candidates.items())
            raise DataError(
                f"{where}: the labels follow no scheme throughout.\n{lines}\n"
                f"  Fix: one scheme for the whole file: IOB1, IOB2 or BIOES."
            )
    return next(scheme for scheme, fault in candidates.items() if fault is None)


def may_follow(before: str, label: str) -> bool:
    """Say whether BIOES allows a label behind another; "" stands for the sentence's beginning or end."""
    prefix, kind = split(before or OUTSIDE)
    now, its_kind = split(label or OUTSIDE)
    if prefix in ("B", "I"):
        return now in ("I", "E") and its_kind == kind
    return now in ("B", "S", OUTSIDE)
