"""What recipes refuse in their options, in the same words."""

from collections.abc import Iterable, Iterator
from typing import Any

from unspool.errors import ConfigError

# An option's name, what it may be, and whether it is.
Rule = tuple[str, str, bool]


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
