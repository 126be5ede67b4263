"""The scripts in examples/: short runs of what they show."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """The networks are small: torch's own threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ppo() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("recurrent_ppo", EXAMPLES / "recurrent_ppo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_resets_and_the_loop_give_the_same_decisions_and_gradients(ppo: ModuleType) -> None:
    """Over a rollout full of boundaries: one at its first step, two side by side."""
    config = ppo.Config(hidden=16)
    ours = ppo.Agent(config)
    theirs = ppo.Agent(ppo.Config(hidden=16, layers="split"))
    theirs.load_state_dict(ours.state_dict())
    seen, state = torch.randn(20, 6, 4), (torch.randn(1, 6, 16), torch.randn(1, 6, 16))
    starts = torch.rand(20, 6) < 0.1
    starts[0, :2] = starts[7:9, 3] = True
    ran = []
    for agent in (ours, theirs):
        logits, values, final = agent(seen, starts, state)
        (logits.square().sum() + values.sum() + final[0].sum()).backward()
        gradients = [parameter.grad for parameter in agent.parameters()]
        ran.append([logits, values, *final, *gradients])
    for got, want in zip(*ran, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_both_learn_the_same_from_the_same_seed(ppo: ModuleType) -> None:
    few = {"updates": 5, "corridor": 4, "environments": 8, "steps": 48, "hidden": 16, "seed": 3}
    ours, theirs = (ppo.run(ppo.Config(layers=layers, **few), show=False) for layers in ("resets", "split"))
    assert len(ours.returns) == 5
    assert len(set(ours.returns)) > 1
    np.testing.assert_allclose(ours.returns, theirs.returns, atol=1e-9)


def test_an_agent_learns_to_remember(ppo: ModuleType) -> None:
    """The sign was seen five steps ago; who forgets it turns right half the time."""
    result = ppo.run(ppo.Config(updates=40, corridor=4, steps=64, hidden=32), show=False)
    assert np.mean(result.right[:3]) < 0.7
    assert np.mean(result.right[-3:]) > 0.95
