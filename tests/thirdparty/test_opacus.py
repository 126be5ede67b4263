"""opacus: per-sample gradients of our layers by functorch, and a private step."""

import torch
from comparison import furthest, keep, milliseconds
from opacus import GradSampleModule
from opacus.layers import DPLSTM
from torch import Tensor, nn

import unspool.nn


class Outputs(unspool.nn.LSTM):
    """A layer that gives its output alone: opacus multiplies what a module returns."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]  # type: ignore[no-any-return]


class Reader(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.lstm = layer
        self.answer = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        output = self.lstm(x)
        return self.answer((output if isinstance(output, Tensor) else output[0]).mean(1))


def test_gradients_of_each_sample() -> None:
    """Those of opacus's own LSTM, which is written for it, and those of one sample at a time."""
    torch.manual_seed(0)
    layer = Outputs(16, 64, batch_first=True)
    own = DPLSTM(16, 64, batch_first=True)
    own.load_state_dict(layer.state_dict())
    ours, theirs = Reader(layer), Reader(own)
    theirs.answer.load_state_dict(ours.answer.state_dict())
    x, answers = torch.randn(32, 40, 16), torch.randint(0, 3, (32,))

    def per_sample(model: GradSampleModule) -> dict[str, Tensor]:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), answers, reduction="sum").backward()
        # DPLSTM keeps torch's names in its state dict and others in its modules: sums tell them apart.
        return {"answer": model._module.answer.weight.grad_sample, "sizes": norms(model)}

    def norms(model: GradSampleModule) -> Tensor:
        """Of each sample's whole gradient: what is clipped."""
        parts = [p.grad_sample.flatten(1) for p in model.parameters() if p.requires_grad]
        return torch.cat(parts, 1).norm(dim=1)

    private_ours = GradSampleModule(ours, batch_first=True, loss_reduction="sum", force_functorch=True)
    private_theirs = GradSampleModule(theirs, batch_first=True, loss_reduction="sum")
    got = per_sample(private_ours)
    each = {name: p.grad_sample.clone() for name, p in ours.named_parameters()}
    apart = furthest(got, per_sample(private_theirs))
    for n in range(3):
        single = Reader(Outputs(16, 64, batch_first=True))
        single.load_state_dict(ours.state_dict())
        nn.functional.cross_entropy(single(x[n : n + 1]), answers[n : n + 1]).backward()
        alone = {name: p.grad for name, p in single.named_parameters()}
        apart = max(apart, furthest({name: part[n] for name, part in each.items()}, alone))
    times = milliseconds(lambda: per_sample(private_theirs), lambda: per_sample(private_ours))
    keep("opacus", "per-sample gradients, against its own DPLSTM", ours, apart, *times)
