"""Attention, held against its equations written out, in NumPy and in torch."""

import numpy as np
import pytest
import torch

from unspool import attention

T, S, B, H, M, A = 3, 5, 4, 6, 8, 7
LENGTHS = np.array([5, 1, 3, 4])


def case(kind: str, covered: bool) -> tuple:
    draw = np.random.default_rng(3)
    size = H if kind == "general" else A
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)  # noqa: E731
    places, keys = normal(S, B, M), normal(size, M)
    real = np.arange(S)[:, None] < LENGTHS
    places[~real] = 1e3  # what stands past a length must not be seen
    additive = kind == "additive"
    weights = attention.Weights(
        keys,
        normal(A, H) if additive else None,
        normal(A) if additive else None,
        (normal(A) if additive else normal(1)) if covered else None,
    )
    memory = attention.Memory(places, places @ keys.T, real)
    query = normal(1 if covered else T, B, H)
    return query, memory, weights, np.abs(normal(B, S)) if covered else None


def written_out(query, memory, weights, covered):
    contexts = np.zeros((len(query), B, M))
    shares = np.zeros((len(query), B, S))
    for t in range(len(query)):
        for b in range(B):
            scores = []
            for s in range(LENGTHS[b]):
                key = weights.keys.astype(float) @ memory.places[s, b].astype(float)
                seen = 0 if covered is None else covered[b, s] * weights.coverage.astype(float)
                if weights.energy is None:
                    scores.append(float(np.sum(query[t, b] @ key + seen)))
                else:
                    inner = np.tanh(weights.query.astype(float) @ query[t, b] + key + seen)
                    scores.append(float(weights.energy @ inner))
            e = np.exp(np.array(scores) - max(scores))
            shares[t, b, : LENGTHS[b]] = e / e.sum()
            contexts[t, b] = shares[t, b, : LENGTHS[b]] @ memory.places[: LENGTHS[b], b]
    return contexts, shares


@pytest.mark.parametrize("kind", attention.KINDS)
@pytest.mark.parametrize("covered", [False, True])
def test_it_is_what_its_equations_say(kind: str, covered: bool) -> None:
    given = case(kind, covered)
    context, shares = attention.look(*given)
    right_context, right_shares = written_out(*given)
    np.testing.assert_allclose(shares, right_shares, atol=1e-5)
    np.testing.assert_allclose(context, right_context, atol=1e-4)
    assert (shares[:, ~given[1].real.T] == 0).all()
    tensors = [
        tuple(None if part is None else torch.from_numpy(part) for part in g) if isinstance(g, tuple)
        else None if g is None else torch.from_numpy(g)
        for g in given
    ]  # fmt: skip
    theirs = attention.look(
        tensors[0], attention.Memory(*tensors[1]), attention.Weights(*tensors[2]), tensors[3]
    )
    np.testing.assert_allclose(theirs[0].numpy(), context, atol=1e-4)
    np.testing.assert_allclose(theirs[1].numpy(), shares, atol=1e-6)


def test_a_place_that_was_covered_is_left_where_its_weight_is_negative() -> None:
    query, memory, weights, covered = case("general", True)
    weights = weights._replace(coverage=np.array([-50], np.float32))
    covered = np.zeros_like(covered)
    covered[0, 2] = 1
    _, before = attention.look(query, memory, weights, np.zeros_like(covered))
    _, after = attention.look(query, memory, weights, covered)
    assert after[0, 0, 2] < 1e-6 < before[0, 0, 2]
