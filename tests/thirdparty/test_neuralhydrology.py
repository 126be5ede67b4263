"""neuralhydrology: rainfall to runoff over a year of days."""

from pathlib import Path

import pytest
import torch
from comparison import compare
from neuralhydrology.modelzoo.cudalstm import CudaLSTM
from neuralhydrology.modelzoo.gru import GRU
from neuralhydrology.utils.config import Config
from torch import Tensor, nn

SETTINGS = {
    "model": "cudalstm",
    "hidden_size": 64,
    "head": "regression",
    "output_activation": "linear",
    "output_dropout": 0.0,
    "initial_forget_bias": 3,
    "dynamic_inputs": [f"forcing {n}" for n in range(5)],
    "static_attributes": [f"attribute {n}" for n in range(27)],
    "target_variables": ["discharge"],
    "predict_last_n": 1,
    "seq_length": 365,
    "run_dir": Path(),
}


@pytest.mark.parametrize("kind", [CudaLSTM, GRU])
def test_a_year_of_days(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind(Config(SETTINGS, dev_mode=True))
    days = {name: torch.randn(32, 365, 1) for name in SETTINGS["dynamic_inputs"]}
    attributes = torch.randn(32, 27)

    def run(one: nn.Module) -> dict[str, Tensor]:
        dtype = next(one.parameters()).dtype
        x_d = {name: day.to(dtype) for name, day in days.items()}
        return dict(one({"x_d": x_d, "x_s": attributes.to(dtype)}))

    # With their forget gates kept open a year's gradient grows to 10,000 times its last day's.
    explodes = kind is CudaLSTM
    compare(
        "neuralhydrology", f"{kind.__name__}, 32 × 365 days, H = 64", model, run, ill_conditioned=explodes
    )
