"""Run the whole laboratory by its protocols, and keep what it found.

    python benchmarks/lab.py            all experiments: about half an hour on two cores
    python benchmarks/lab.py NAME …     some; the others' results stay as they are

Writes benchmarks/results/lab.json (every trial) and lab.md.
"""

import json
import resource
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
        started, busy = time.perf_counter(), _processor_seconds()
        options = lab.Options(workers=2, say=lambda line: print(line, file=sys.stderr, flush=True))
        result = lab.load(name).run(options)
        kept[name] = {
            **_short(result.json()),
            "text": result.text(),
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(_processor_seconds() - busy, 1),
            "stamp": stamp(f"unspool lab {name}"),
        }
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    lines = ["# What the laboratory found", ""]
    lines += [
        "Each by `unspool lab NAME`; every trial is in `lab.json`. Seconds by the clock: with other work "
        "beside. Processor time: of all workers together; on two free cores an experiment takes half of it.",
        "",
    ]
    for name in lab.EXPERIMENTS:
        if name in kept:
            found = kept[name]
            took = f"{found['seconds']:g} s"
            if "processor_seconds" in found:
                took += f", processor time {found['processor_seconds']:g} s"
            lines += [f"## {name}", "", f"{in_words(found['stamp'])} {took}.", ""]
            lines += ["```text", found["text"], "```", ""]
    (RESULTS / "lab.md").write_text("\n".join(lines))


def _processor_seconds() -> float:
    """What this process and the workers that it has waited for have used."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the long series, which any run makes again: every trial's figures, not its curve."""
    trials = found["figures"].get("trials")
    figures = {"trials": [{k: v for k, v in one.items() if k != "curve"} for one in trials]} if trials else {}
    return {**found, "figures": figures}


if __name__ == "__main__":
    main()
