"""unspool: recurrent networks, fast and in plain sight.

unspool.Model          a trained network, served with NumPy alone
unspool.nn             RNN, LSTM, GRU and their cells, in the place of torch.nn's (needs torch)
unspool.kernels        the arithmetic: load("native"), load("reference")
unspool.introspect     what a network did, as data
"""

import importlib
from types import ModuleType

from unspool import errors, introspect, kernels
from unspool.model import Model

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "errors", "introspect", "kernels", "nn"]


def __getattr__(name: str) -> ModuleType:
    # torch takes seconds to import and may be absent: `nn` comes when it is asked for.
    if name != "nn":
        raise AttributeError(f"module 'unspool' has no attribute {name!r}")
    return importlib.import_module("unspool.nn")
