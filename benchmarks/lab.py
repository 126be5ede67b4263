"""Run the whole laboratory by its protocols, and keep what it found.

    python benchmarks/lab.py            all experiments: about half an hour on two cores
    python benchmarks/lab.py NAME …     some; the others' results stay as they are

Writes benchmarks/results/lab.json (every trial) and lab.md.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from stamp import in_words, stamp
from unspool import lab

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    chosen = sys.argv[1:] or list(lab.EXPERIMENTS)
    path = RESULTS / "lab.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen:
        started = time.perf_counter()
        options = lab.Options(workers=2, say=lambda line: print(line, file=sys.stderr, flush=True))
        result = lab.load(name).run(options)
        kept[name] = {
            **_short(result.json()),
            "text": result.text(),
            "seconds": round(time.perf_counter() - started, 1),
            "stamp": stamp(f"unspool lab {name}"),
        }
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    lines = ["# What the laboratory found", ""]
    lines += [
        "Each by `unspool lab NAME`; every trial is in `lab.json`. Seconds: with other work beside.",
        "",
    ]
    for name in lab.EXPERIMENTS:
        if name in kept:
            found = kept[name]
            lines += [f"## {name}", "", f"{in_words(found['stamp'])} {found['seconds']:g} s.", ""]
            lines += ["```text", found["text"], "```", ""]
    (RESULTS / "lab.md").write_text("\n".join(lines))


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the long series, which any run makes again: every trial's figures, not its curve."""
    trials = found["figures"].get("trials")
    figures = {"trials": [{k: v for k, v in one.items() if k != "curve"} for one in trials]} if trials else {}
    return {**found, "figures": figures}


if __name__ == "__main__":
    main()
