"""What torch's own tools do to a layer they do to ours: the same, beside torch.nn, step for step.

Reparametrizations, pruning, weight averages, stateless calls, several processes, autocast.
"""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unspool import nn

NAMES = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]
every_kind = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield
    torch.set_num_threads(threads)


def pair(name: str) -> tuple[Any, Any, str]:
    """Our layer, torch's with the same weights, and the name of the recurrent weights."""
    ours, theirs = getattr(nn, name)(3, 6), getattr(torch.nn, name)(3, 6)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, "weight_hh" if name.endswith("Cell") else "weight_hh_l0"


def first(results: Any) -> torch.Tensor:
    while not isinstance(results, torch.Tensor):
        results = results[0]
    return results


def steps(
    module: Any, x: torch.Tensor, count: int = 3, after: Callable[[], None] = lambda: None
) -> list[Any]:
    """Train a little; the losses, and the parameters at the end."""
    optimizer = torch.optim.SGD(module.parameters(), 0.02)
    losses = []
    for _ in range(count):
        loss = first(module(x)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.detach())
    return [*losses, *(p.detach().clone() for _, p in sorted(module.named_parameters()))]


def drawn(name: str) -> torch.Tensor:
    return torch.randn(4, 3) if name.endswith("Cell") else torch.randn(5, 4, 3)


def agree(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, float(b.detach().abs().max()))  # as everywhere: of the largest value, or of 1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * scale)


class Halved(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("tool", ["spectral norm", "weight norm", "old weight norm", "a parametrization"])
@every_kind
def test_reparametrized_weights_act_and_learn(name: str, tool: str) -> None:
    x = drawn(name)
    ours, theirs, weight = pair(name)
    for module in (ours, theirs):
        torch.manual_seed(1)  # spectral norm begins with drawn vectors
        if tool == "spectral norm":
            # At its fixed point: torch's layers read a weight more often, and each reading iterates.
            parametrizations.spectral_norm(module, weight, n_power_iterations=60)
        elif tool == "weight norm":
            parametrizations.weight_norm(module, weight)
        elif tool == "old weight norm":
            torch.nn.utils.weight_norm(module, weight)
        else:
            parametrize.register_parametrization(module, weight, Halved())
    theirs.load_state_dict(ours.state_dict())
    agree(steps(ours, x), steps(theirs, x))
    if tool != "old weight norm":
        parametrize.remove_parametrizations(ours, weight)
        assert first(ours(x)).isfinite().all()


@every_kind
def test_pruned_weights_stay_pruned(name: str) -> None:
    ours, theirs, weight = pair(name)
    x = drawn(name)
    mask = torch.rand_like(getattr(ours, weight)) < 0.5
    for module in (ours, theirs):
        prune.custom_from_mask(module, weight, mask)
    agree(steps(ours, x), steps(theirs, x))
    prune.remove(ours, weight)
    assert (getattr(ours, weight)[~mask] == 0).all()


@every_kind
def test_an_average_of_weights_runs_with_the_average(name: str) -> None:
    x = drawn(name)
    averages = []
    for module in pair(name)[:2]:
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        average(x)  # what is kept of these weights must not outlive them
        steps(module, x, after=lambda m=module, a=average: a.update_parameters(m))
        averages.append(average)
        assert not torch.equal(first(average(x)), first(module(x)))
    agree([first(averages[0](x))], [first(averages[1](x))])


@every_kind
def test_called_with_others_weights(name: str) -> None:
    ours, theirs, _ = pair(name)
    x = drawn(name)
    own = first(ours(x)).detach()
    others = {key: torch.randn_like(p, requires_grad=True) for key, p in ours.named_parameters()}
    found = []
    for module in (ours, theirs):
        answer = first(torch.func.functional_call(module, others, (x,)))
        found.append([answer, *torch.autograd.grad(answer.square().sum(), list(others.values()))])
    agree(*found)
    assert torch.equal(first(ours(x)), own)


@pytest.mark.filterwarnings("ignore:.*stateless.functional_call.* is deprecated")
@every_kind
def test_called_by_the_older_stateless_interface(name: str) -> None:
    ours, theirs, _ = pair(name)
    x = drawn(name)
    others = {key: torch.randn_like(p) for key, p in ours.named_parameters()}
    agree(
        [first(torch.nn.utils.stateless.functional_call(ours, others, x))],
        [first(torch.nn.utils.stateless.functional_call(theirs, others, x))],
    )


@every_kind
def test_copied_and_pickled(name: str) -> None:
    ours, _, weight = pair(name)
    x = drawn(name)
    first(ours(x)).sum().backward()
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(first(twin(x)), first(ours(x)))
        with torch.no_grad():
            getattr(twin, weight).add_(1)
        assert not torch.equal(getattr(twin, weight), getattr(ours, weight))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_autocast_mid_way_is_a_right_answer_in_the_weights_dtype(name: str) -> None:
    """bfloat16 from below is widened; states and output are float32, whatever products are made in."""
    ours = getattr(nn, name)(6, 6)
    below, above = torch.nn.Linear(3, 6), torch.nn.Linear(6, 2)
    x = torch.randn(5, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        entering = below(x)
        assert entering.dtype == torch.bfloat16
        output = first(ours(entering))
        assert output.dtype == torch.float32
        above(output).sum().backward()
    torch.testing.assert_close(output, first(ours(entering.float())), atol=0.02, rtol=0)
    assert below.weight.grad is not None
    assert below.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="does not match weight dtype"):  # without autocast nothing is cast
        ours(entering)


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from unspool import nn

rank, file, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = getattr(nn, name)(3, 6, bidirectional=True)
alone = getattr(nn, name)(3, 6, bidirectional=True)
alone.load_state_dict(layer.state_dict())
x = torch.randn(5, 4, 3)
model = DistributedDataParallel(layer)
for step in range(2):
    layer.zero_grad(), alone.zero_grad()
    model(x[:, 2 * rank : 2 * rank + 2])[0].square().sum().backward()
    alone(x)[0].square().sum().backward()
    for ours, whole in zip(layer.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(2 * ours.grad, whole.grad, rtol=1e-5, atol=1e-6)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_two_processes_have_the_gradients_of_one(tmp_path: Any, name: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(DISTRIBUTED, encoding="utf-8")
    both = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(tmp_path / "meet"), name],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for one in both:
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0, said
