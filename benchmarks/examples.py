"""Run the examples that do the same in two ways, in turns: benchmarks/results/examples.json and .md.

python benchmarks/examples.py
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from stamp import in_words, stamp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "examples.json"
SEEDS = (0, 1, 2)
UPDATES = 60


def run(layers: str, seed: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "examples/recurrent_ppo.py", "--layers", layers, "--seed", str(seed)]
    command += ["--updates", str(UPDATES), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(seed: int) -> dict[str, Any]:
    """Both ways from one seed."""
    ours, theirs = run("resets", seed), run("split", seed)
    differ = np.flatnonzero(~np.isclose(ours["returns"], theirs["returns"], atol=1e-6))
    row: dict[str, Any] = {
        "seed": seed,
        "updates of equal returns": int(differ[0]) if len(differ) else UPDATES,
    }
    for name, result in (("resets", ours), ("split", theirs)):
        row |= {
            f"{name}: mean return of the last 5 updates": float(np.mean(result["returns"][-5:])),
            f"{name}: learning, s": result["learning_seconds"],
            f"{name}: all, s": result["learning_seconds"] + result["playing_seconds"],
        }
    for part in ("learning", "all"):
        row[f"{part}: times as fast"] = row[f"split: {part}, s"] / row[f"resets: {part}, s"]
    return row


def main() -> None:
    about = stamp("python benchmarks/examples.py")
    rows = [compare(seed) for seed in SEEDS]
    RESULTS.write_text(json.dumps({"about": about, "recurrent_ppo": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Examples",
        "",
        "## examples/recurrent_ppo.py",
        "",
        f"{UPDATES} updates of PPO in 32 T-mazes, 128 steps each, H = 64, torch on one thread:",
        "`resets=` in unspool's LSTM against torch's LSTM run in pieces, cut at every step at which an",
        "episode starts. The same seed draws the same; from the first action that a rounding error turned",
        "the two live through other episodes.",
        "",
        in_words(about),
        "",
    ]
    names = list(rows[0])
    lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    RESULTS.with_suffix(".md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
