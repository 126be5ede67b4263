"""What the session saw becomes benchmarks/results/thirdparty.json and .md."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from comparison import ROWS  # noqa: E402

from stamp import in_words, stamp  # noqa: E402
from unspool.kernels import native  # noqa: E402


def pytest_sessionstart() -> None:
    torch.set_num_threads(native.threads())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Written when all went well: a table with holes would look whole."""
    if exitstatus or not ROWS or session.config.option.keyword:
        return
    about = stamp("make thirdparty") | {"python": sys.version.split()[0], "numpy": metadata.version("numpy")}
    rows = [row._asdict() | {"ratio": row.ratio} for row in ROWS]
    results = ROOT / "benchmarks" / "results"
    text = json.dumps({"about": about, "rows": rows}, indent=1)
    (results / "thirdparty.json").write_text(text + "\n", encoding="utf-8")
    lines = [
        "# Others' code, unchanged",
        "",
        "Models and algorithms of other packages, as they are installed, with torch's recurrent layers and",
        "with ours in their place: the same outputs and gradients, and the time of both, taken in turns.",
        "",
        f"{in_words(about)}",
        "",
        "| package | what | layers swapped | largest difference | torch's, ms | ours, ms | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.package} {row.version} | {row.what} | {row.swapped} | {row.apart:.0e} | {row.theirs_ms:.1f} "
        f"| {row.ours_ms:.1f} | {row.ratio:.2f} |"
        for row in ROWS
    ]
    lines += [
        "",
        "A difference is that of an output or a gradient, measured against the largest number of its array.",
        "Times are of the whole model's call, forward and backward, with whatever else it computes.",
        "",
    ]
    (results / "thirdparty.md").write_text("\n".join(lines), encoding="utf-8")
