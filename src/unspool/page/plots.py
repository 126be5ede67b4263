"""Draw what `introspect` found, one result on one axis of matplotlib.

    from unspool.page import plot
    ax = plot(introspect.gradient_terms(layer, x, at=99))          a figure of its own: ax.figure
    plot(introspect.gradient_flow(layer, x, at=99), ax)            on an axis of yours

Nothing is computed here, and no file is written: `ax.figure.savefig(path)` does that.

    T time steps   H hidden size
"""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from unspool.errors import InputError, MissingExtra
from unspool.introspect import (
    Capture,
    Contributions,
    Fault,
    GradientFlow,
    InputContributions,
    Jacobian,
    MemorySpans,
    Reading,
    Recording,
    RightContext,
    Saturations,
    Terms,
)
from unspool.kernels.contract import Gate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _RED, _GREEN, _GREY = "#1f5fa8", "#b5532a", "#4a8a3c", "#77777f"
_SIZE = (6.4, 3.2)  # inches of a figure of its own
_TICKS = 40  # as many words or steps are written below an axis
_READING = ("forward", "reverse")


def plot(result: Any, ax: "Axes | None" = None, **options: Any) -> "Axes":
    """Draw a result.

    Args:
        result: what a function of `introspect` returned.
        ax: where to draw.  None: on a figure of its own, which belongs to no window.
        options: of a recording, a reading or a capture: `what` ("hidden", "cell" or a `Gate`), `layer`,
            `direction`, of a reading or a capture `sample` too, of a capture `module`; of
            `InputContributions`: `sample`.

    Returns:
        The axis; its figure is `ax.figure`.

    Raises:
        InputError: there is no picture of such a thing, or an option names what does not exist.
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("drawing", "matplotlib", "plot") from error
    if ax is None:
        ax = Figure(figsize=_SIZE, layout="constrained").subplots()
    _draw(result, ax, **options)
    return ax


@functools.singledispatch
def _draw(result: Any, ax: "Axes", **options: Any) -> None:
    known = sorted(kind.__name__ for kind in _draw.registry if kind is not object)
    raise InputError(
        f"there is no picture of this.\n  Received: {type(result).__name__}.\n"
        f"  Fix: pass what introspect returns: {', '.join(known)}."
    )


@_draw.register(Terms)
def _terms(result: Terms, ax: "Axes") -> None:
    steps = np.arange(len(result.norms))
    ax.plot(steps, _positive(result.norms), ".-", color=_BLUE, linewidth=1, markersize=4)
    ax.axvline(result.at, color=_GREY, linestyle=":", linewidth=1)
    ax.set_yscale("log")
    ax.set_xlabel("step k")
    ax.set_ylabel("size of the term")
    ax.set_title(f"dL/d{result.weight} of step {result.at}, one term a step", fontsize="medium")


@_draw.register(GradientFlow)
def _flow(result: GradientFlow, ax: "Axes") -> None:
    for part, label, colour, line in (
        ("hidden", "‖dL/dh‖", _BLUE, "-"),
        ("cell", "‖dL/dc‖", _RED, "-"),
        ("cell_path", "of it, along the cell state alone", _GREEN, "--"),
        ("cell_rest", "the rest", _GREY, ":"),
    ):
        if getattr(result, part) is not None:
            ax.plot(_positive(result.by_lag(part)), line, color=colour, linewidth=1.2, label=label)
    ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel(f"steps before step {result.at}, {_READING[result.direction]}")
    ax.set_ylabel("size of the gradient")
    ax.set_title(f"how far the loss of step {result.at} reaches back", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)


@_draw.register(Jacobian)
def _jacobian(result: Jacobian, ax: "Axes") -> None:
    for part, label, colour, line in (
        ("hidden_hidden", "∂h/∂h", _BLUE, "-"),
        ("hidden_cell", "∂h/∂c", _BLUE, "--"),
        ("cell_hidden", "∂c/∂h", _RED, "--"),
        ("cell_cell", "∂c/∂c", _RED, "-"),
    ):
        if getattr(result, part) is not None:
            values = _positive(result.singular_values(part))
            ax.plot(values, line, marker=".", markersize=4, color=colour, linewidth=1, label=label)
    if result.forget_path is not None:
        path = _positive(np.sort(result.forget_path)[::-1])
        ax.plot(path, ":", color=_GREEN, linewidth=1.5, label="products of forget gates")
    ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("rank")
    ax.set_ylabel("singular value")
    ax.set_title(f"state after step {result.at} by that after step {result.of}", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)


@_draw.register(Saturations)
def _saturations(result: Saturations, ax: "Axes") -> None:
    places = np.arange(len(result))
    low, high = (np.array([getattr(one, end) for one in result]) for end in ("low", "high"))
    ax.barh(places, -low, color=_RED, label="shut, or at -1")
    ax.barh(places, high, color=_BLUE, label="open, or at 1")
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(places, [f"{_place(one)} {one.gate.value}" for one in result], fontsize="x-small")
    ax.invert_yaxis()
    ax.set_xlim(-1, 1)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["100%", "50%", "0", "50%", "100%"])
    ax.set_xlabel("share of values at an end")
    ax.set_title("saturated gates", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)


@_draw.register(MemorySpans)
def _spans(result: MemorySpans, ax: "Axes") -> None:
    for one, colour in zip(result, _colours(len(result)), strict=True):
        ax.plot(np.sort(one.steps)[::-1], ".-", color=colour, linewidth=1, markersize=4, label=_place(one))
    ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("units, the longest memory first")
    ax.set_ylabel("steps until 1/e is left")
    ax.set_title("memory by the gates alone", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)


@_draw.register(Contributions)
def _contributions(result: Contributions, ax: "Axes") -> None:
    _bars(ax, result.values)
    _words(ax, result.words)
    ax.set_ylabel(f"towards {_plain(result.label)}")
    margin = f"margin {result.margin:.3g} over {_plain(result.rival)}"
    ax.set_title(f"{_plain(result.label)} {result.score:.3f}, {margin}", fontsize="medium", parse_math=False)


@_draw.register(InputContributions)
def _input_contributions(result: InputContributions, ax: "Axes", sample: int = 0) -> None:
    values = result.of_sample(sample)
    _bars(ax, values.ravel())
    ax.set_xlabel("step")
    ax.set_ylabel("contribution")
    output, without = float(result.output[sample]), float(result.output_without[sample])
    ax.set_title(f"what moved the output from {without:.3g} to {output:.3g}", fontsize="medium")


@_draw.register(RightContext)
def _right_context(result: RightContext, ax: "Axes") -> None:
    places = np.arange(len(result.words))
    ax.bar(places - 0.2, result.forward, 0.38, color=_BLUE, label="forward")
    if result.reverse is not None:
        ax.bar(places + 0.2, result.reverse, 0.38, color=_RED, label="reverse")
    _words(ax, result.words)
    ax.set_ylabel("change of the state")
    ax.set_title("how far what follows changed the reading", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)


@_draw.register(Fault)
def _fault(result: Fault, ax: "Axes") -> None:
    before = np.arange(-len(result.norms), 0)
    ax.plot(before, result.norms, ".-", color=_BLUE)
    ax.axvline(0, color=_RED, linewidth=1)
    ax.set_xlabel("steps before the fault")
    ax.set_ylabel("size of the hidden state")
    ax.set_title(result.title(), fontsize="small", parse_math=False)


@_draw.register(Recording)
def _recording(
    result: Recording, ax: "Axes", what: Gate | str = "hidden", layer: int = -1, direction: int = 0
) -> None:
    values = _quantity(what, result.hidden, result.cell_state, result.gate, layer=layer, direction=direction)
    _map(ax, values, what, direction)
    _words(ax, result.words)


@_draw.register(Reading)
def _reading(
    result: Reading,
    ax: "Axes",
    what: Gate | str = "hidden",
    layer: int = -1,
    direction: int = 0,
    sample: int = 0,
) -> None:
    batch = len(result.lengths)
    if not 0 <= sample < batch:
        raise InputError(
            f"there is no sample {sample}.\n  Received: a batch of {batch}.\n  Fix: 0 to {batch - 1}."
        )
    values = _quantity(what, result.hidden, result.cell_state, result.gate, layer=layer, direction=direction)
    _map(ax, values[: result.lengths[sample], sample], what, direction)
    ax.set_xlabel("step")


@_draw.register(Capture)
def _capture(result: Capture, ax: "Axes", module: str | None = None, **options: Any) -> None:
    name = result.names[0] if module is None and len(result.names) == 1 else module
    if name is None:
        raise InputError(
            f"which recurrent layer?\n  Received: a capture of {len(result.names)}.\n"
            f"  Fix: module= one of {', '.join(map(repr, result.names)):.400}."
        )
    _reading(result[name], ax, **options)


def _quantity(what: Gate | str, hidden: Any, cell: Any, gate: Any, **place: int) -> Any:
    """A gate or a state of a layer and direction."""
    if isinstance(what, Gate):
        return gate(what, **place)
    if what not in ("hidden", "cell"):
        raise InputError(f'there is no {what!r:.40} to draw.\n  Fix: "hidden", "cell" or a Gate.')
    return (hidden if what == "hidden" else cell)(**place)


def _map(ax: "Axes", values: Any, what: Gate | str, direction: int) -> None:
    """Units by steps, in colours: (T, H)."""
    signed = what is Gate.CANDIDATE or not isinstance(what, Gate)
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max(initial=0)) or 1.0
    image = ax.imshow(
        values.T,
        aspect="auto",
        interpolation="antialiased",
        cmap="PuOr" if signed else "viridis",
        vmin=-limit if signed else 0,
        vmax=limit if signed else 1,
    )
    ax.figure.colorbar(image, ax=ax)
    ax.locator_params(integer=True)
    ax.set_ylabel("unit")
    name = (
        f"{what.value} gate"
        if isinstance(what, Gate) and what is not Gate.CANDIDATE
        else ("candidate" if isinstance(what, Gate) else f"{what} state")
    )
    ax.set_title(f"{name}, {_READING[direction]}", fontsize="medium")


def _bars(ax: "Axes", values: Any) -> None:
    heights = np.where(np.isfinite(values), values, 0)  # no bar for what is no number
    ax.bar(range(len(heights)), heights, color=[_RED if value < 0 else _BLUE for value in heights])
    ax.axhline(0, color="black", linewidth=0.6)


def _words(ax: "Axes", words: tuple[str, ...]) -> None:
    every = -(-len(words) // _TICKS)
    shown = [_plain(word) for word in words[::every]]
    ax.set_xticks(range(0, len(words), every), shown, rotation=90, fontsize="small", parse_math=False)


def _plain(word: str) -> str:
    """A word without what cannot be seen, and not longer than a label may be."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in word)
    return shown if len(shown) <= 24 else f"{shown[:23]}…"


def _place(one: Any) -> str:
    return f"{one.module + ' ' if one.module else ''}{one.layer} {_READING[one.direction]}"


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return (
        [_BLUE, _RED, _GREEN, _GREY][:count]
        if count <= 4
        else list(colormaps["viridis"](np.linspace(0, 0.9, count)))
    )


def _positive(values: Any) -> Any:
    """Nothing where a logarithm has nothing to show."""
    return np.where(values > 0, values, np.nan)
