"""What is asked of the tensors that arrive at a layer or a cell, and what is said of them."""

from typing import Any

import torch
from torch import Tensor, nn

from unspool.errors import InputError

ORDINARY = (Tensor, nn.Parameter)


def as_the_weights(x: Tensor, weight: Tensor) -> Tensor:
    """Under autocast states and sums keep their weights' dtype, whatever was handed to the layer."""
    device = x.device.type
    if (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and x.is_floating_point()
    ):
        return x.to(weight.dtype)
    return x


def check_dtype(weight: Tensor) -> None:
    """Raise where no kernels run a layer's weights: narrow ones on the CPU."""
    if weight.dtype in (torch.bfloat16, torch.float16) and weight.device.type == "cpu":
        raise InputError(
            f"On the CPU a layer does not run {str(weight.dtype)[6:]} weights: they are float32 or float64.\n"
            f"  Received: weights of {weight.dtype}.\n"
            "  Fix: layer.float(), and torch.autocast('cpu', dtype=torch.bfloat16) around the call: products "
            "in bfloat16, states and sums in float32."
        )


def fits(given: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    return (
        isinstance(given, Tensor)
        and tuple(given.shape) == shape
        and given.dtype == dtype
        and given.device == device
    )


def received(given: Any) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    gradient = ", asking for a gradient" if given.requires_grad else ""
    return f"{tuple(given.shape)} of {given.dtype} on {given.device}{gradient}"


def check_pair(hx: Any) -> None:
    if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
        raise TypeError(
            f"LSTM: hx must be a tuple (h_0, c_0)\n  Received: {type(hx).__name__}.\n"
            f"  Fix: pass hx=(h_0, c_0), each (num_layers x directions, batch, hidden_size)."
        )
