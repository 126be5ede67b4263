"""What is asked of the tensors that arrive at a layer or a cell, and what is said of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.errors import InputError


def as_the_weights(x: Tensor, weight: Tensor) -> Tensor:
    """Under autocast states and sums keep their weights' dtype; float64 is left alone, as torch leaves it."""
    device = x.device.type
    if (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and x.is_floating_point()
        and x.dtype != torch.float64
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


def check_dense(x: Tensor, what: str) -> None:
    """Raise where a tensor's numbers do not lie in rows and columns."""
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"a tensor of {x.layout}"
        fix = "torch.nested.to_padded_tensor, and lengths=" if x.is_nested else f"{what}.to_dense()"
        raise RuntimeError(f"{what} must be a dense tensor\n  Received: {kind}.\n  Fix: {fix}.")


def lengths_as_tensor(lengths: Tensor | Sequence[int], steps: int, batch: int) -> Tensor:
    """Lengths in every form as a tensor, whose values are still to be checked."""
    if isinstance(lengths, Tensor):
        if lengths.layout != torch.strided or lengths.is_meta:
            raise _no_lengths(f"a tensor of {lengths.layout} on {lengths.device}", steps, batch)
        return lengths.unsqueeze(0) if lengths.dim() == 0 else lengths
    try:
        found = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        said = f"{type(lengths).__name__}, {str(error).splitlines()[0]:.100}"
        raise _no_lengths(said, steps, batch) from error
    if not found.numel():
        found = found.long()  # a list of nothing says nothing of its dtype
    return found.unsqueeze(0) if found.dim() == 0 else found


def _no_lengths(received: str, steps: int, batch: int) -> InputError:
    return InputError(
        f"lengths must be one integer a sequence.\n  Received: {received}.\n"
        f"  Fix: pass ({batch},) integers from 0 to {steps}."
    )


def fits(given: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    return (
        isinstance(given, Tensor)
        and tuple(given.shape) == shape
        and given.dtype == dtype
        and given.device == device
        and given.layout == torch.strided
    )


def received(given: Any) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    gradient = ", asking for a gradient" if given.requires_grad else ""
    layout = "" if given.layout == torch.strided else f", {given.layout}"
    return f"{tuple(given.shape)} of {given.dtype} on {given.device}{layout}{gradient}"


def check_pair(hx: Any) -> None:
    if hx is None:
        return
    if not isinstance(hx, tuple | list) or len(hx) != 2 or hx[0] is None or hx[1] is None:
        raise TypeError(
            f"LSTM: hx must be a tuple (h_0, c_0)\n  Received: {_parts(hx)}.\n"
            f"  Fix: pass hx=(h_0, c_0), each (num_layers x directions, batch, hidden_size)."
        )


def check_step_pair(hx: Any) -> None:
    """Of a cell: how many parts there are torch's words say, later."""
    if hx is not None and (isinstance(hx, Tensor) or any(part is None for part in hx)):
        raise TypeError(
            f"LSTMCell: hx must be a tuple (h, c)\n  Received: {_parts(hx)}.\n  Fix: pass hx=(h, c)."
        )


def _parts(hx: Any) -> str:
    if not isinstance(hx, tuple | list):
        return type(hx).__name__
    return f"{type(hx).__name__} of {', '.join(type(part).__name__ for part in hx) or 'nothing'}"
