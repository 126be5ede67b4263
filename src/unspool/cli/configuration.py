"""Options from a file: the config.toml that a run leaves, put before those of the command line."""

import tomllib
from pathlib import Path
from typing import Any

from unspool.errors import ConfigError


def applied(tokens: list[str]) -> tuple[list[str], str | None]:
    """Put the options of `--config FILE` before the others; those on the command line win.

    Returns:
        The tokens, with the recipe that the file names if they name none, and the file's name.
    """
    kept: list[str] = []
    path: str | None = None
    rest = iter(tokens)
    for token in rest:
        if token == "--config":
            path = next(rest, None)
            if path is None:
                raise ConfigError("--config needs a file.\n  Fix: --config RUN/config.toml.")
        elif token.startswith("--config="):
            path = token.removeprefix("--config=")
        else:
            kept.append(token)
    if path is None:
        return tokens, None
    content = read(Path(path))
    given = {"--quiet" if token == "-q" else token.split("=")[0] for token in kept}
    added: list[str] = []
    for section, entries in content.items():
        if not isinstance(entries, dict):
            raise ConfigError(
                f"{path}: {section} stands outside a section.\n  Fix: put it under [sentiment] or [training]."
            )
        if section == "run":
            if len(kept) == 1 or kept[1].startswith("-"):
                kept.insert(1, str(entries.get("task")))
            continue
        for key, value in entries.items():
            flag = "--" + key.replace("_", "-")
            if not given & {flag, f"--no-{flag[2:]}"}:
                added.append(f"{flag}={str(value).lower() if isinstance(value, bool) else value}")
    return [*kept[:2], *added, *kept[2:]], path


def read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as a configuration.\n  Received: {error}\n"
            f"  Fix: give a TOML file such as RUN/config.toml."
        ) from error
