"""What the verbs do with a classifier, and with the gates of any model: eval, inspect.  Without torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unspool import files, introspect
from unspool.cli import configuration
from unspool.data import readers
from unspool.data.benchmarks import benchmark
from unspool.errors import ConfigError, DataError, InputError
from unspool.kernels.contract import Cell
from unspool.language import LanguageModel
from unspool.model import Model
from unspool.tagger import Tagger


def own_examples(model: Path, labels: tuple[str, ...], quiet: bool) -> tuple[str, list[readers.Example]]:
    """What the run of this model folder was measured on: the part's name, and its examples.

    Reads the run's record itself: the recipe, which has a reader for it, would import torch.
    """
    path = model.absolute().parent / "config.toml"
    if not path.is_file():
        raise DataError(
            f"what {model} was measured on is not known here: there is no {path}.\n"
            f"  Fix: say what to measure on with --data FILE."
        )
    content = configuration.read(path)
    try:
        record = content[content["run"]["task"]]
        columns = {name: record[name] for name in ("text_column", "label_column")}
        name, fold = record["data"], record["fold"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not the record of a run.\n  Received: {error!r}\n"
            f"  Fix: say what to measure on with --data FILE."
        ) from error
    for part in ("test", "dev"):
        if part in record:
            return part, readers.read(record[part], **columns, labels=labels)
    if "train" in record:
        _, dev = readers.hold_out(readers.read(record["train"], **columns))
        return "dev", dev
    return "test", benchmark(name, fold=fold, data_dir=record.get("data_dir"), quiet=quiet).test


def inspection(recording: introspect.Recording, moved: introspect.Contributions) -> dict[str, Any]:
    """The numbers behind the heat map, as JSON has them."""
    directions = ("forward", "reverse")[: recording.directions]
    means: dict[str, Any] = {}
    for d, name in enumerate(directions):
        means[name] = {
            gate.value: _rounded(recording.gate(gate, direction=d).mean(1)) for gate in recording.cell.gates
        }
        if recording.cell is Cell.LSTM:
            means[name]["cell state size"] = _rounded(abs(recording.cell_state(direction=d)).mean(1))
    return {
        "words": list(recording.words),
        "known": list(recording.known),
        "label": moved.label,
        "score": moved.score,
        "rival": moved.rival,
        "margin": moved.margin,
        "contributions": _rounded(moved.values),
        "mean gates": means,
    }


def both_readings(context: introspect.RightContext) -> dict[str, Any]:
    return {
        "forward": _rounded(context.forward),
        "reverse": None if context.reverse is None else _rounded(context.reverse),
    }


def write_inspection(
    output: Path,
    recording: introspect.Recording,
    moved: introspect.Contributions,
    model: Model | LanguageModel | Tagger,
    text: str,
) -> None:
    """Write a recording of a model's reading of a text: a page, a picture or numbers, by its name."""
    from unspool.page import sentence

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".safetensors":
            recording.save(output)
        elif output.suffix == ".html":
            files.write_file(output, sentence.html(recording, moved, _flows(model, text, recording)).encode())
        else:
            sentence.figure(recording, moved).savefig(output, dpi=150)
    except OSError as error:
        raise InputError(f"{output} cannot be written.\n  Received: {error.strerror or error}.") from error


def _flows(
    model: Model | LanguageModel | Tagger, text: str, recording: introspect.Recording
) -> list[introspect.GradientFlow]:
    """How far the gradient of the state at the last word that each direction reads reaches back."""
    units, flows = recording.hidden().shape[1], []
    for d in range(recording.directions):
        d_output = np.zeros(recording.directions * units, np.float32)
        d_output[d * units : (d + 1) * units] = 1
        at = 0 if d else len(recording.words) - 1
        flows.append(introspect.gradient_flow(model, text, at=at, direction=d, d_output=d_output))
    return flows


def _rounded(values: Iterable[Any]) -> list[float]:
    return [round(float(value), 6) for value in values]
