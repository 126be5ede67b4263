"""Plain layers on a GPU by torch's own kernels there (cuDNN), a whole stack at once.

What torch.nn's layers do is done as they do it; everything else on a GPU (resets, masks, options of a cell,
traces, captures, whatever torch compiles, exports or maps) runs the reference's equations in torch.  The
first derivative is cuDNN's, in evaluation as in training; further ones differentiate the equations.

Nothing here asks for a GPU but the choice: torch's functions of the same names run on the CPU too, and so are
tested.

    T time steps   B batch   I input size   H hidden size   D directions   L layers
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool.kernels.contract import Cell
from unspool.ops import batching
from unspool.ops.arguments import is_ordinary, kernels_for

Results = tuple[Tensor, ...]  # the output, the final hidden state, an LSTM's final cell state
Again = Callable[[Tensor, tuple[Tensor, ...] | None, Sequence[Tensor]], Results]

_MODES = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN_TANH: "RNN_TANH", Cell.RNN_RELU: "RNN_RELU"}


class Stack(NamedTuple):
    """A plain module's layers, as torch names their sizes."""

    cell: Cell
    input_size: int
    hidden_size: int
    layers: int
    directions: int
    bias: bool
    projected: int = 0
    dropout: float = 0.0  # of this call: 0 in evaluation


def takes(kernels: str, device: str) -> bool:
    """Whether plain layers on such a device are cuDNN's."""
    return kernels == "auto" and device == "cuda"


def describe(kernels: str, weight: Tensor) -> str:
    """Which kernels run a layer with such weights, as `repr` shows it."""
    return describe_on(kernels, weight.device.type) or kernels_for(kernels, weight).describe()


def describe_on(kernels: str, device: str) -> str | None:
    """The same for a device's name; None: one kernel set, whatever the call."""
    return "cuDNN (what torch.nn lacks: reference)" if takes(kernels, device) else None


