"""A run's folder: made ready, its checkpoints written and read, its log."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError, ModelFileError, TrainingError
from unspool.run.options import Options
from unspool.run.task import Batch, Task

# A resumed run may change these: they decide where, how long and how loudly, not what is computed.
_FREE_OPTIONS = frozenset(
    {"epochs", "patience", "resume", "force", "quiet", "device", "log_every", "output", "data_dir"}
)

_OPTIMIZER = "optimizer.safetensors"

_STATE = "trainer_state.json"

_STATE_FORMAT = 1

FAULT = "fault.safetensors"


@dataclass
class Tally:
    """Sums over the epoch in progress."""

    loss: float = 0.0
    count: int = 0
    tokens: int = 0
    places: int = 0
    norm: float = 0.0
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """Where a run stands; with the weights and the optimizer's, all that resuming needs."""

    step: int = 0
    epoch: int = 0  # complete ones
    batch: int = 0  # batches taken of the epoch in progress
    best_metric: float | None = None
    best_epoch: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    bad_since: str = ""
    tally: Tally = field(default_factory=Tally)


def weights(model: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return a model's parameters and buffers as NumPy arrays, under the state dict's names."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def prepare_folder(
    model: torch.nn.Module, task: Task[Batch], options: Options, folder: Path, config: Mapping[str, object]
) -> None:
    """Make the run folder ready: ours, without leftovers, holding config.toml."""
    text = files.toml_text(config)
    _check_parts(model, task)
    try:
        if options.force:
            _remove_run(folder)
        elif not options.resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainingError(
                f"the run folder {folder} exists and is not empty.\n"
                "  Fix: another -o FOLDER; or --resume to go on with that run; or --force to replace it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("best", "last", "config.toml", "metrics.jsonl"):
            files.recover(folder / name)
        if options.resume and (folder / "last").exists():
            _check_same_run(folder / "config.toml", text, options)
        files.write_file(folder / "config.toml", text.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _check_parts(model: torch.nn.Module, task: Task[Batch]) -> None:
    """See before the first step that what will be saved can be resumed from."""
    parts = task.folder(model, None)
    saved = files.unpack(files.part(parts, files.WEIGHTS, "the recipe's folder"), files.WEIGHTS)
    for name, array in weights(model).items():
        if name not in saved or saved[name].tobytes() != array.tobytes():
            raise InputError(
                f"the recipe's {files.WEIGHTS} does not hold the model's {name} as it is.\n"
                f"  Received: {', '.join(sorted(saved)) or 'no tensor'}\n"
                "  Fix: save training.weights(model); resuming reads it from there."
            )
    clash = parts.keys() & {_OPTIMIZER, _STATE}
    if clash:
        raise InputError(
            f"the recipe's folder takes a name that the loop keeps for itself: {', '.join(clash)}.\n"
            "  Fix: another name."
        )


def _remove_run(folder: Path) -> None:
    """Remove a run, and nothing else that may lie in its folder."""
    for name in ("best", "last", "config.toml", "metrics.jsonl", FAULT):
        files.remove(folder / name)


def _check_same_run(path: Path, text: str, options: Options) -> None:
    """Refuse to resume a run under options that would have made it another run."""
    try:
        before = _flat(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError) as error:
        raise TrainingError(
            f"cannot resume: {path}, which says what the run is, cannot be read.\n"
            f"  Received: {error}\n"
            "  Fix: --force to start again, or another -o FOLDER."
        ) from error
    now = _flat(tomllib.loads(text))
    # With a decay the number of epochs shapes every learning rate.
    free = _FREE_OPTIONS - {"epochs"} if options.decay != "none" else _FREE_OPTIONS
    changed = [
        f"  {key}: was {before.get(key, 'not set')!r}, now {now.get(key, 'not set')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.rpartition(".")[2] not in free
    ]
    if changed:
        raise TrainingError(
            f"cannot resume {path.parent}: it was started with other options.\n"
            + "\n".join(changed)
            + "\n  Fix: the same options (unspool train --config reads config.toml), or another -o FOLDER."
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": entry for inner, entry in value.items()})
        else:
            flat[key] = value
    return flat


def trainer_parts(state: State, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    """Return the files of last/ that serving does not need and resuming does."""
    moments = {
        f"{kind}/{name}": tensor.detach().cpu().numpy()
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }
    return {
        _OPTIMIZER: files.pack(moments),
        _STATE: files.json_text({"format": _STATE_FORMAT, **asdict(state)}),
    }


def read_checkpoint(last: Path, model: torch.nn.Module) -> tuple[State, dict[str, NDArray[Any]]]:
    """Read a checkpoint: the weights into the model, the state and the optimizer's arrays returned."""
    parts = files.read_folder(last)
    saved = files.unpack(files.part(parts, files.WEIGHTS, last), f"{last / files.WEIGHTS}")
    moments = files.unpack(files.part(parts, _OPTIMIZER, last), f"{last / _OPTIMIZER}")
    found = files.parse_json(files.part(parts, _STATE, last), f"{last / _STATE}")
    if found.pop("format", None) != _STATE_FORMAT:
        raise ModelFileError(
            f"{last / _STATE} is of another format version than {_STATE_FORMAT}.\n"
            "  Fix: resume with the version of unspool that wrote it, or train again."
        )
    try:
        state = State(**{**found, "tally": Tally(**found["tally"])})
        names = model.state_dict().keys()
        model.load_state_dict({name: torch.from_numpy(saved[name]) for name in names})
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"cannot resume from {last}: it is not a checkpoint of this model.\n"
            f"  Received: {error}\n"
            "  Fix: the options that the run was started with, or another -o FOLDER."
        ) from error
    return state, moments


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, moments: Mapping[str, NDArray[Any]]
) -> None:
    """Give AdamW its step counts and running means back, each on its parameter's device."""
    parameters = dict(model.named_parameters())
    for key, array in moments.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = torch.from_numpy(array).to(parameter.device)


def append_record(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def records(path: Path) -> list[dict[str, Any]]:
    """Read a log up to its end, or to a line that a killed run left unfinished."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def trim_log(path: Path, state: State) -> None:
    """Drop from the log what lies after the point from which the run goes on."""
    kept = [
        record
        for record in records(path)
        if (record["epoch"] <= state.epoch if "epoch" in record else record["step"] <= state.step)
    ]
    try:
        files.write_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"cannot write to the run folder {folder}.\n"
        f"  Received: {error}\n"
        "  Fix: free space, or another -o FOLDER; checkpoints already saved are whole."
    )
