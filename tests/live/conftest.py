"""What the session saw becomes benchmarks/results/exchange-live.md; without Keras nothing is collected."""

import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

collect_ignore_glob = [] if find_spec("keras") and find_spec("flax") else ["test_*.py"]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Written when all went well, and all was run."""
    if exitstatus or collect_ignore_glob or session.config.option.keyword:
        return
    from test_live import WORST

    from stamp import commit, machine
    from unspool.kernels import choose

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("keras", "flax", "jax", "numpy"))
    about = f"`make exchange-test`, {time.strftime('%Y-%m-%d')}, commit {commit()}, {machine()}"
    lines = [
        "# Conversions beside the live libraries",
        "",
        f"{about}, {choose('float32').describe()}; {versions}.",
        "",
        f"{session.testscollected} tests passed. Largest difference between the library's outputs and ours, "
        "where weights went one way or the other; what came from a library went back with the same bits.",
        "",
        "| weights | largest difference |",
        "|---|---|",
        *(f"| {name} | {difference:.1e} |" for name, difference in WORST.items()),
        "",
    ]
    (ROOT / "benchmarks" / "results" / "exchange-live.md").write_text("\n".join(lines), encoding="utf-8")
