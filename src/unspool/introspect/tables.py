"""Results as people read them: a short text, a table in a notebook, a table of pandas, from the same columns.

Knows no result: each says its title and its columns.  Pictures are drawn by `page.plots`.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from unspool.errors import MissingExtra

_HEAD, _TAIL = 14, 6  # rows of a text; what lies between is counted
_PAGE = 60  # rows of a notebook's table


class Shown(ABC):
    """What every result has: a line for the prompt, a short text, HTML for a notebook, `to_frame`."""

    @abstractmethod
    def title(self) -> str:
        """What this is, in a line."""

    @abstractmethod
    def columns(self) -> Mapping[str, Any]:
        """The result's rows, column by column, all of one length."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title()}>"

    def __str__(self) -> str:
        return "\n".join([self.title(), *lines(self.columns())])

    def _repr_html_(self) -> str:
        return html(self.title(), self.columns())

    def to_frame(self) -> Any:
        """The rows as a pandas table.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return frame(self.columns())


def frame(columns: Mapping[str, Any]) -> Any:
    """A pandas table of columns of one length.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise MissingExtra("a table", "pandas", "tables") from error
    return pandas.DataFrame(dict(columns))


def lines(columns: Mapping[str, Any]) -> list[str]:
    """The columns under their names, numbers to the right; of a long table the first and the last rows."""
    rows, left_out = _rows(columns, _HEAD, _TAIL)
    cells = [tuple(columns), *([said(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [any(_number(row[i]) for row in rows) for i in range(len(widths))]
    found = [
        "  "
        + "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    if left_out:
        found.insert(1 + _HEAD, f"  … {left_out:,} more")
    return found


def html(title: str, columns: Mapping[str, Any]) -> str:
    """A table of HTML; names and words come from anywhere, so no mark-up of theirs is kept."""
    rows, left_out = _rows(columns, _PAGE - _TAIL, _TAIL)
    body = ["".join(f"<td>{escape(said(value))}</td>" for value in row) for row in rows]
    if left_out:
        body.insert(_PAGE - _TAIL, f'<td colspan="{len(columns)}">… {left_out:,} more</td>')
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>"
        + "".join(f"<tr>{row}</tr>" for row in body)
        + "</tbody></table>"
    )


def said(value: Any) -> str:
    """A value as tables show it: four digits, nothing for None."""
    if value is None:
        return "–"
    if not _number(value):
        return str(value)
    if isinstance(value, int) or (getattr(value, "dtype", None) is not None and value.dtype.kind in "iu"):
        return f"{int(value):,}"
    return f"{float(value):.4g}" if math.isfinite(value) else str(float(value))


def _number(value: Any) -> bool:
    if isinstance(value, bool | str):
        return False
    return isinstance(value, int | float) or (getattr(value, "ndim", None) == 0 and value.dtype.kind in "iuf")


def _rows(columns: Mapping[str, Any], head: int, tail: int) -> tuple[list[tuple[Any, ...]], int]:
    rows = list(zip(*columns.values(), strict=True))
    left_out = max(0, len(rows) - head - tail)
    return (rows[:head] + rows[len(rows) - tail :] if left_out else rows), left_out


def by_column(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of the same names as columns."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found
