"""The CRF against brute force over all labellings, in NumPy and torch."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from unspool import crf
from unspool.errors import InputError
from unspool.recipes.chain import log_likelihood

T, K = 5, 3
LENGTHS = np.array([5, 0, 1, 3, 4])


@pytest.fixture
def case() -> tuple[np.ndarray, crf.Chain]:
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
    emissions = draw(T, len(LENGTHS), K)
    for b, length in enumerate(LENGTHS):
        emissions[length:, b] = np.nan  # padding is never read
    return emissions, crf.Chain(draw(K, K), draw(K), draw(K))


def labellings(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(K), repeat=length))


def by_hand(emissions: np.ndarray, b: int, labels: tuple[int, ...], chain: crf.Chain) -> float:
    if not labels:
        return 0.0
    total = chain.start[labels[0]] + chain.end[labels[-1]]
    total += sum(emissions[t, b, label] for t, label in enumerate(labels))
    return float(total + sum(chain.transitions[pair] for pair in itertools.pairwise(labels)))


def as_torch(thing: Any) -> Any:
    if isinstance(thing, crf.Chain):
        return crf.Chain(*map(torch.from_numpy, thing))
    return torch.from_numpy(thing)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_scores_and_their_sum_are_those_of_all_labellings(
    case: tuple[np.ndarray, crf.Chain], library: str
) -> None:
    emissions, chain = case
    convert = as_torch if library == "torch" else lambda thing: thing
    partition = crf.log_partition(convert(emissions), convert(LENGTHS), convert(chain))
    labels = np.full((T, len(LENGTHS)), 99)
    for b, length in enumerate(LENGTHS):
        ways = labellings(length)
        scores = np.array([by_hand(emissions, b, way, chain) for way in ways])
        assert float(partition[b]) == pytest.approx(float(np.log(np.exp(scores).sum())), rel=1e-12)
        labels[:length, b] = ways[len(ways) // 2]
    got = crf.score(convert(emissions), convert(labels), convert(LENGTHS), convert(chain))
    for b, length in enumerate(LENGTHS):
        assert float(got[b]) == pytest.approx(by_hand(emissions, b, tuple(labels[:length, b]), chain))


def test_viterbi_finds_the_best_of_all_labellings(case: tuple[np.ndarray, crf.Chain]) -> None:
    emissions, chain = case
    labels, scores = crf.viterbi(emissions, LENGTHS, chain)
    for b, length in enumerate(LENGTHS):
        best = max(labellings(length), key=lambda way: by_hand(emissions, b, way, chain))
        assert tuple(labels[:length, b]) == best
        assert scores[b] == pytest.approx(by_hand(emissions, b, best, chain))
        assert not labels[length:, b].any()


def test_a_forbidden_transition_is_not_taken(case: tuple[np.ndarray, crf.Chain]) -> None:
    emissions, chain = case
    transitions = chain.transitions.copy()
    transitions[:, 1] = -np.inf
    labels, _ = crf.viterbi(emissions, LENGTHS, crf.Chain(transitions, chain.start, chain.end))
    assert not any((labels[1:length, b] == 1).any() for b, length in enumerate(LENGTHS))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_marginals_are_those_of_all_labellings(case: tuple[np.ndarray, crf.Chain], library: str) -> None:
    emissions, chain = case
    convert = as_torch if library == "torch" else lambda thing: thing
    got = np.asarray(crf.marginals(convert(emissions), convert(LENGTHS), convert(chain)))
    for b, length in enumerate(LENGTHS):
        want = np.zeros((T, K))
        ways = labellings(length)
        weights = np.exp([by_hand(emissions, b, way, chain) for way in ways])
        for way, weight in zip(ways, weights / weights.sum(), strict=True):
            for t, label in enumerate(way):
                want[t, label] += weight
        np.testing.assert_allclose(got[:, b], want, atol=1e-12)


def test_the_gradient_of_the_sum_is_the_marginals(case: tuple[np.ndarray, crf.Chain]) -> None:
    emissions, chain = case
    x = torch.from_numpy(np.nan_to_num(emissions)).requires_grad_()
    crf.log_partition(x, torch.from_numpy(LENGTHS), as_torch(chain)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), crf.marginals(emissions, LENGTHS, chain), atol=1e-12)


def test_a_sequence_does_not_depend_on_its_batch(case: tuple[np.ndarray, crf.Chain]) -> None:
    emissions, chain = (case[0].astype(np.float32), crf.Chain(*(p.astype(np.float32) for p in case[1])))
    together = crf.marginals(emissions, LENGTHS, chain)
    for b, length in enumerate(LENGTHS):
        alone = crf.marginals(emissions[:length, b : b + 1], LENGTHS[b : b + 1], chain)
        assert alone.tobytes() == np.ascontiguousarray(together[:length, b : b + 1]).tobytes()


def test_nothing_at_all() -> None:
    chain = crf.Chain(np.ones((2, 2)), np.ones(2), np.ones(2))
    for steps, batch in ((0, 3), (4, 0)):
        emissions, lengths = np.zeros((steps, batch, 2)), np.zeros(batch, np.int64)
        assert crf.log_partition(emissions, lengths, chain).shape == (batch,)
        assert crf.viterbi(emissions, lengths, chain)[0].shape == (steps, batch)
        assert crf.marginals(emissions, lengths, chain).shape == (steps, batch, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"emissions": np.zeros((2, 2))}, "three axes"),
        ({"lengths": np.array([1, 3])}, "0 and the number of steps"),
        ({"lengths": np.array([1])}, "one integer a sequence"),
        ({"labels": np.zeros((3, 2), np.int64)}, "one a step"),
        ({"labels": np.full((2, 2), 2)}, "2 among 2 labels"),
        ({"chain": crf.Chain(np.zeros((3, 3)), np.zeros(2), np.zeros(2))}, "transitions do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "emissions": np.zeros((2, 2, 2)),
        "labels": np.zeros((2, 2), np.int64),
        "lengths": np.array([1, 2]),
        "chain": crf.Chain(np.zeros((2, 2)), np.zeros(2), np.zeros(2)),
    } | change
    with pytest.raises(InputError, match=said):
        crf.score(**given)


# Training's way, with products in place of logarithms, beside the algorithm that is checked above.


@pytest.mark.parametrize("size", [1.0, 40.0])  # at 40 one labelling has nearly all of the probability
def test_sums_of_products_and_their_gradients_are_those_of_logarithms(
    case: tuple[np.ndarray, crf.Chain], size: float
) -> None:
    emissions, chain = case[0] * size, crf.Chain(*(part * size for part in case[1]))
    weights = np.array([1.0, 5.0, -2.0, 0.5, 0.0])
    known = torch.from_numpy(np.nan_to_num(emissions)).requires_grad_()
    parts = crf.Chain(*(torch.from_numpy(part).requires_grad_() for part in chain))
    wanted = crf.log_partition(known, torch.from_numpy(LENGTHS), parts)
    (wanted * torch.from_numpy(weights)).sum().backward()
    total, sums = crf.forward_sums(emissions, LENGTHS, chain)
    np.testing.assert_allclose(total, wanted.detach().numpy(), rtol=1e-12)
    d_emissions, d_chain = crf.gradients(sums, weights, LENGTHS, chain)
    np.testing.assert_allclose(d_emissions, known.grad.numpy(), atol=1e-12)
    for ours, theirs in zip(d_chain, parts, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (1, 2)])
def test_sums_of_nothing(steps: int, batch: int) -> None:
    lengths = np.full(batch, steps)
    chain = crf.Chain(np.zeros((K, K)), np.zeros(K), np.zeros(K))
    total, sums = crf.forward_sums(np.zeros((steps, batch, K)), lengths, chain)
    np.testing.assert_allclose(total, np.full(batch, steps * np.log(K)))
    d_emissions, d_chain = crf.gradients(sums, np.ones(batch), lengths, chain)
    np.testing.assert_allclose(d_emissions, np.full((steps, batch, K), 1 / K))
    np.testing.assert_array_equal(d_chain.transitions, np.zeros((K, K)))


def test_likelihood_in_training_has_the_gradients_of_its_definition(
    case: tuple[np.ndarray, crf.Chain],
) -> None:
    labels = np.random.default_rng(3).integers(0, K, (T, len(LENGTHS)))
    for b, length in enumerate(LENGTHS):
        labels[length:, b] = 99
    found = []
    for ours in (True, False):
        emissions = torch.from_numpy(np.nan_to_num(case[0])).requires_grad_()
        chain = crf.Chain(*(torch.from_numpy(part).requires_grad_() for part in case[1]))
        given = (emissions, torch.from_numpy(labels), torch.from_numpy(LENGTHS), chain)
        if ours:
            value = log_likelihood(*given)
        else:
            value = crf.score(*given) - crf.log_partition(emissions, given[2], chain)
        (value * torch.arange(1.0, 6.0)).sum().backward()
        found.append((value, emissions.grad, *(part.grad for part in chain)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
