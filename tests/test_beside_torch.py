"""What the README says that torch.nn's layers cannot do: each is tried, and seen to fail.

A row that fails here is good news: torch can do it now, and the README's table is to be changed.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

pytestmark = [  # what torch warns of itself
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*were assigned during export:UserWarning"),
]


@pytest.fixture
def lstm() -> torch.nn.LSTM:
    torch.manual_seed(0)
    return torch.nn.LSTM(3, 4, 2, bidirectional=True)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 2, 3)


def test_it_is_not_compiled_whole(lstm: torch.nn.LSTM, x: Tensor) -> None:
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(lstm, fullgraph=True, backend="eager")(x)


def test_it_is_not_exported_with_dynamic_time(lstm: torch.nn.LSTM, x: Tensor) -> None:
    time = torch.export.Dim("time", min=2, max=100)
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        torch.export.export(lstm, (x,), dynamic_shapes=({0: time},))


def test_it_has_no_rule_for_vmap(lstm: torch.nn.LSTM, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: lstm(x)[0])(torch.stack([x, x]))
    twice = {name: torch.stack([p, p]) for name, p in lstm.named_parameters()}
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda weights: torch.func.functional_call(lstm, weights, (x,))[0])(twice)


def test_it_has_no_forward_mode(lstm: torch.nn.LSTM, x: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))


def test_it_takes_no_sequence_of_length_0(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="greater than 0"):
        pack_padded_sequence(x, torch.tensor([5, 0]), enforce_sorted=False)


def test_under_autocast_its_states_are_narrow(lstm: torch.nn.LSTM, x: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            output, _ = lstm(x)
        except RuntimeError as refused:  # oneDNN has no such LSTM where a processor has no AVX-512
            if "could not create a primitive descriptor" not in str(refused):
                raise
        else:
            assert output.dtype == torch.bfloat16
