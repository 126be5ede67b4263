"""Each experiment in its quick form: its claims hold, its picture can be read."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unspool import lab
from unspool.cli import _run
from unspool.errors import ConfigError
from unspool.lab import exploding, one_step
from unspool.lab.result import Claim, Result

UNTRAINED = ("terms", "vanishing", "exploding", "one-step", "carousel", "both-contexts")
TRAINED = tuple(name for name in lab.EXPERIMENTS if name not in UNTRAINED)


def quick(name: str) -> Result:
    result: Result = lab.load(name).run(lab.Options(quick=True))
    return result


@pytest.mark.parametrize("name", UNTRAINED)
def test_the_claims_hold_and_the_picture_is_the_same_twice(name: str, tmp_path: Path) -> None:
    result = quick(name)
    assert result.holds, result.text()
    assert json.loads(json.dumps(result.json()))["name"] == name
    pictures = []
    for file in ("a.svg", "b.svg"):
        result.plot(tmp_path / file)
        pictures.append((tmp_path / file).read_bytes())
    assert pictures[0] == pictures[1]
    assert b"<svg" in pictures[0]
    assert len(pictures[0]) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_trained_ones_hold_in_their_quick_form(name: str) -> None:
    result = quick(name)
    assert result.holds, result.text()
    assert json.loads(json.dumps(result.json()))["holds"] is True


def test_one_step_is_what_a_pencil_says() -> None:
    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    # Unit 0: h = 0.5, -0.5; x = 2; c = 1.
    i = sigmoid(1.0 * 0.5 + 0.5 * 2 - 1)
    f = sigmoid(-1.0 * -0.5 + 1.0 * 2 + 0.5)
    g = math.tanh(-1.0 * 0.5 + 1.0 * -0.5 + 0.5 * 2 + 1)
    o = sigmoid(1.0 * -0.5 + 1.0 * 2 - 0.5)
    c = f * 1.0 + i * g
    trace, z = one_step.stepped()
    assert z[:, 0].tolist() == [0.5, 3.0, 1.0, 1.0]
    np.testing.assert_allclose(trace.gates[0, 0, 0, :, 0], [i, f, g, o], rtol=1e-14)
    assert trace.cell[0, 0, 0, 0] == pytest.approx(c, rel=1e-14)
    assert trace.hidden[0, 0, 0, 0] == pytest.approx(o * math.tanh(c), rel=1e-14)


def test_the_exploding_gradient_is_the_slope_of_the_loss() -> None:
    loss, gradient = exploding.loss_at(1.3, -0.05, 20)
    for place, step in enumerate(np.eye(2) * 1e-6):
        up, _ = exploding.loss_at(1.3 + step[0], -0.05 + step[1], 20)
        down, _ = exploding.loss_at(1.3 - step[0], -0.05 - step[1], 20)
        assert gradient[place] == pytest.approx((up - down) / 2e-6, rel=1e-5)
    assert loss > 0


def test_the_command_prints_draws_and_exits_with_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(["lab", "one-step", "--plot", str(tmp_path / "step.png")]) == 0
    assert "erase: f × c" in capsys.readouterr().out
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert _run(["lab", "terms", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    false = Result("terms", "", (), (Claim("no", False),), {}, lambda figure: None)
    monkeypatch.setattr("unspool.lab.terms.run", lambda options: false)
    assert _run(["lab", "terms"]) == 3
    assert "NO   no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lab", "addition"], "embedded-reber"),
        (["lab", "all", "--plot", "a.svg"], "one picture holds one"),
        (["lab", "terms", "--plot", "a.gif"], "end it in .svg"),
        (["lab", "terms", "--seeds", "3"], "nothing here is random"),
        (["lab", "one-step", "--steps", "3"], "has one length"),
        (["lab", "vanishing", "--seeds", "0"], "should be 1 or more"),
        (["lab", "vanishing", "--workers", "0"], "--workers"),
        (["lab", "all", "--steps", "5"], "of one experiment"),
    ],
)
def test_what_cannot_be_run_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_an_experiment_is_found_by_its_name_alone() -> None:
    with pytest.raises(ConfigError, match="no experiment 'add'"):
        lab.load("add")
    assert {name.replace("-", "_") for name in lab.EXPERIMENTS} <= {
        path.stem for path in Path(lab.__file__).parent.glob("*.py")
    }


def test_the_list_of_experiments_needs_no_torch() -> None:
    code = "import sys; from unspool import lab; import unspool.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
