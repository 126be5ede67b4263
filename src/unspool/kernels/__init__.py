"""The arithmetic: one layer, one or two directions, whole sequences.

The only list of kernel sets.  What every set must do stands in `contract`; `reference` defines it,
`native` does it fast on the CPU.
"""

import importlib
from typing import cast

from unspool.errors import KernelsError
from unspool.kernels.contract import Kernels

_NAMES = ("native", "reference")


def load(name: str) -> Kernels:
    """Load a kernel set by its name: "native" or "reference".

    Raises:
        KernelsError: for a name that is not on the list, or a set that cannot run here.
    """
    if name not in _NAMES:
        raise KernelsError(
            f"There is no kernel set named {name!r}.\n  Received: {name!r}.\n"
            f"  Fix: use one of {', '.join(_NAMES)}."
        )
    return cast(Kernels, importlib.import_module(f"unspool.kernels.{name}"))


def choose(dtype: str, device: str = "cpu") -> Kernels:
    """Choose the kernel set for arrays of a dtype on a device.

    float32 on the CPU runs the native set; float64 and every other device run the reference.  There
    is no way from one to the other after that: a set that cannot run raises.

    Args:
        dtype: "float32" or "float64".
        device: "cpu", "cuda", ….
    """
    return load("native" if dtype == "float32" and device == "cpu" else "reference")
