"""The kernel sets as fixtures: `kernels` is each of them in turn, `exact` each that is held to the bit."""

from collections.abc import Iterator

import pytest
import torch

from contract.sets import NATIVE, REFERENCE, TORCH, KernelSet

# Where the native set cannot be loaded one None stands for it: a skip, or with REQUIRE=native a failure.
_EXACT = [pytest.param(each, id=each.name) for each in NATIVE] or [pytest.param(None, id="native")]
_ALL = [pytest.param(REFERENCE, id="reference"), pytest.param(TORCH, id="torch"), *_EXACT]


def _chosen(request: pytest.FixtureRequest) -> KernelSet:
    if request.param is None:
        request.getfixturevalue("native")
    assert isinstance(request.param, KernelSet)
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look for writes beside an output first: anywhere else they end the process, and nobody learns why."""
    items.sort(key=lambda item: not item.name.startswith("test_outputs_are_written_in_full"))


@pytest.fixture(scope="package", params=_ALL)
def kernels(request: pytest.FixtureRequest) -> KernelSet:
    return _chosen(request)


@pytest.fixture(scope="package", params=_EXACT)
def exact(request: pytest.FixtureRequest) -> KernelSet:
    return _chosen(request)


@pytest.fixture(scope="package", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """The cases are small: torch's own threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
