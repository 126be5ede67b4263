"""What every measurement is stamped with: when, where, on which commit, with which kernels."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from unspool.kernels import choose, native


def stamp(command: str) -> dict[str, object]:
    """The stamp of a result that `command` makes."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "kernels": choose("float32").describe(),
        "threads": native.threads(),
        "torch": metadata.version("torch"),
    }


def in_words(about: dict[str, object]) -> str:
    """The stamp as a line of Markdown."""
    return ", ".join(f"{key}: {value}" for key, value in about.items()) + "."


def commit() -> str:
    """The commit that is checked out, marked where what it holds is changed, but for results themselves."""
    found = _git("describe", "--always", "--exclude", "*")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results"
    )
    return found + ("-dirty" if changed else "") if found else "unknown"


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> str:
    """The processor's name, family and model, where the system tells them, and how many cores there are.

    Several generations go by one name: an AMD EPYC of family 25 is a Zen 3 or 4, one of family 26 a Zen 5.
    """
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line.partition(":") for line in information.read_text().splitlines()]
        told = {key.strip(): value.strip() for key, _, value in lines}
        name = told.get("model name", name)
        if "cpu family" in told:
            name += f" (family {told['cpu family']}, model {told['model']})"
    return f"{name}, {os.cpu_count()} cores"
