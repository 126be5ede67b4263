"""What can go wrong, by whose hand it is mended.

    UnspoolError
    ├── InputError       an array or an argument: shape, dtype, lengths      (a ValueError)
    ├── DataError        a file of examples: says which file and which line
    ├── SourceError      a data source cannot be had: offline, wrong digest, unknown name
    ├── ModelFileError   a model folder: truncated, altered, of another format
    ├── ConfigError      an option of a run: unknown, out of range, contradictory
    ├── TrainingError    a run that cannot go on: NaN losses, an existing folder
    ├── KernelsError     a kernel set that cannot run here
    └── MissingExtra     a package that an extra installs is absent          (an ImportError)

Every message says what is wrong, what was received, and what to do, a line each.
"""


class UnspoolError(Exception):
    """Anything that unspool itself refuses."""


class InputError(UnspoolError, ValueError):
    """An array or an argument does not fit."""


class DataError(UnspoolError):
    """A file of examples cannot be read as what it should be."""


class SourceError(UnspoolError):
    """A data source cannot be obtained or is not what its digest says."""


class ModelFileError(UnspoolError):
    """A model folder is incomplete, altered, or of another format version."""


class ConfigError(UnspoolError):
    """An option of a run is unknown, out of range, or contradicts another."""


class TrainingError(UnspoolError):
    """A training run cannot start or cannot go on."""


class KernelsError(UnspoolError):
    """A kernel set is unknown or cannot run on this machine."""


class MissingExtra(UnspoolError, ImportError):
    """A package is needed that an extra of unspool installs."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed.\n"
            f"  Fix: pip install 'unspool[{extra}]' (with -c constraints.txt from a checkout)."
        )
