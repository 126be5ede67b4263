"""Run every command of the guides again, and put in what it prints; its picture is drawn on the way.

    python docs/refresh.py            all: those that train take minutes
    python docs/refresh.py NAME …     the commands of these experiments, or examples/NAME.py

A command stands alone in a block of its own (sh); what it prints, in the block (text) after it.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(
    r"^```sh\n((?:unspool lab|python examples/) ?[^\n]*)\n```\n\n```text\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def main() -> None:
    """Rewrite the guides."""
    wanted = set(sys.argv[1:])
    for guide in GUIDES:
        text = BLOCK.sub(lambda block: renewed(block, wanted), guide.read_text(encoding="utf-8"))
        guide.write_text(text, encoding="utf-8")


def name(command: str) -> str:
    """What a command is called: the experiment, or the example."""
    words = shlex.split(command)
    return Path(words[1]).stem if words[0] == "python" else words[2]


def renewed(block: re.Match[str], wanted: set[str]) -> str:
    """A command with what it prints now, or as it stands where it is not wanted."""
    words = shlex.split(block[1])
    if wanted and name(block[1]) not in wanted:
        return block[0]
    print(block[1], file=sys.stderr, flush=True)
    command = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return f"```sh\n{block[1]}\n```\n\n```text\n{printed.strip()}\n```"


if __name__ == "__main__":
    main()
