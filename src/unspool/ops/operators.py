"""The operators `unspool::infer`, `unspool::forward` and `unspool::backward`, as torch.library knows them.

What runs them (`running`), derives them (`derivatives`) and maps them (`batching`) is tied to their names
here: the implementation, the shapes of results for tracing, autograd, vmap and autocast.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from unspool.kernels.contract import Cell, Trace
from unspool.ops import batching, derivatives, groups, running
from unspool.ops.arguments import (
    ARRIVING,
    BACKWARD,
    FORWARD,
    GIVEN,
    INFER,
    OPTIONS,
    SECOND,
    SETTINGS,
    TRACE,
    WEIGHTS,
    Layer,
    is_traced,
    is_transformed,
    or_none,
    or_nothing,
    precision_of,
    state_shapes,
    trace_shapes,
)

library: Any = torch.library.Library("unspool", "DEF")  # type: ignore[no-untyped-call]
for _schema in (INFER, FORWARD, BACKWARD, SECOND):
    library.define(_schema)

_HIDDEN = Trace._fields.index("hidden")
_NO_SETTINGS = (None,) * len(SETTINGS)  # in the place of their gradients


# -- what runs


def _infer(*flat: Any) -> tuple[Tensor, ...]:
    layer = Layer.of(flat)
    return or_nothing(running.infer(running.prepare(layer), layer), layer.x)


def _forward(*flat: Any) -> tuple[Tensor, ...]:
    layer = Layer.of(flat)
    trace, final = running.forward(running.prepare(layer), layer)
    return or_nothing((*trace, *final), layer.x)


def _backward(*flat: Any) -> list[Tensor]:
    count, arriving, trace, layer = read_backward(flat)
    prepared = running.prepare(layer)
    if count:
        gradients = groups.backward(prepared, layer, trace, arriving, count)
    else:
        gradients, _ = running.backward(prepared, layer, trace, arriving)
    return [d.contiguous() for d in running.of_given(layer, gradients) if d is not None]


def read_backward(flat: Sequence[Any]) -> tuple[int, tuple[Tensor | None, ...], Trace, Layer]:
    """The arguments of `backward`: groups, what arrives, the trace, the layer."""
    first, second = 1 + len(ARRIVING), 1 + len(ARRIVING) + len(TRACE)
    return flat[0], tuple(flat[1:first]), Trace(*flat[first:second]), Layer.of(flat[second:])


def _read_second(
    flat: Sequence[Any],
) -> tuple[int, tuple[Tensor | None, ...], tuple[Tensor | None, ...], Layer]:
    first, second = 1 + len(GIVEN), 1 + len(GIVEN) + len(ARRIVING)
    return flat[0], tuple(flat[1:first]), tuple(flat[first:second]), Layer.of(flat[second:])


def _second(*flat: Any) -> list[Tensor]:
    count, d_gradients, arriving, layer = _read_second(flat)
    present = [d_gradients[place] for place in layer.present()]
    with _autograd_back():
        found = derivatives.second(layer, arriving, count, present)
    return [d.detach().clone(memory_format=torch.contiguous_format) for d in found if d is not None]


def _autograd_back() -> Any:
    """An operator runs below autograd, which differentiates the equations here."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, name))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def _fake_second(*flat: Any) -> list[Tensor]:
    _, _, arriving, layer = _read_second(flat)
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (*arriving, *layer.given)
        if t is not None
    ]


def _refuse_third(ctx: Any, *d: Any) -> None:
    raise RuntimeError(
        "A recurrent layer that is traced or compiled cannot be differentiated three times\n"
        "  Received: a derivative of its second derivative.\n"
        "  Fix: take the third derivative outside torch.compile."
    )


# -- what is traced


def _fake_infer(*flat: Any) -> tuple[Tensor, ...]:
    layer = Layer.of(flat)
    shapes = (trace_shapes(layer)[_HIDDEN], *state_shapes(layer))
    return tuple(layer.x.new_empty(0 if shape is None else shape) for shape in shapes)


def _fake_forward(*flat: Any) -> tuple[Tensor, ...]:
    layer = Layer.of(flat)
    shapes = (*trace_shapes(layer), *state_shapes(layer))
    return tuple(layer.x.new_empty(0 if shape is None else shape) for shape in shapes)


