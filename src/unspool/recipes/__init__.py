"""One readable file a task: Config, data, model, loss, score.  Lazy, since recipes import torch."""

import importlib
from types import ModuleType

from unspool.errors import ConfigError, MissingExtra

NAMES = ("sentiment", "tagging", "parsing", "language-model", "translation")


def load(name: str) -> ModuleType:
    """Load a recipe by its task's name.

    Raises:
        ConfigError: there is no such recipe.
        MissingExtra: torch is not installed.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no recipe {name!r}.\n  Fix: use one of {', '.join(NAMES)}.")
    try:
        return importlib.import_module("unspool.recipes." + name.replace("-", "_"))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("training", "torch", "train") from error
