"""What all tests share: the native kernel set, and what happens where it is missing.

`REQUIRE=native` turns the skip into a failure, so that a run cannot be green because nothing was built.
"""

import os
import signal
from types import ModuleType

import pytest

from unspool.errors import KernelsError

# Others' packages, in an environment of their own: make thirdparty.
collect_ignore = ["thirdparty"]

# A job in the background begins with Ctrl-C ignored, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def native() -> ModuleType:
    """The native kernel set, or a skip with the reason why it cannot be loaded."""
    try:
        from unspool.kernels import native
    except KernelsError as error:
        if "native" in os.environ.get("REQUIRE", "").split(","):
            pytest.fail(f"REQUIRE names native, and it cannot be loaded.\n{error}")
        pytest.skip(str(error))
    return native
