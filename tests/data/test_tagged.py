"""Benchmarks of labelled sentences: what lies in which part, on the real files where they are."""

import os

import pytest

from unspool.data import tagged

pytestmark = pytest.mark.skipif(not os.environ.get("UNSPOOL_DATA"), reason="needs the benchmarks' files")


def test_learning_from_train_and_dev_holds_a_tenth_of_both_out_and_leaves_the_test_part_alone() -> None:
    apart = tagged.benchmark("wnut17", quiet=True)
    joined = tagged.benchmark("wnut17-train-dev", quiet=True)
    assert joined.test == apart.test
    assert len(joined.dev) == 440
    both = sorted([*joined.train, *joined.dev])
    assert both == sorted([*apart.train, *apart.dev])
    for part in (apart.train, apart.dev):
        assert 0.05 < sum(sentence in joined.dev for sentence in part) / len(part) < 0.15


def test_the_whole_train_part_of_chunks_is_learned_from_with_dev_among_it() -> None:
    usual = tagged.benchmark("conll2000", quiet=True)
    whole = tagged.benchmark(tagged.WHOLE, quiet=True)
    assert (whole.dev, whole.test) == (usual.dev, usual.test)
    assert len(whole.train) == 8936
    assert sorted(whole.train) == sorted([*usual.train, *usual.dev])
