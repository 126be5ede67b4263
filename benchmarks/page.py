"""How soon `unspool see` answers: 40 words, 2 layers of 256 units, idle and among slow connections.

    python benchmarks/page.py

A server process of its own, asked from this one over a kept connection; idle and besieged rounds take turns.
Besieged: 200 connections that send a byte of a request's head now and then and never end it.  With node and
Chromium at hand what a browser makes of it is measured too (`page/test/speed.mjs`, on the page as built by
`make page`).  Writes benchmarks/results/page.json and page.md.
"""

import gzip
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from stamp import in_words, stamp
from unspool import model
from unspool.kernels.contract import Cell
from unspool.model import Description
from unspool.page import example
from unspool.vocabulary import Vocabulary, words

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
STATIC = ROOT / "src" / "unspool" / "page" / "static"
TEXT = " ".join(["the film was not good at first ,"] * 5)
ROUNDS, QUESTIONS, SLOW = 6, 100, 200


def folder(place: Path) -> Path:
    """A model of random weights."""
    vocabulary = Vocabulary.build([words(text) for text, _ in example.sentences(300, seed=1)], lowercase=True)
    description = Description(
        task="sentiment",
        labels=example.LABELS,
        cell=Cell.LSTM,
        embedding_size=100,
        hidden_size=256,
        num_layers=2,
        bidirectional=True,
        pooling="max",
        max_length=400,
    )
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.normal(0, 0.06, shape).astype(np.float32)
        for name, shape in model.shapes(description, len(vocabulary)).items()
    }
    example.write(place / "model", description, vocabulary, tensors, "# Random weights\n")
    return place / "model"


class Siege:
    """Connections whose requests never end."""

    def __init__(self, port: int) -> None:
        self._port, self._over = port, threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def __enter__(self) -> "Siege":
        self._lines = [self._begin() for _ in range(SLOW)]
        self._thread.start()
        return self

    def _begin(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self._port))
        line.sendall(b"POST /api/sentence HTTP/1.1\r\nx: ")
        return line

    def _hold(self) -> None:
        while not self._over.wait(1):
            for k, line in enumerate(self._lines):
                try:
                    line.sendall(b"a")
                except OSError:  # the server has given it up: another takes its place
                    self._lines[k] = self._begin()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for line in self._lines:
            line.close()


def ask(port: int, count: int) -> list[float]:
    """Milliseconds of each of `count` questions, over one connection."""
    line = http.client.HTTPConnection("127.0.0.1", port)
    body, taken = json.dumps({"text": TEXT}), []
    for _ in range(count):
        started = time.perf_counter()
        line.request("POST", "/api/sentence", body, {"content-type": "application/json"})
        data = line.getresponse().read()
        taken.append((time.perf_counter() - started) * 1e3)
    assert len(json.loads(data)["words"]) == 40, data[:200]
    line.close()
    return taken


def in_a_browser() -> list[str]:
    """What `page/test/speed.mjs` prints, and the size of the built page; nothing without node."""
    if shutil.which("node") is None:
        return []
    size = sum(len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file())
    done = subprocess.run(
        ["node", "--test", "test/speed.mjs"],
        cwd=ROOT / "page",
        env={**os.environ, "UNSPOOL_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    measured = re.findall(r"^# ((?:typed|5,000 words|50,000 losses).*)$", done.stdout, re.MULTILINE)
    said = list(dict.fromkeys(line for line in measured if any(unit in line for unit in (" ms", " frames"))))
    return [*said, f"the built page, compressed: {size:,} bytes"]


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        server = subprocess.Popen(
            [sys.executable, "-m", "unspool", "see", str(folder(Path(made))), "--port", "0", "--no-browser"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert server.stdout is not None
        port = int(server.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])
        try:
            ask(port, 20)
            idle: list[float] = []
            besieged: list[float] = []
            for _ in range(ROUNDS):
                idle += ask(port, QUESTIONS)
                with Siege(port):
                    besieged += ask(port, QUESTIONS)
        finally:
            server.terminate()
            server.wait()
    rows = {
        name: {"median_ms": statistics.median(taken), "p99_ms": float(np.percentile(taken, 99))}
        for name, taken in (("idle", idle), (f"{SLOW} slow connections", besieged))
    }
    about = stamp("python benchmarks/page.py") | {"load": round(os.getloadavg()[0], 1)}
    browser = in_a_browser()
    kept = {"about": about, "rows": rows, "browser": browser}
    (RESULTS / "page.json").write_text(json.dumps(kept, indent=1) + "\n")
    lines = [
        "# How soon the page's server answers",
        "",
        "40 words through 2 layers of 256 units in both directions: prediction, and one gate's values.",
        f"{len(idle)} questions each, in turns.",
        "",
        "| | median, ms | p99, ms |",
        "|---|---|---|",
        *(f"| {name} | {row['median_ms']:.1f} | {row['p99_ms']:.1f} |" for name, row in rows.items()),
        "",
        *(
            ["In Chromium, headless, drawing without a GPU:", "", *(f"- {line}" for line in browser), ""]
            if browser
            else []
        ),
        in_words(about),
        "",
    ]
    (RESULTS / "page.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