def _fake_backward(*flat: Any) -> list[Tensor]:
    count, _, _, layer = read_backward(flat)
    weights = len(layer.given) - len(WEIGHTS)
    return [
        tensor.new_empty((count, *tensor.shape) if count and place >= weights else tensor.shape)
        for place, tensor in enumerate(layer.given)
        if tensor is not None
    ]


# -- what is differentiated


def _keep(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.settings = inputs[: len(SETTINGS)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(
        *(kept for i, kept in enumerate(output[: len(TRACE)]) if i != _HIDDEN)
    )  # what else the trace holds is for backward alone
    ctx.save_for_backward(*inputs[len(SETTINGS) :], *output[: len(TRACE)])


def _derive(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: each reading unpacks
    count = len(GIVEN) + len(OPTIONS)
    layer = Layer.of((*ctx.settings, *saved[:count]))
    trace = or_none(layer.run.cell, saved[count:], Trace._fields)
    gradients = call_backward(0, arriving[_HIDDEN], *arriving[len(TRACE) :], *trace, *layer.flat)
    found = dict(zip(layer.present(), gradients, strict=True))
    return (*_NO_SETTINGS, *(found.get(i) for i in range(len(GIVEN))), *[None] * len(OPTIONS))


def _keep_for_backward(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    count, arriving, _, layer = read_backward(inputs)
    ctx.groups, ctx.settings = count, layer.run.settings
    ctx.save_for_backward(*arriving, *layer.flat[len(SETTINGS) :])


def _read_kept(ctx: Any) -> tuple[tuple[Tensor | None, ...], Layer]:
    saved = ctx.saved_tensors
    return saved[: len(ARRIVING)], Layer.of((*ctx.settings, *saved[len(ARRIVING) :]))


def _derive_backward(ctx: Any, *d_gradients: Any) -> tuple[Tensor | None, ...]:
    """The trace is a function of what was given, and counts as that: it gets no gradient of its own."""
    arriving, layer = _read_kept(ctx)
    if len(d_gradients) == 1 and isinstance(d_gradients[0], list):
        d_gradients = tuple(d_gradients[0])
    if not is_transformed() and is_traced((*arriving, *layer.given)):
        found = _second_operator(layer, arriving, ctx.groups, d_gradients)
    else:
        found = derivatives.second(layer, arriving, ctx.groups, d_gradients)
    d_arriving, d_given = found[: len(ARRIVING)], found[len(ARRIVING) :]
    return (None, *d_arriving, *[None] * len(TRACE), *_NO_SETTINGS, *d_given, *[None] * len(OPTIONS))


def _second_operator(
    layer: Layer,
    arriving: Sequence[Tensor | None],
    count: int,
    d_gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    spread: list[Tensor | None] = [None] * len(layer.given)
    for place, d in zip(layer.present(), d_gradients, strict=True):
        spread[place] = d
    results = iter(torch.ops.unspool.second.default(count, *spread, *arriving, *layer.flat))
    return [None if tensor is None else next(results) for tensor in (*arriving, *layer.given)]


def _keep_for_infer(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    ctx.settings = inputs[: len(SETTINGS)]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[len(SETTINGS) :])


def _derive_infer(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    """No trace was kept: the layer runs again for it."""
    layer = Layer.of((*ctx.settings, *ctx.saved_tensors))
    results = call_forward(*layer.flat)
    trace = or_none(layer.run.cell, results[: len(TRACE)], Trace._fields)
    gradients = call_backward(0, *arriving, *trace, *layer.flat)
    found = dict(zip(layer.present(), gradients, strict=True))
    return (*_NO_SETTINGS, *(found.get(i) for i in range(len(GIVEN))), *[None] * len(OPTIONS))


# -- functorch's transforms go through a Function: torch.library's autograd does not take part in them


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(*flat: Any) -> Any:
        return torch.ops.unspool.forward.default(*flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[len(SETTINGS) :])

    backward = staticmethod(_derive)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *flat: Any) -> Any:
        return batching.map_layer(call_forward, info.batch_size, in_dims, flat)

    @staticmethod
    def jvp(ctx: Any, *moving: Tensor | None) -> Any:
        layer = Layer.of((*ctx.settings, *ctx.saved_for_forward))
        found = derivatives.tangents(layer, moving[len(SETTINGS) : len(SETTINGS) + len(GIVEN)])
        trace: list[Tensor | None] = [None] * len(TRACE)
        trace[_HIDDEN] = found[0]
        final = found[1:] if layer.run.cell is Cell.LSTM else (found[1], found[1].new_zeros(0))
        return (*trace, *final)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(*flat: Any) -> Any:
        return tuple(torch.ops.unspool.backward.default(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _keep_for_backward(ctx, inputs, output)
        _, arriving, _, layer = read_backward(inputs)
        ctx.save_for_forward(*arriving, *layer.flat[len(SETTINGS) :])

    backward = staticmethod(_derive_backward)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *flat: Any) -> Any:
        results, dims = batching.map_backward(call_backward, info.batch_size, in_dims, flat)
        return tuple(results), tuple(dims)

    @staticmethod
    def jvp(ctx: Any, *moving: Tensor | None) -> Any:
        saved = ctx.saved_for_forward
        layer = Layer.of((*ctx.settings, *saved[len(ARRIVING) :]))
        first = 1 + len(ARRIVING) + len(TRACE) + len(SETTINGS)
        return derivatives.tangents_of_gradients(
            layer,
            saved[: len(ARRIVING)],
            ctx.groups,
            moving[1 : 1 + len(ARRIVING)],
            moving[first : first + len(GIVEN)],
        )


def is_dual() -> bool:
    """Whether forward-mode differentiation is active outside functorch's transforms."""
    return forward_mode._current_level >= 0 and not torch._C._are_functorch_transforms_active()


def call_forward(*flat: Any) -> Sequence[Tensor]:
    """`unspool::forward`, under whatever transform is active."""
    if is_transformed():
        return _Forward.apply(*flat)  # type: ignore[no-any-return, no-untyped-call]
    return torch.ops.unspool.forward.default(*flat)  # type: ignore[no-any-return]


def call_backward(*flat: Any) -> Sequence[Tensor]:
    """`unspool::backward`, under whatever transform is active."""
    if is_transformed():
        return _Backward.apply(*flat)  # type: ignore[no-any-return, no-untyped-call]
    return torch.ops.unspool.backward.default(*flat)  # type: ignore[no-any-return]


# -- what autocast casts: to the weights' dtype, that of states and sums; to bfloat16 only what products take


def _under_autocast(name: str, key: str) -> Callable[..., Any]:
    operator = getattr(torch.ops.unspool, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(*flat: Any) -> Any:
        layer = Layer.of(flat)
        dtype = layer.weights()[0].input.dtype
        given = tuple(None if tensor is None else tensor.to(dtype) for tensor in layer.given)
        shares = (layer.run.recurrent_mask, layer.run.zoneout_hidden, layer.run.zoneout_cell)
        mask, hidden, cell = (None if share is None else share.to(dtype) for share in shares)
        run = layer.run._replace(
            recurrent_mask=mask,
            zoneout_hidden=hidden,
            zoneout_cell=cell,
            precision=precision_of(layer.weights()[0]) if layer.run.is_plain else "float32",
        )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*Layer(run, given).flat)

    return cast


for _name, _run, _fake, _setup, _formula in (
    ("infer", _infer, _fake_infer, _keep_for_infer, _derive_infer),
    ("forward", _forward, _fake_forward, _keep, _derive),
    ("backward", _backward, _fake_backward, _keep_for_backward, _derive_backward),
    ("second", _second, _fake_second, lambda ctx, inputs, output: None, _refuse_third),
):
    library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"unspool::{_name}", _fake, lib=library)
    torch.library.register_autograd(f"unspool::{_name}", _formula, setup_context=_setup, lib=library)

for _name in ("infer", "forward"):
    for _key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(_name, _under_autocast(_name, _key), _key)


def _map_infer(info: Any, in_dims: Any, *flat: Any) -> Any:
    return batching.map_layer(torch.ops.unspool.infer.default, info.batch_size, in_dims, flat)


def _map_forward(info: Any, in_dims: Any, *flat: Any) -> Any:
    return batching.map_layer(torch.ops.unspool.forward.default, info.batch_size, in_dims, flat)


def _map_backward(info: Any, in_dims: Any, *flat: Any) -> Any:
    return batching.map_backward(torch.ops.unspool.backward.default, info.batch_size, in_dims, flat)


torch.library.register_vmap("unspool::infer", _map_infer, lib=library)
torch.library.register_vmap("unspool::forward", _map_forward, lib=library)
torch.library.register_vmap("unspool::backward", _map_backward, lib=library)
