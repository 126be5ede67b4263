"""Results as tables for those who have pandas, which is not needed for anything else."""

import importlib
from typing import Any

from unspool.errors import MissingExtra


def frame(columns: dict[str, Any]) -> Any:
    """A pandas table of columns of one length.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise MissingExtra("a table", "pandas", "tables") from error
    return pandas.DataFrame(columns)
