"""Run a long verification and write down what it saw: benchmarks/results/verification.json and .md.

    python benchmarks/verification.py soak        tests/verification, the long versions, file by file
    python benchmarks/verification.py soak/bits   one of these files, test_bits.py
    python benchmarks/verification.py address     tests/sanitize.py: on an engine built with ASan and UBSan
    python benchmarks/verification.py thread      the same with TSan
    python benchmarks/verification.py sanitize    both, one after the other
    python benchmarks/verification.py thread tests/test_stream.py    these files alone

Each, and each file, keeps its own part of the results, with its own date and commit; what failed is written
down as failed.  Exit code 1 then.
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
SOAKED = "tests/verification"

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


def soak(name: str) -> tuple[bool, list[str]]:
    """The lines that a file's tests leave, each with its figures; else pytest's closing line."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", f"{SOAKED}/test_{name}.py"]
        environment = os.environ | {"SOAK": str(figures), "REQUIRE": "native"}
        passed, closing = _told(command, ("passed", "failed", "FAILED", "Error"), environment)
        lines = figures.read_text(encoding="utf-8").splitlines() if figures.exists() else []
    told = [_in_words(json.loads(line)) for line in lines]
    return passed, told + [f"test_{name}.py: {line}" for line in closing]


def _in_words(figures: dict[str, Any]) -> str:
    what = figures.pop("what")
    seconds = figures.pop("seconds")
    told = [
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.2g}"
        for name, value in figures.items()
    ]
    return f"{what}: {', '.join(told)} ({seconds} s)"


def sanitized(name: str, files: list[str]) -> dict[str, tuple[bool, list[str]]]:
    """What each file's process came to, pytest's closing line; what was left out; what a fault said."""
    marks = ("tests/", "left out", "ERROR: ", "WARNING: ThreadSanitizer", "runtime error")
    passed, lines = _told([sys.executable, "tests/sanitize.py", name, *files], marks)
    parts: dict[str, tuple[bool, list[str]]] = {}
    for line in lines:
        file, _, closing = line.partition(".py: ")
        if closing and file.startswith("tests/") and " " not in file:
            parts[f"{name}/{file}.py"] = closing != "failed", [line]
        else:
            good, said = parts.get(f"{name}/", (True, []))
            parts[f"{name}/"] = good and line.startswith("left out"), [*said, line]
    if not passed and all(good for good, _ in parts.values()):
        _, said = parts.get(f"{name}/", (True, []))
        parts[f"{name}/"] = False, [*said, "it ended early: the build failed, or no test was run"]
    return parts


def _told(
    command: list[str], marks: tuple[str, ...], environment: dict[str, str] | None = None
) -> tuple[bool, list[str]]:
    """Run, show everything, keep the lines that hold one of the marks."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    kept = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if line.strip() and any(mark in line for mark in marks):
            kept.append(line.strip())
    return process.wait() == 0, kept


def render(parts: dict[str, Any]) -> str:
    """The results as Markdown: what was seen in one run stands above its stamp."""
    lines = ["# Verification", ""]
    for kind, told in ABOUT.items():
        own = [part for name, part in sorted(parts.items()) if name.split("/")[0] == kind]
        if not own:
            continue
        passed = all(part["passed"] for part in own)
        lines += [f"## {kind}: {'passed' if passed else 'FAILED'}", "", told, ""]
        for stamped in dict.fromkeys(in_words(part["about"]) for part in own):
            same = [part for part in own if in_words(part["about"]) == stamped]
            lines += [f"- {line}" for part in same for line in part["lines"]] + ["", stamped, ""]
    return "\n".join(lines)


def keep(name: str, files: list[str]) -> bool:
    """Run one, keep what it saw; whether all went well."""
    kind, _, file = name.partition("/")
    about = stamp(f"make {'soak' if kind == 'soak' else 'sanitize'}")
    seen = {name: soak(file)} if kind == "soak" else sanitized(name, files)
    parts = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for each, (passed, lines) in seen.items():
        parts[each] = {"passed": passed, "about": about, "lines": lines}
    RESULTS.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(render(parts), encoding="utf-8")
    return all(passed for passed, _ in seen.values())


def main(words: list[str]) -> int:
    """Run what is named."""
    soaked = [f"soak/{file.stem.removeprefix('test_')}" for file in sorted((ROOT / SOAKED).glob("test_*.py"))]
    runs = {name: [name] for name in ("address", "thread", *soaked)}
    runs |= {"sanitize": ["address", "thread"], "soak": soaked}
    files = [word for word in words if word.startswith("tests/")]
    names = [word for word in words if word not in files]
    if not names or not set(names) <= runs.keys():
        print(__doc__)
        return 2
    went_well = [keep(each, files) for name in names for each in runs[name]]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
