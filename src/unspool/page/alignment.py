"""Draw where each unit that was made looked: a matrix of attention, for a terminal or as a page.

Nothing is computed.  Units come from anywhere, so no control character of theirs reaches a terminal, and no
mark-up of theirs a page.
"""

from html import escape

from unspool.page.lettering import cleaned, columns_of
from unspool.translator import Translation

_SHADES = " ░▒▓█"
_LEAST = 0.05  # smaller shares leave a cell of the terminal empty


def terminal(found: Translation) -> str:
    """Draw the matrix in signs: a row for each target unit, a column for each source unit."""
    source = [cleaned(_plain(unit)) for unit in found.source]
    target = [cleaned(_plain(unit)) for unit in found.target]
    edge = max(map(columns_of, target))
    # Source units stand from the top down, a character a line, over columns of two cells.
    tall = max(map(len, source))
    lines = [
        " " * (edge + 2) + "".join(f"{unit.rjust(tall)[k]} " for unit in source).rstrip() for k in range(tall)
    ]
    for unit, row in zip(target, found.attention, strict=True):
        shades = "".join(_SHADES[0 if s < _LEAST else min(int(s * 4) + 1, 4)] * 2 for s in row)
        lines.append(f"{' ' * (edge - columns_of(unit))}{unit}  {shades.rstrip()}")
    return "\n".join(
        [
            *lines,
            "",
            f"{found.text}",
            f"score {found.score:.4f}, log-probability {found.log_probability:.4f}; "
            "each row shows where the step of a target unit looked",
        ]
    )


def html(found: Translation) -> str:
    """Draw one self-contained page; it asks nothing of any network and runs no script."""
    head = "".join(
        f"<th><span><bdi>{escape(cleaned(_plain(unit)))}</bdi></span></th>" for unit in found.source
    )
    rows = "\n".join(
        f"<tr><th><bdi>{escape(cleaned(_plain(unit)))}</bdi></th>"
        + "".join(f'<td style="--share:{share:.3f}" title="{share:.1%}"></td>' for share in row)
        + "</tr>"
        for unit, row in zip(found.target, found.attention, strict=True)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>attention</title>
<style>
body {{ margin: 2rem auto; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; padding: 0 1rem }}
table {{ border-collapse: collapse }}
th {{ font-weight: 400; text-align: right; padding: 0 .5rem; white-space: nowrap }}
thead th {{ vertical-align: bottom; padding: .5rem 0 }}
thead span {{ writing-mode: vertical-rl; transform: rotate(180deg) }}
td {{ width: 1.6rem; height: 1.6rem; border: 1px solid #8884;
  background: rgba(41, 121, 196, var(--share)) }}
</style>
</head>
<body>
<h1><bdi>{escape(cleaned(found.text))}</bdi></h1>
<p>score {found.score:.4f}, log-probability {found.log_probability:.4f}. Each row shows where
the step of a target unit looked; the darker, the more.</p>
<table>
<thead><tr><th></th>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body></html>
"""


def _plain(unit: str) -> str:
    """Subwords mark the beginning of a word by Ġ; a mark that people know is shown."""
    return unit.replace("Ġ", "▁")
