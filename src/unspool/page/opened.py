"""What the page looks at: a model, a recording, or a failure report, from a path or from dropped files."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unspool import files, introspect, language, model, parser, sentences, tagger, translator
from unspool.errors import InputError, ModelFileError
from unspool.introspect import Capture, Fault, Recording
from unspool.introspect.stack import Reader as Network
from unspool.kernels.contract import Trace
from unspool.language import LanguageModel
from unspool.model import Model
from unspool.page.quantities import panels_of, what_ran
from unspool.parser import Parser
from unspool.tagger import Tagger
from unspool.translator import Translator

# A tagger with 400,000 pretrained vectors of 50 numbers has 93 MB, of 100 numbers 173 MB.
MOST_OPENED_BYTES = 256 * 2**20
_FOLDER = {
    model.CONFIG,
    model.VOCABULARY,
    language.MERGES,
    translator.TARGET,
    translator.TARGET_MERGES,
    sentences.LETTERS,
    sentences.VECTORS,
    sentences.FEATURES,
    files.WEIGHTS,
    files.MARKER,
    model.CARD,
}
_KINDS: dict[str, Any] = {  # what a folder's task is opened as; all others are classifiers
    language.TASK: LanguageModel,
    tagger.TASK: Tagger,
    parser.TASK: Parser,
    translator.TASK: Translator,
}
_MOST_CARD = 20_000  # characters
_MOST_BESIDE = 200  # folders that are looked into
_LOG = "metrics.jsonl"


class Opened(NamedTuple):
    """One thing to look at: a model, or a recording without its model."""

    title: str
    network: Network | None
    recording: Recording | None
    where: str
    card: str | None = None
    fault: Fault | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the model consists of; 0 for a recording."""
        network, shapes = self.network, {}
        if isinstance(network, Model):
            shapes = model.shapes(network.description, len(network.vocabulary))
        elif isinstance(network, Tagger):
            shapes = tagger.shapes(network.description, network.tables)
        elif isinstance(network, Parser):
            shapes = parser.shapes(network.description, network.tables)
        elif isinstance(network, Translator):
            tables = network.source.table, network.target.table
            shapes = translator.shapes(network.description, *map(len, tables))
        elif network is not None:
            shapes = language.shapes(network.description, len(network.vocabulary))
        return sum(math.prod(shape) for shape in shapes.values())

    def place_of(self, fault: Fault) -> dict[str, Any]:
        """Where a fault is, as the page's address has it."""
        assert self.recording is not None
        letters = {
            panel.quantity.name: panel.quantity.letter
            for panel in panels_of(self.recording, fault.layer, fault.direction)
        }
        return {
            "view": "sentence",
            "layer": fault.layer,
            "direction": fault.direction,
            "quantity": letters.get(fault.what.removeprefix("the "), ""),
            "unit": fault.unit or 0,
            "at": fault.step or 0,
        }


class Found(NamedTuple):
    """What lies at a path, by name, what was asked for first."""

    models: dict[str, Opened]
    runs: dict[str, Path]
    left_out: list[str]  # what is not shown, and why


def of_path(path: Path) -> Found:
    """Open what lies there: RUN, RUN/best, a recording, a failure report, or a folder of runs.

    Returns:
        Models and recordings, and run folders.  Runs beside it are there to be compared with; a run
        whose model cannot be shown, or that has none yet, is there for its log.

    Raises:
        ModelFileError: there is nothing, or what cannot be looked at.
    """
    name = path.resolve().name
    if path.is_file():
        return Found({name: of_file(path)}, {}, [])
    if (path / model.CONFIG).is_file():
        opened, run = of_folder(path), path.resolve().parent
        beside, left_out = _runs_in(run.parent) if _is_run(run) else ({}, [])
        return Found({opened.title: opened}, ({run.name: run} if _is_run(run) else {}) | beside, left_out)
    if _is_run(path):
        run = path.resolve()
        models, refused = _best_of({run.name: run})
        beside, left_out = _runs_in(run.parent)
        return Found(models, {run.name: run, **beside}, refused + left_out)
    runs, left_out = _runs_in(path) if path.is_dir() else ({}, [])
    if not runs:
        raise ModelFileError(
            f"there is nothing to look at in {path}.\n"
            f"  Fix: give a run folder, a model folder such as RUN/best, or a recording "
            f"(unspool inspect MODEL TEXT -o FILE.safetensors)."
        )
    models, refused = _best_of(runs)
    return Found(models, runs, refused + left_out)


