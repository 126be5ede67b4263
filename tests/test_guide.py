"""The guide says what its commands print: the numbers in its tables, in its sentences, its pictures.

The experiments that train take minutes, and their numbers depend on the instruction set: of those only the
form is checked here; `make docs` runs them.
"""

import importlib.util
import math
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from unspool import lab
from unspool.cli import _run

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide" / "memory.md").read_text(encoding="utf-8")
UNTRAINED = ("terms", "vanishing", "exploding", "one-step", "carousel", "both-contexts")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def refreshing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BLOCKS = {refreshing().name(command): (command, text) for command, text in refreshing().BLOCK.findall(GUIDE)}


def differing(here: str, there: str) -> list[tuple[str, str]]:
    """Where two texts differ: in a word, or in a number by more than a hundredth."""
    left, right = re.sub(r"\s+", " ", here).strip(), re.sub(r"\s+", " ", there).strip()
    words = [NUMBER.sub("#", text) for text in (left, right)]
    if words[0] != words[1]:
        return [(words[0], words[1])]
    pairs = zip(NUMBER.findall(left), NUMBER.findall(right), strict=True)
    return [
        (one, other)
        for one, other in pairs
        if not math.isclose(
            float(one.replace(",", "")), float(other.replace(",", "")), rel_tol=0.01, abs_tol=1e-12
        )
    ]


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_command_prints_what_stands_below_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, text = BLOCKS[name]
    words = shlex.split(command)[1:]
    picture = Path(words[words.index("--plot") + 1])
    assert (ROOT / picture).exists()
    words[words.index("--plot") + 1] = str(tmp_path / picture.name)
    assert _run(words) == 0
    assert differing(capsys.readouterr().out, text) == []
    assert (tmp_path / picture.name).read_text(encoding="utf-8").startswith("<?xml")


def test_every_command_has_its_output_and_every_picture_its_command() -> None:
    assert len(BLOCKS) == GUIDE.count("```sh")
    for name, (_, text) in BLOCKS.items():
        if name == "own_model":
            continue  # an example, which prints results and claims nothing
        assert text.startswith(f"{name}: {lab.EXPERIMENTS[name]}\n")
        assert "\nyes  " in text
        assert "\nNO   " not in text
    drawn = {shlex.split(command)[-1] for command, _ in BLOCKS.values() if "--plot" in command}
    shown = {f"docs/guide/{name}" for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", GUIDE)}
    assert drawn == shown
    assert sum((ROOT / path).stat().st_size for path in shown) < 600_000


def test_a_number_in_a_sentence_stands_in_a_table() -> None:
    prose = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)
    printed = {number for _, text in BLOCKS.values() for number in NUMBER.findall(text)}
    said = [quoted for quoted in re.findall(r"`([^`\n]+)`", prose) if NUMBER.fullmatch(quoted)]
    assert len(said) > 10
    assert [number for number in said if number not in printed] == []


def test_a_changed_number_would_be_seen() -> None:
    assert differing("mse 0.1234, 10 of 10", "mse  0.1235, 10 of 10") == []
    assert differing("mse 0.1234", "mse 0.1334") == [("0.1234", "0.1334")]
    assert differing("yes  it holds", "NO   it holds") != []
