"""One thread for torch, and a seed, in every test of the layers."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_torch() -> Iterator[None]:
    """torch's threads wait for one another where cores are shared; ours keep theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)
