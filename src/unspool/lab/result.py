"""What an experiment hands back: tables, what is claimed and whether it held, what was published.

Data and their text form; no experiment's knowledge, no torch, and matplotlib only where a picture is
asked for.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unspool.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".svg", ".png", ".pdf")


class Table(NamedTuple):
    """Rows of numbers and words under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str = ""

    def text(self) -> str:
        """The table in aligned columns, numbers to the right."""
        cells = [self.head, *(tuple(said(value) for value in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.head))]
        right = [any(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.head))]
        lines = [
            "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, *lines] if self.title else lines)


class Claim(NamedTuple):
    """A sentence that the run has to bear out, and whether it did."""

    said: str
    holds: bool


class Published(NamedTuple):
    """A figure from here beside one that was published."""

    what: str
    here: str
    published: str
    source: str


@dataclasses.dataclass(frozen=True)
class Result:
    """All that one experiment found."""

    name: str
    title: str
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    figures: dict[str, Any]  # the same as data, for --json
    draw: Callable[["Figure"], None]
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()  # the protocol, and where it departs from the paper's

    @property
    def holds(self) -> bool:
        """Whether every claim held."""
        return all(bool(claim.holds) for claim in self.claims)

    def text(self) -> str:
        """The experiment as it is printed."""
        parts = [f"{self.name}: {self.title}", *(table.text() for table in self.tables)]
        if self.published:
            parts.append(Table(("", "here", "published", "source"), self.published).text())
        parts.append("\n".join(f"{'yes' if claim.holds else 'NO '}  {claim.said}" for claim in self.claims))
        if self.notes:
            parts.append("\n".join(self.notes))
        return "\n\n".join(parts)

    def json(self) -> dict[str, Any]:
        """The experiment as one object that JSON can hold: what is not finite becomes None."""
        return {
            "name": self.name,
            "title": self.title,
            "holds": self.holds,
            "claims": [{"said": claim.said, "holds": bool(claim.holds)} for claim in self.claims],
            "published": [each._asdict() for each in self.published],
            "notes": list(self.notes),
            "figures": _plain(self.figures),
        }

    def plot(self, path: Path) -> None:
        """Draw the experiment's picture into a file; the same bytes for the same numbers.

        Raises:
            ConfigError: the name does not end in .svg, .png or .pdf.
            MissingExtra: matplotlib is not installed.
        """
        check_picture(path)
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise MissingExtra("drawing", "matplotlib", "plot") from error
        style: Any = {
            "svg.hashsalt": self.name,
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "path.simplify_threshold": 0.5,
        }
        # Neither the date nor the version of the drawing program: a picture changes when its numbers do.
        dated: dict[str, Any] = {
            ".svg": {"Date": None, "Creator": None},
            ".pdf": {"CreationDate": None},
            ".png": {},
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(6.4, 3.2), layout="constrained")
            self.draw(figure)
            figure.savefig(path, metadata=dated[path.suffix], dpi=120)


def check_picture(path: Path) -> None:
    """Refuse a name that does not say which kind of picture is wanted."""
    if path.suffix not in PICTURES:
        raise ConfigError(
            f"what to draw cannot be told from the name {path}.\n  Fix: end it in {', '.join(PICTURES)}."
        )


def said(value: Any) -> str:
    """A value as tables show it: four digits, thousands apart, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    return _plain(value.tolist())  # an array, or a number of NumPy's
