"""Run a long verification and write down what it saw: benchmarks/results/verification.json and .md.

    python benchmarks/verification.py soak        tests/verification, the long versions
    python benchmarks/verification.py address     tests/sanitize.py: on an engine built with ASan and UBSan
    python benchmarks/verification.py thread      the same with TSan
    python benchmarks/verification.py sanitize    both, one after the other

Each keeps its own part of the results, with its own date and commit; what failed is written down as failed.
Exit code 1 then.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stamp import in_words, stamp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "verification.json"

ABOUT = {
    "soak": "What must never differ, overrun or crash, drawn by hypothesis: `tests/verification`.",
    "address": (
        "`tests/sanitize.py address`: the engine built with gcc's ASan and UBSan; the runtimes are preloaded "
        "into an ordinary Python, leaks are not looked for. A fault ends the process: what passed is clean."
    ),
    "thread": (
        "`tests/sanitize.py thread`: the engine built with gcc's TSan, on its own threads; Python and torch "
        "are not instrumented. A race ends the process: what passed is clean."
    ),
}


def soak() -> tuple[bool, list[str]]:
    """The lines that the tests leave, each with its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", "tests/verification"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"SOAK": str(file), "REQUIRE": "native"})
        lines = (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if file.exists()
            else []
        )
    return done.returncode == 0, [_in_words(line) for line in lines]


def _in_words(figures: dict[str, Any]) -> str:
    what = figures.pop("what")
    seconds = figures.pop("seconds")
    told = [
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.2g}"
        for name, value in figures.items()
    ]
    return f"{what}: {', '.join(told)} ({seconds} s)"


def sanitized(name: str) -> tuple[bool, list[str]]:
    """What a build ran and what was left out, and pytest's closing line."""
    marks = ("passed", "failed", "FAILED", "error", "ERROR:", "WARNING: ThreadSanitizer", "left out")
    return _told([sys.executable, "tests/sanitize.py", name], marks)


def _told(command: list[str], marks: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Run, show everything, keep the lines that hold one of the marks."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kept = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if line.strip() and any(mark in line for mark in marks):
            kept.append(line.strip())
    return process.wait() == 0, kept


def render(parts: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Verification", ""]
    for name in ABOUT:
        if name not in parts:
            continue
        part = parts[name]
        lines += [
            f"## {part['about']['command']}: {'passed' if part['passed'] else 'FAILED'}",
            "",
            ABOUT[name],
            "",
        ]
        lines += [f"- {line}" for line in part["lines"]]
        lines += ["", in_words(part["about"]), ""]
    return "\n".join(lines)


def keep(name: str) -> bool:
    """Run one, keep what it saw; whether all went well."""
    about = stamp("make soak" if name == "soak" else f"make sanitize ({name})")
    passed, lines = soak() if name == "soak" else sanitized(name)
    parts = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    parts[name] = {"passed": passed, "about": about, "lines": lines}
    RESULTS.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(render(parts), encoding="utf-8")
    return passed


def main(names: list[str]) -> int:
    """Run what is named."""
    runs = {name: [name] for name in ABOUT} | {"sanitize": ["address", "thread"]}
    if len(names) != 1 or names[0] not in runs:
        print(__doc__)
        return 2
    went_well = [keep(name) for name in runs[names[0]]]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
