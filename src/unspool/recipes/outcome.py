"""What recipes leave behind: the files of a model folder, and what is noted in its card in the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unspool import __version__, files
from unspool import model as serving
from unspool.vocabulary import Vocabulary


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
    row = next(i for i, line in enumerate(lines) if line.startswith("| dev (chose"))
    lines.insert(row + 1, f"| test | {cell} |")
    files.write_folder(best, {**kept, serving.CARD: "\n".join(lines).encode()})
