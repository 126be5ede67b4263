"""What the verbs do with a classifier, and with the gates of any model: eval, inspect.  Without torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from unspool import files, introspect
from unspool.cli.own_part import own_part
from unspool.data import readers
from unspool.data.benchmarks import benchmark
from unspool.errors import InputError
from unspool.kernels.contract import Cell
from unspool.language import LanguageModel
from unspool.model import Model
from unspool.tagger import Tagger


def own_examples(model: Path, labels: tuple[str, ...], quiet: bool) -> tuple[str, list[readers.Example]]:
    """What the run of this model folder was measured on: the part's name, and its examples."""
    return own_part(
        model,
        "sentiment",
        ("text_column", "label_column", "fold"),
        read=lambda record, part: readers.read(
            record[part],
            text_column=record["text_column"],
            label_column=record["label_column"],
            labels=labels,
        ),
        hold_out=readers.hold_out,
        benchmark=lambda record: (
            benchmark(record["data"], fold=record["fold"], data_dir=record.get("data_dir"), quiet=quiet).test
        ),
    )


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
