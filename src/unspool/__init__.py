"""unspool: recurrent networks, fast and in plain sight.

unspool.Model          a trained classifier of texts, served with NumPy alone
unspool.Tagger         a trained tagger of words, likewise
unspool.Parser         a trained dependency parser, likewise
unspool.LanguageModel  a trained language model, likewise
unspool.nn             RNN, LSTM, GRU and their cells, in the place of torch.nn's (needs torch)
unspool.kernels        the arithmetic: load("native"), load("reference")
unspool.introspect     what a network did, as data
unspool.capture        the same of a torch model's layers, while they run
"""

import importlib
from types import ModuleType
from typing import Any

from unspool import errors, introspect, kernels
from unspool.introspect import capture
from unspool.language import LanguageModel
from unspool.model import Model
from unspool.parser import Parser
from unspool.tagger import Tagger
from unspool.translator import Translator

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "Model",
    "Parser",
    "Tagger",
    "Translator",
    "__version__",
    "capture",
    "errors",
    "info",
    "introspect",
    "kernels",
    "nn",
    "set_threads",
]


def __getattr__(name: str) -> ModuleType:
    # torch takes seconds to import and may be absent: `nn` comes when it is asked for.
    if name != "nn":
        raise AttributeError(f"module 'unspool' has no attribute {name!r}")
    return importlib.import_module("unspool.nn")


def info() -> dict[str, Any]:
    """Say what runs here: the version, the kernel set of float32 on the CPU, its threads and whose they are.

    Raises:
        KernelsError: the native kernels cannot run here.
    """
    from unspool.kernels import native

    return {
        "unspool": __version__,
        "kernels": native.describe(),
        "threads": native.threads(),
        "thread pool": native.pool(),
        "instruction sets": native.instruction_sets(),
    }


def set_threads(count: int) -> None:
    """Set how many threads the native kernels use at the most; no result depends on it.

    The default is the number of cores that this process may use, or what the environment variable
    UNSPOOL_THREADS or OMP_NUM_THREADS says.

    Raises:
        InputError: count is not a whole number of 1 or more.
    """
    from unspool.kernels import native

    native.set_threads(count)
