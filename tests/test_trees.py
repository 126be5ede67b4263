"""The best tree with one root, held against every tree that there is."""

import functools
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from unspool import trees
from unspool.errors import InputError


@functools.cache
def every_tree(n: int) -> NDArray[np.int64]:
    """All heads of n words that make a tree with one root, found without the code under test."""
    found = []
    for heads in itertools.product(range(n + 1), repeat=n):
        if heads.count(0) != 1:
            continue
        reached = {0}
        for _ in range(n):
            reached |= {d for d, head in enumerate(heads, start=1) if head in reached}
        if len(reached) == n + 1:
            found.append(heads)
    return np.array(found)


def worth(scores: NDArray[np.float32], heads: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.take_along_axis(scores.astype(np.float64), heads.T, 1).sum(0)


def test_there_are_as_many_trees_as_cayley_says() -> None:
    # n choices of the root's word, and (n + 1)^(n - 1) trees of n + 1 places over all numbers of roots.
    assert [len(every_tree(n)) for n in range(1, 6)] == [n ** (n - 1) for n in range(1, 6)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["drawn", "ties", "many roots", "cycles", "far apart", "float64"])
def test_no_tree_is_better_than_the_best(n: int, kind: str) -> None:
    rng = np.random.default_rng([n, len(kind)])
    for _ in range(60):
        scores = rng.normal(size=(n, n + 1)).astype(np.float64 if kind == "float64" else np.float32)
        if kind == "ties":
            scores = np.round(scores * 1.5)
        if kind == "many roots":
            scores[:, 0] += 4
        if kind == "cycles":
            scores[:, 0] -= 9
            pairs = np.arange(n) ^ 1  # words that want each other
            scores[np.arange(n)[pairs < n], pairs[pairs < n] + 1] += 6
        if kind == "far apart":
            scores *= 10.0 ** rng.integers(-3, 4, size=(n, 1))
        before = scores.copy()
        heads = trees.best(scores)
        assert scores.tobytes() == before.tobytes()
        assert heads.tolist() in every_tree(n).tolist()
        most = worth(scores, every_tree(n)).max()
        np.testing.assert_allclose(worth(scores, heads[None])[0], most, rtol=1e-6, atol=1e-5)


def test_a_cycle_in_a_cycle_is_opened_where_it_costs_least() -> None:
    scores = np.full((4, 5), -50.0)
    scores[0, 2] = scores[1, 1] = 10  # 1 and 2 want each other
    scores[2, 4] = scores[3, 3] = 10  # so do 3 and 4
    scores[0, 3] = scores[2, 1] = 8  # and these pairs each other
    scores[:, 0] = [-9, -2, -9, -9]
    assert trees.best(scores).tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("n", [40, 300])
def test_long_sentences_have_trees_and_ours_are_no_worse_than_small_changes_of_them(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        scores = rng.normal(size=(n, n + 1)).astype(np.float32)
        heads = trees.best(scores)
        assert trees.fault(heads) is None
        value = worth(scores, heads[None])[0]
        for word in rng.integers(0, n, size=200):
            other = heads.copy()
            other[word] = rng.integers(0, n + 1)
            if other[word] != word + 1 and (other == 0).sum() == 1 and not trees.cycle(other):
                assert worth(scores, other[None])[0] <= value + 1e-4


def test_five_thousand_words() -> None:
    # Each word wants the one after it, and the last the first: one cycle of all of them.
    n = 5000
    scores = np.zeros((n, n + 1), np.float32)
    scores[np.arange(n), np.arange(1, n + 1) % n + 1] = 1
    heads = trees.best(scores)
    assert trees.fault(heads) is None
    assert worth(scores, heads[None])[0] == n - 1


def test_no_words_and_one_word() -> None:
    assert trees.best(np.zeros((0, 1))).tolist() == []
    assert trees.best(np.array([[-7.0, np.nan]])).tolist() == [0]  # its own place is not read


def test_what_is_no_table_of_scores_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(n, n \+ 1\)"):
        trees.best(np.zeros((2, 2)))
    for wrong in (np.nan, np.inf, -np.inf):
        scores = np.zeros((2, 3))
        scores[1, 0] = wrong
        with pytest.raises(InputError, match="finite"):
            trees.best(scores)


def test_what_keeps_heads_from_being_a_tree_is_said() -> None:
    assert trees.fault(np.array([2, 0, 2])) is None
    assert trees.fault(np.array([0, 1, 0])) == "2 words have head 0: 1, 3"
    assert trees.fault(np.array([2, 3, 1, 0])) == "words go in a cycle: 1 → 2 → 3 → 1"
    assert trees.cycle(np.array([0, 3, 4, 3])) == [3, 4]
