"""Ctrl-C and SIGTERM as a wish that the loop asks about."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from unspool.run.report import Report


class Interrupted(BaseException):
    """A signal came while the model was being scored."""


class Signals:
    """Ctrl-C and SIGTERM as a wish that the loop asks about, instead of an end at any place."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._received: int | None = None
        self._interrupting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python hands signals to the main thread alone; elsewhere the owner of that thread handles them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def flags(self) -> list[float]:
        """Return whether SIGINT, and whether SIGTERM, came first here."""
        return [float(self._received == number) for number in (signal.SIGINT, signal.SIGTERM)]

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end what runs inside at once, for it changes nothing that is kept."""
        if self._received is not None:
            raise Interrupted
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            self._report.say_from_handler("stopping after this step; last/ is saved first")
        else:
            self._report.say_from_handler("last/ is being saved; please wait")
        if self._interrupting:
            self._interrupting = False
            raise Interrupted


def signal_number(flags: Sequence[float]) -> int:
    """Return the signal that some rank received, or 0."""
    return int(signal.SIGINT if flags[0] else signal.SIGTERM if flags[1] else 0)
