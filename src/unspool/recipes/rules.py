"""What recipes' options have in common: where the data come from, and what is refused in the same words."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unspool.errors import ConfigError

# An option's name, what it may be, and whether it is.
Rule = tuple[str, str, bool]


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on; a recipe adds what is trained."""

    data: str = ""
    """A benchmark.  Not used where train is given."""

    train: Path | None = None
    """Your own training file."""

    dev: Path | None = None
    """Your own file to choose the best epoch by; without it a tenth of train is held out."""

    test: Path | None = None
    """Your own file to report the score on; without it the dev file's is reported."""

    data_dir: Path | None = None
    """The folder with the benchmarks' files; else the variable UNSPOOL_DATA, or what can be fetched."""

    @property
    def where(self) -> str:
        """What is trained on, in messages: the benchmark's name, or the file."""
        return self.data if self.train is None else str(self.train)

    @property
    def trained_on(self) -> str:
        """The same in a model card, which goes to others: without the file's folder."""
        return self.data if self.train is None else self.train.name


def check(config: Any, *rules: Rule | Iterator[Rule]) -> None:
    """Refuse the first option that breaks its rule.

    Raises:
        ConfigError: with the option's name, what it is and what it may be.
    """
    for name, allowed, held in _flat(rules):
        if not held:
            raise ConfigError(
                f"the option {name} is out of its range.\n"
                f"  Received: {getattr(config, name)}\n  Fix: {allowed}."
            )


def one_of(config: Any, name: str, allowed: Iterable[str]) -> Rule:
    """The option is one of these names."""
    names = tuple(allowed)
    return name, ", ".join(names), getattr(config, name) in names


def positive(config: Any, *names: str) -> Iterator[Rule]:
    """The options are 1 or more."""
    return ((name, "1 or more", getattr(config, name) >= 1) for name in names)


def shares(config: Any, *names: str) -> Iterator[Rule]:
    """The options are shares that leave something: at least 0 and below 1."""
    return ((name, "at least 0 and below 1", 0 <= getattr(config, name) < 1) for name in names)


def data(config: Any, names: Iterable[str]) -> Iterator[Rule]:
    """What is read is a benchmark's parts, or train with, if given, dev and test."""
    own = config.train is not None
    yield "data", ", ".join(names), own or config.data in names
    for name in ("dev", "test"):
        yield name, "given only with train", own or getattr(config, name) is None


def _flat(rules: Iterable[Rule | Iterator[Rule]]) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule, tuple):
            yield rule
        else:
            yield from rule
