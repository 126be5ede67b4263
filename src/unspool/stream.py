"""A running state: many streams stepped through the layers of one network, a time step at a time.

For what arrives as it happens: agents, audio, keyboards, sensors.  Runs the native kernels, in float32 on the
CPU; its steps have the bits of a run over the whole sequence.  Not for whole sequences (`kernels`, `nn`,
`model`) nor for training: no gradient flows through a stream.

    R rows (streams)   I input size   H hidden size   L layers
    P size of a projected hidden state; H where there is no projection
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError
from unspool.kernels import checks, native
from unspool.kernels.contract import Array, Cell

_WHAT = "stream"
_VERSION = 1

Floats = NDArray[np.float32]


class Stream:
    """The state of R streams through L layers of one direction.

    Args:
        layers: each layer's weights as `kernels.native.prepare` made them; they stay as they are,
            whatever becomes of the parameters that they were made from.
        rows: how many streams there are.
        zoneout: the shares of h and of c that are kept from the step before, as in evaluation.

    Attributes:
        hidden: (L, R, P) the hidden states themselves, zeros at first; may be read and written.
        cell: (L, R, H) the cell states, likewise; None but for the LSTM.

    Raises:
        InputError: a layer of two directions, layers that do not follow on one another, rows below 1; zoneout
            below 0 or above 1, or in another precision than float32.
    """

    hidden: Floats
    cell: Floats | None

    def __init__(
        self, layers: Sequence[native.Prepared], rows: int = 1, *, zoneout: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        sizes = [layer.sizes for layer in layers]
        if any(size.directions != 1 for size in sizes):
            raise InputError(
                "a stream runs forward only: the reverse direction begins at the end, "
                "which is not there yet.\n  Received: a layer of two directions.\n"
                "  Fix: use a network with bidirectional=False."
            )
        if not sizes or any(b.input_size != a.output_size for a, b in pairwise(sizes)):
            raise InputError(
                "the layers of a stream should follow on one another.\n"
                f"  Received: {', '.join(f'{s.input_size} to {s.output_size}' for s in sizes) or 'none'}.\n"
                "  Fix: pass the layers of one network, in order."
            )
        if len({(s.cell.has_cell_state, s.hidden_size, s.output_size) for s in sizes}) > 1:
            raise InputError(
                "the layers of a stream should have as many units each, and all a cell state or none.\n"
                f"  Received: {', '.join(f'{s.cell.value} of {s.hidden_size}' for s in sizes)}.\n"
                "  Fix: make a stream of each."
            )
        if not all(0 <= share <= 1 for share in zoneout):
            raise InputError(f"zoneout should be two shares from 0 to 1.\n  Received: {zoneout!r:.60}.")
        if any(zoneout):
            checks.check_precision(sizes[0].precision, sizes[0].cell, ["zoneout"])
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise InputError(f"rows should be a whole number, 1 or more.\n  Received: {rows!r:.60}.")
        shape = (len(sizes), rows)
        self.rows = rows
        self.hidden = np.zeros((*shape, sizes[0].output_size), np.float32)
        self.cell = (
            np.zeros((*shape, sizes[0].hidden_size), np.float32) if sizes[0].cell is Cell.LSTM else None
        )
        self._sizes = sizes[0]
        self._path = native.describe_prepared(layers[0])
        self._options = (*sizes[0].options, *(["zoneout"] if any(zoneout) else []))
        cell = np.zeros(0, np.float32) if self.cell is None else self.cell
        self._native = native.stream(layers, rows, self.hidden, cell, zoneout)

    def step(self, x: Array, rows: Sequence[int] | Array | None = None, *, out: Floats | None = None) -> Any:
        """Take one step of every stream, or of those in `rows`.

        Args:
            x: (R, I) float32, a NumPy array or a torch tensor; with `rows`, one line each, in their order.
            rows: which streams take the step, each at most once; the others stand still.
            out: (R, P) float32, where the answer is written; must not overlap x.  None: a new array.

        Returns:
            (R, P) the top layer's hidden state; a tensor where x is one.

        Raises:
            InputError: x, rows or out does not fit; the state is then as it was.
            RuntimeError: another thread is inside `step`.
        """
        if type(x) is not np.ndarray:
            return self._step_other(x, rows, out)
        if rows is not None:
            rows = _row_numbers(rows)
        if out is None:
            out = np.empty((len(x) if x.ndim else 0, self._sizes.output_size), np.float32)
        try:
            self._native.step(x, rows, out, native.threads())
        except (TypeError, ValueError):
            self._refuse(x, rows, out)
            # Right in all but its layout: a view with gaps.
            self._native.step(np.ascontiguousarray(x), rows, out, native.threads())
        return out

    def reset(self, rows: Sequence[int] | Array | None = None) -> None:
        """Begin anew: set the state of all streams, or of those in `rows`, to zeros.

        Raises:
            InputError: a row that is not there.
        """
        at = slice(None) if rows is None else _row_numbers(rows)
        if isinstance(at, np.ndarray):
            self._check_rows(at)
        self.hidden[:, at] = 0
        if self.cell is not None:
            self.cell[:, at] = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state, not the weights, as one safetensors file.

        Raises:
            OSError: the disk refuses.
        """
        files.write_file(path, files.seal(_WHAT, _VERSION, self._state(), {"cell": self._sizes.cell.value}))

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Take over a state that `save` wrote, of a stream with the same cell and sizes.

        Whose weights made it is not known: the state of another network of the same sizes is taken too.

        Raises:
            ModelFileError: the file is not a stream, is damaged, or has other sizes; the state is
                then as it was.
        """
        tensors, about = files.unseal(_WHAT, _VERSION, path)
        mine = self._state()
        wanted = {name: (part.shape, part.dtype) for name, part in mine.items()}
        found = {name: (part.shape, part.dtype) for name, part in tensors.items()}
        if about.get("cell") != self._sizes.cell.value or found != wanted:
            shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in tensors.items())
            layers, rows, units = self.hidden.shape
            fits = f"{layers} layers, {rows} rows and {units} units of a {self._sizes.cell.value}"
            raise files.not_a(f"stream of {fits}", path, ValueError(f"{about.get('cell')}, {shapes}"))
        for name, part in mine.items():
            part[...] = tensors[name]
        return self

    def __repr__(self) -> str:
        size = self._sizes
        options = f" with {', '.join(self._options)}" if self._options else ""
        layers = f"{len(self.hidden)} × {size.cell.value} of {size.hidden_size}{options}"
        return f"Stream({self.rows} rows, {layers}, {self._path})"

    def _state(self) -> dict[str, Floats]:
        return {"hidden": self.hidden} if self.cell is None else {"hidden": self.hidden, "cell": self.cell}

    def _step_other(self, x: Any, rows: Any, out: Any) -> Any:
        if isinstance(x, np.ndarray):  # of a class of its own: mapped from a file, masked
            checks.shape(x, "x")
            return self.step(x.view(np.ndarray), rows, out=out)
        if not hasattr(x, "detach"):
            raise InputError(
                f"x should be an array.\n  Received: {type(x).__name__}.\n"
                f"  Fix: pass (rows, {self._sizes.input_size}) of float32, as NumPy array or torch tensor."
            )
        if x.device.type != "cpu" or x.requires_grad:
            raise InputError(
                f"a stream runs on the CPU and keeps no graph for gradients.\n  Received: x on {x.device}"
                f"{', asking for a gradient' if x.requires_grad else ''}.\n  Fix: x.detach().cpu()."
            )
        if out is None:
            out = x.new_empty(len(x) if x.ndim else 0, self._sizes.output_size)
        self.step(x.numpy(), rows, out=out.numpy())
        return out

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        wrong = rows[(rows < 0) | (rows >= self.rows)]
        if wrong.size or len(np.unique(rows)) != len(rows):
            raise InputError(
                f"rows should be different numbers from 0 to {self.rows - 1}.\n"
                f"  Received: {rows.tolist()!r:.80}."
            )

    def _refuse(self, x: Array, rows: NDArray[np.int64] | None, out: Array) -> None:
        """Say what does not fit; nothing where only the layout is at fault."""
        if rows is not None:
            self._check_rows(rows)
        count = self.rows if rows is None else len(rows)
        checks.expect(x, "x", "rows, input", (count, self._sizes.input_size), "float32")
        checks.expect(out, "out", "rows, hidden", (count, self._sizes.output_size), "float32")
        kept = [x, self.hidden] if self.cell is None else [x, self.hidden, self.cell]
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise InputError("out should be contiguous and writeable.\n  Received: a view that is not.")
        if any(np.may_share_memory(out, part) for part in kept):
            raise InputError(
                "out should be memory of its own.\n  Received: memory that x or the state lies in.\n"
                "  Fix: pass np.empty_like(out), or leave out to the stream."
            )


def _row_numbers(rows: Any) -> NDArray[np.int64]:
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise InputError(
            f"rows should be a list of whole numbers.\n  Received: {rows!r:.80}.\n"
            f"  Fix: pass [0, 3], say; for a mask, np.flatnonzero(mask)."
        )
    return np.ascontiguousarray(numbers, np.int64)
