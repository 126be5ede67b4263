"""What a precision below float32 means: which numbers are rounded, and where.

Part of the definition.  One text for NumPy arrays and torch tensors, float32 and float64; everything
that is not named here stays in the dtype of the arrays.  Used by the reference; the native set rounds the
same numbers when it packs them.

bfloat16 (8 bits of mantissa, the range of float32), rounded to nearest, ties to even:
    the input and recurrent weights, x, h where it enters the recurrent weights (after a mask), dL/dz where
    it enters a product.  Not rounded: biases, sums (float32), pre-activations, gates, the cell state, h
    where it is kept and handed on, the trace, the flow, the gradients.

int8, for inference:
    the recurrent weights, one scale a row: q = rint(127 w / max |w|), worth max |w| / 127; h where it
    enters them: q = rint(127 h), worth 1/127, which is why |h| must not exceed 1.  Their sum is exact.
"""

import sys
from typing import Any

import numpy as np

from unspool.kernels.contract import Array, Weights


def weights(precision: str, w: Weights) -> Weights:
    """The weights as their products see them."""
    if precision == "bfloat16":
        return w._replace(input=to_bfloat16(w.input), recurrent=to_bfloat16(w.recurrent))
    if precision == "int8":
        return w._replace(recurrent=to_int8_by_row(w.recurrent))
    return w


def operand(precision: str, array: Array) -> Array:
    """x, or dL/dz, as it enters a product."""
    return to_bfloat16(array) if precision == "bfloat16" else array


def recurrent_operand(precision: str, h: Array) -> Array:
    """H as it enters the product with the recurrent weights."""
    if precision == "int8":
        library = _library(h)
        return library.round(127 * library.clip(h, -1, 1)) / 127
    return operand(precision, h)


def to_bfloat16(array: Array) -> Array:
    """Round to the nearest bfloat16, ties to even; the dtype stays.  A NaN stays one."""
    if hasattr(array, "detach"):
        return array.to(sys.modules["torch"].bfloat16).to(array.dtype)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    up = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), array, up.view(np.float32)).astype(array.dtype)


def to_int8_by_row(matrix: Array) -> Array:
    """Round each row to 255 steps between its largest magnitude and minus that."""
    library = _library(matrix)
    wide = matrix.double() if hasattr(matrix, "detach") else matrix.astype(np.float64)
    most = abs(wide).max(1)
    most = (most.values if hasattr(most, "values") else most)[:, None]
    scale = library.where(most == 0, library.ones_like(most), most) / 127
    rounded = library.round(wide / scale) * scale
    return rounded.to(matrix.dtype) if hasattr(matrix, "detach") else rounded.astype(matrix.dtype)


def _library(array: Array) -> Any:
    return sys.modules["torch"] if hasattr(array, "detach") else np
