"""How long the tests of this room run, and where they leave what they have seen.

    make test        a few seconds each
    make soak        SOAK names a file: the long versions, each of which adds a line of figures to it
    make sanitize    UNSPOOL_SANITIZED names the build: a quarter of make test's draws, each many times slower

No test is written here.
"""

import json
import os
import time
from pathlib import Path

SOAK = os.environ.get("SOAK")
SANITIZED = "UNSPOOL_SANITIZED" in os.environ


def draws(short: int, long: int) -> int:
    """How many examples a test draws: `short`, `long` under `make soak`, a quarter if sanitized."""
    return long if SOAK else short // 4 if SANITIZED else short


class Tally:
    """Counts what one test has seen; under `make soak` a line of it is kept.

    A test that was to draw 10,000 cases and drew ten must not look like one that drew them.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.figures: dict[str, float] = {}
        self.started = time.monotonic()

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self.figures[name] = self.figures.get(name, 0) + count

    def worst(self, name: str, figure: float) -> None:
        """Keep the largest of a figure."""
        self.figures[name] = max(self.figures.get(name, 0), figure)

    def close(self) -> None:
        """Keep the line."""
        if SOAK:
            seconds = round(time.monotonic() - self.started)
            line = json.dumps({"what": self.what, **self.figures, "seconds": seconds})
            with Path(SOAK).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
