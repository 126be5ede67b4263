"""What recipes leave behind: the files of a model folder, a row in its card, and what the run came to."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from unspool import __version__, files
from unspool import model as serving
from unspool.vocabulary import Vocabulary


class Measured(Protocol):
    """A part's score, as `metrics` and the models have them."""

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        ...

    @property
    def in_words(self) -> str:
        """It in a line, for people."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training came to.

    folder, best: the run folder, and the best epoch's model in it.
    metric, dev: what the dev part was scored with, and the best epoch's score.
    part, measured: the part that was measured in the end, test, or dev where there is no test; and its score.
    commands: what to type next, with {best} where the model's folder stands.
    """

    folder: Path
    best: Path
    metric: str
    dev: float
    part: str
    measured: Measured
    commands: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        where = {"folder": str(self.folder), f"dev_{self.metric}": self.dev, "part": self.part}
        return {**where, **self.measured.as_json}

    def in_words(self) -> str:
        """What was measured, for people."""
        return f"{self.part} {self.measured.in_words}"

    def next_commands(self, best: str) -> tuple[str, ...]:
        """What to type next; `best` is the model's folder, quoted."""
        return tuple(command.replace("{best}", best) for command in self.commands)


def folder(
    tensors: Mapping[str, NDArray[Any]],
    description: Any,
    vocabularies: Mapping[str, Vocabulary],
    card: str,
) -> dict[str, bytes]:
    """The files of a model folder; `vocabularies` by their file's name."""
    return {
        serving.CONFIG: serving.config_text(description.as_config(), tensors, __version__),
        **{name: vocabulary.to_bytes() for name, vocabulary in vocabularies.items()},
        files.WEIGHTS: files.pack(tensors),
        serving.CARD: card.encode(),
    }


def note_test(best: Path, cell: str) -> None:
    """Add the test part's row to the table of a model card, after the dev part's."""
    kept = files.read_folder(best)
    # A finished run that is resumed comes here again: its card has the row already.
    lines = [line for line in kept[serving.CARD].decode().split("\n") if not line.startswith("| test |")]
    row = next(i for i, line in enumerate(lines) if line.startswith("| dev ("))
    lines.insert(row + 1, f"| test | {cell} |")
    files.write_folder(best, {**kept, serving.CARD: "\n".join(lines).encode()})