def run(
    stack: Stack,
    x: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: tuple[Tensor, ...],
    lengths: Tensor | None,
    again: Again,
) -> Results:
    """Run a plain stack by torch's own kernels.

    Args:
        stack: its sizes.
        x: (T, B, I), T and B at least 1.
        state: (L·D, B, H) each, or None for zeros.
        weights: each layer's and direction's parameters, in torch's order.
        lengths: (B,) on the CPU, 0 to T, any order, or None.
        again: the same by the reference's equations, for derivatives of derivatives.

    Returns:
        The output (T, B, D·H), 0 past each length, and the final state, (L·D, B, H) each.
    """
    given = (x, *(state or ()), *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _Cudnn.apply(stack, lengths, again, len(state or ()), *given)  # type: ignore[no-any-return, no-untyped-call]
    return _by_torch(stack, x, state, _in_one_block(stack, weights), lengths, gradient=False)


def _by_torch(
    stack: Stack,
    x: Tensor,
    state: tuple[Tensor, ...] | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    gradient: bool,
) -> Results:
    steps, batch, _ = x.shape
    lstm = stack.cell is Cell.LSTM
    rows = stack.layers * stack.directions
    if state is None:
        state = (x.new_zeros(rows, batch, stack.projected or stack.hidden_size),)
        if lstm:
            state = (*state, x.new_zeros(rows, batch, stack.hidden_size))
    function = getattr(torch._VF, _MODES[stack.cell].lower())
    hx = list(state) if lstm else state[0]
    # cuDNN keeps what a gradient needs in its training mode alone; with no dropout it computes the same.
    options = (stack.bias, stack.layers, stack.dropout, gradient or stack.dropout > 0, stack.directions == 2)
    weights = list(weights)
    if lengths is None:
        with torch.autocast(x.device.type, enabled=False):  # in the weights' dtype, as all our kernels
            return tuple(function(x, hx, weights, *options, False))
    # torch packs no sequence of length 0: such a row runs one step of zeros, of which nothing is kept.
    none = (lengths == 0).to(x.device)
    x = x.masked_fill(none[:, None], 0)
    packed = pack_padded_sequence(x, lengths.clamp(min=1), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None
    assert back is not None
    sorted_state = [part.index_select(1, order) for part in state]
    hx = sorted_state if lstm else sorted_state[0]
    with torch.autocast(x.device.type, enabled=False):
        data, *final = function(packed.data, packed.batch_sizes, hx, weights, *options)
    output, _ = pad_packed_sequence(packed._replace(data=data), total_length=steps)
    output = output.masked_fill(none[:, None], 0)
    final = [part.index_select(1, back) for part in final]
    return output, *(torch.where(none[:, None], s, f) for s, f in zip(state, final, strict=True))


def _in_one_block(stack: Stack, weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the weights, as cuDNN wants them: views of one block.  The parameters stay what they are."""
    copies = [weight.detach().clone() for weight in weights]
    first = copies[0]
    acceptable: Any = torch.backends.cudnn.is_acceptable
    if first.is_cuda and acceptable(first) and torch._use_cudnn_rnn_flatten_weight():
        from torch.backends.cudnn import rnn

        each = (4 if stack.bias else 2) + (1 if stack.projected else 0)
        with torch.no_grad():
            torch._cudnn_rnn_flatten_weight(
                copies,
                each,
                stack.input_size,
                rnn.get_cudnn_mode(_MODES[stack.cell]),  # type: ignore[no-untyped-call]
                stack.hidden_size,
                stack.projected,
                stack.layers,
                False,
                stack.directions == 2,
            )
    return copies


class _Cudnn(torch.autograd.Function):
    """A call of torch's own kernels with a graph of its own, so that its gradient can be derived again."""

    @staticmethod
    def forward(
        ctx: Any, stack: Stack, lengths: Tensor | None, again: Again, states: int, *given: Tensor
    ) -> Results:
        ctx.stack, ctx.again, ctx.states = stack, again, states
        ctx.set_materialize_grads(False)
        asked = ctx.needs_input_grad[4:]
        copies = _in_one_block(stack, given[1 + states :])
        inside = [*(tensor.detach() for tensor in given[: 1 + states]), *copies]
        for tensor, wanted in zip(inside, asked, strict=True):
            tensor.requires_grad_(wanted)
        with torch.enable_grad():
            results = _by_torch(
                stack,
                inside[0],
                tuple(inside[1 : 1 + states]) or None,
                inside[1 + states :],
                lengths,
                gradient=True,
            )
        ctx.save_for_backward(*given, *inside, *results)  # the graph between the last two goes with them
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # raises where the graph was freed, or something was changed in place
        asked = ctx.needs_input_grad[4:]
        count = len(asked)
        given, inside, results = saved[:count], saved[count : 2 * count], saved[2 * count :]
        derived = torch.is_grad_enabled() or batching.is_in_old_vmap(arriving) or not is_ordinary(arriving)
        if derived and ctx.stack.dropout:
            raise RuntimeError(
                "A layer whose dropout cuDNN drew cannot be differentiated twice: the masks are not known\n"
                f"  Received: dropout={ctx.stack.dropout} in training.\n"
                "  Fix: layer.eval(), dropout=0, or a layer created with kernels='reference'."
            )
        if derived:
            with torch.enable_grad():
                state = tuple(given[1 : 1 + ctx.states]) or None
                results = ctx.again(given[0], state, given[1 + ctx.states :])
            inside = given
        pairs = [(result, d) for result, d in zip(results, arriving, strict=True) if d is not None]
        wanted = [tensor for tensor, is_asked in zip(inside, asked, strict=True) if is_asked]
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                wanted,
                [d for _, d in pairs],
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            if pairs
            else [None] * len(wanted)
        )
        return None, None, None, None, *(next(found) if is_asked else None for is_asked in asked)