def _best_of(runs: Mapping[str, Path]) -> tuple[dict[str, Opened], list[str]]:
    """The runs' models, and why others are not shown; ModelFileError where no run has a log either."""
    models, refused, last = {}, [], None
    for name, run in runs.items():
        if (run / "best").is_dir():
            try:
                models[f"{name}/best"] = of_folder(run / "best")
            except ModelFileError as error:
                refused.append(f"{name}/best is left out: {error}")
                last = error
    if last is not None and not models and not any((run / _LOG).is_file() for run in runs.values()):
        raise last
    return models, refused


def _is_run(path: Path) -> bool:
    return (path / _LOG).is_file() or (path / "best").is_dir()


def _runs_in(path: Path) -> tuple[dict[str, Path], list[str]]:
    entries = sorted(path.iterdir())
    runs = {run.name: run for run in entries[:_MOST_BESIDE] if run.is_dir() and _is_run(run)}
    more = len(entries) - _MOST_BESIDE
    said = f"{more:,} of {len(entries):,} entries of {path} are left out: the first {_MOST_BESIDE} are read."
    return runs, [said] if more > 0 else []


def of_folder(folder: Path, title: str = "") -> Opened:
    """Open a model folder; every byte of it is verified.

    Raises:
        ModelFileError: it is damaged, or of a task that there is not.
    """
    network: Network = _KINDS.get(model.task_of(folder), Model).load(folder)
    card = folder / model.CARD
    said = card.read_text(encoding="utf-8", errors="replace")[:_MOST_CARD] if card.is_file() else None
    name = folder.resolve()
    title = title or (f"{name.parent.name}/{name.name}" if name.name in ("best", "last") else name.name)
    return Opened(title, network, None, str(folder), said)


def of_file(path: Path, where: str = "") -> Opened:
    """Open a recording of a text, or of a failed training step.

    Raises:
        ModelFileError: it is neither, damaged, or of another version.
    """
    try:
        recording = Recording.load(path)
    except ModelFileError as refused:
        try:
            taken = Capture.load(path)
        except ModelFileError:
            raise refused from None
        recording, fault = _of_capture(taken)
        kind = "a recording of training" if fault is None else "a failure report"
        return Opened(f"{kind}: {what_ran(recording)}", None, recording, where or str(path), None, fault)
    return Opened(f"recording: {what_ran(recording)}", None, recording, where or str(path))


def of_parts(parts: Mapping[str, bytes]) -> Opened:
    """Open the files of a model folder, or one recording, by their names.

    Raises:
        ModelFileError: they are neither, or damaged.
    """
    names = set(parts)
    if len(names) != 1 and not names <= _FOLDER:
        raise ModelFileError(
            f"these files are no model folder.\n"
            f"  Received: {', '.join(sorted(names - _FOLDER)):.200} besides.\n"
            f"  Fix: drop the folder RUN/best with {', '.join(sorted(_FOLDER))}, or one recording."
        )
    with tempfile.TemporaryDirectory(prefix="unspool-") as made:
        place = Path(made)
        if len(names) == 1:
            path = place / "recording.safetensors"
            path.write_bytes(next(iter(parts.values())))
            try:
                return of_file(path, "dropped on the page")
            except ModelFileError as error:
                raise ModelFileError(_unplaced(error, place)) from None
        for name, data in parts.items():
            (place / name).write_bytes(data)
        try:
            return of_folder(place, "dropped model")._replace(where="dropped on the page")
        except ModelFileError as error:
            raise ModelFileError(_unplaced(error, place)) from None


def _unplaced(error: Exception, place: Path) -> str:
    return str(error).replace(f"{place}/", "").replace(str(place), "the dropped folder")


def _of_capture(taken: Capture) -> tuple[Recording, Fault | None]:
    """The sample that failed, of the module that failed, as a recording; without a fault the first one."""
    fault = introspect.locate_recorded(taken)
    reading = taken[fault.module if fault is not None else taken.names[0]]
    sample = 0 if fault is None or fault.sample is None else fault.sample
    length = int(reading.lengths[sample]) if reading.lengths.size else 0
    if length == 0:
        raise InputError("nothing was read.\n  Received: a capture of a sequence without steps.")

    def cut(array: Any) -> Any:
        return None if array is None else np.ascontiguousarray(array[:length, sample : sample + 1])

    traces = tuple(Trace(*map(cut, trace)) for trace in reading.traces)
    return Recording(reading.cell, tuple(map(str, range(length))), (True,) * length, traces), fault
