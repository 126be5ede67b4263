"""What a run was measured on, found again by the record that it left: config.toml beside its model folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unspool.cli import configuration
from unspool.errors import ConfigError, DataError

E = TypeVar("E")


def own_part(
    model: Path,
    task: str,
    needed: Sequence[str],
    *,
    read: Callable[[Mapping[str, Any], str], list[E]],
    hold_out: Callable[[list[E]], tuple[list[E], list[E]]],
    benchmark: Callable[[Mapping[str, Any]], list[E]],
) -> tuple[str, list[E]]:
    """Read again what the run of a model folder was measured on, as the run read it.

    The recipe, which has a reader for it, would import torch.

    Args:
        model: RUN/best or RUN/last.
        task: the record's section.
        needed: the options that `read` and `benchmark` look up; old and foreign records may lack them.
        read: from the record and the name of one of its files, its examples.
        hold_out: the examples trained on and those held out, where there was a training file alone.
        benchmark: from the record, the benchmark's test part.

    Returns:
        The part's name, test or dev, and its examples.

    Raises:
        DataError: there is no record, or a file is not what it should be.
        ConfigError: the record is none of such a run.
    """
    path = model.absolute().parent / "config.toml"
    fix = "  Fix: say what to measure on with --data FILE."
    if not path.is_file():
        raise DataError(f"what {model} was measured on is not known here: there is no {path}.\n{fix}")
    content = configuration.read(path)
    try:
        record = content[task]
        for name in ("data", *needed):
            record[name]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the record of a run.\n  Received: {error!r}\n{fix}") from error
    for part in ("test", "dev"):
        if part in record:
            return part, read(record, part)
    if "train" in record:
        return "dev", hold_out(read(record, "train"))[1]
    return "test", benchmark(record)
