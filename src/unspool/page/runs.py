"""A run's log as it stands now: what the Training view draws, read on from where it was left."""

import contextlib
import json
from pathlib import Path
from typing import Any

from unspool.introspect.monitor import findings

_MOST_BYTES = 16 * 2**20  # of one answer
_MOST_MONITORED = 400
_NO_METRICS = {"epoch", "step", "train_loss", "dev_loss", "best", "tokens_per_second", "padding"} | {
    "gradient_norm",
    "skipped",
    "seconds",
}


def read(place: Path, after: int = 0) -> dict[str, Any]:
    """Read a run's metrics.jsonl.

    Args:
        place: the run folder; a log that is not there yet is empty.
        after: how many bytes of it were read before; a log that is shorter was begun anew.

    Returns:
        Epochs, losses, what was measured inside, warnings in words, and `next`, to go on from.
    """
    path, data, start = place / "metrics.jsonl", b"", 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, 2)
        start = after if after <= size else 0
        behind = size - _MOST_BYTES
        file.seek(max(start, behind))
        data = file.read(_MOST_BYTES)
        if behind > start:  # in the middle of a line
            start = behind + data.find(b"\n") + 1
            data = data[start - behind :]
    # A run that is being written ends in half a line, which is read the next time.
    whole = data[: data.rfind(b"\n") + 1]
    epochs, losses, monitored = [], [], []
    warned: dict[str, str] = {}
    for line in whole.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            record = json.loads(line)
            if not isinstance(record, dict) or "step" not in record:
                continue
            if "epoch" in record:
                epochs.append(record)
            elif "monitor" in record:
                numbers = {k: float(v) for k, v in record["monitor"].items() if v is not None}
                for kind, said in findings(numbers):
                    warned.setdefault(kind, f"step {record['step']}: {said}")
                monitored.append(record)
            elif "loss" in record:
                losses.append(record)
    metrics = [name for name in (epochs[0] if epochs else {}) if name not in _NO_METRICS]
    return {
        "title": place.name,
        "metric": metrics[0] if metrics else None,
        "epochs": epochs,
        "losses": losses,
        "monitor": monitored[-_MOST_MONITORED:],
        "warnings": list(warned.values()),
        "fault": (place / "fault.safetensors").is_file(),
        "next": start + len(whole),
    }
