"""The metrics, each against a computation that shares nothing with it."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool import metrics
from unspool.data import dependencies
from unspool.errors import InputError
from unspool.metrics import ArcScore
from unspool.trees import Tree


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_accuracy_is_the_share_of_equal_pairs(pairs: list[tuple[int, int]]) -> None:
    predicted, gold = zip(*pairs, strict=True)
    counted = 0
    for a, b in pairs:
        if a == b:
            counted += 1
    assert metrics.accuracy(np.array(predicted), list(gold)) == counted / len(pairs)


def test_accuracy_takes_names() -> None:
    assert metrics.accuracy(["pos", "neg", "pos"], ["pos", "pos", "pos"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [([], []), ([1], [1, 0]), ([[1, 0]], [1, 0]), ([[1]], [[1]])],
    ids=["nothing", "lengths differ", "ranks differ", "two axes"],
)
def test_accuracy_refuses_what_cannot_be_scored(predicted: list[object], gold: list[object]) -> None:
    with pytest.raises(InputError, match=r"Received: predicted .*, gold "):
        metrics.accuracy(predicted, gold)


def normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def by_bisection(correct: int, n: int, confidence: float) -> tuple[float, float]:
    """The shares p at which the score test of `correct` out of n just reaches the confidence."""

    def accepted(p: float) -> bool:
        if p in (0, 1):
            return correct == n * p
        z = abs(correct / n - p) / math.sqrt(p * (1 - p) / n)
        return 2 * normal_cdf(z) - 1 <= confidence

    ends = []
    for outside in (0.0, 1.0):
        inside = correct / n
        if accepted(outside):
            ends.append(outside)
            continue
        for _ in range(60):
            middle = (inside + outside) / 2
            if accepted(middle):
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    return ends[0], ends[1]


@given(st.integers(1, 30000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(counts: tuple[int, int]) -> None:
    correct, n = counts
    for confidence in (0.5, 0.95, 0.99):
        low, high = metrics.wilson(correct, n, confidence)
        assert 0 <= low <= correct / n <= high <= 1
        assert (low, high) == pytest.approx(by_bisection(correct, n, confidence), abs=1e-9)


def test_wilson_of_eight_in_ten() -> None:
    assert metrics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


@pytest.mark.parametrize(
    ("correct", "n", "confidence"),
    [(1, 0, 0.95), (0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)],
)
def test_wilson_refuses_impossible_counts(correct: int, n: int, confidence: float) -> None:
    with pytest.raises(InputError, match=f"correct {correct}, n {n}, confidence {confidence}"):
        metrics.wilson(correct, n, confidence)


def test_metrics_and_files_do_without_torch() -> None:
    code = "import sys, unspool.files, unspool.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_word_errors_take_the_nearest_of_several_references() -> None:
    found = metrics.WordErrors.of(["A B", "C", "D E F"], [("A B", "A"), ("K", "C C"), ("D X", "D E G F")])
    assert found.value == pytest.approx(2 / 3)
    # "C" is one deletion from "C C", which has two units; "D E F" one from "D E G F".
    assert found.unit_errors == pytest.approx((0 + 1 + 1) / (2 + 1 + 4))
    assert metrics.WordErrors.of(["a"], [("A",)], lowercase=True).value == 0
    with pytest.raises(InputError):
        metrics.WordErrors.of(["a"], [])


def test_edits_are_those_of_the_textbook() -> None:
    assert metrics.edits("kitten", "sitting") == 3
    assert metrics.edits("", "abc") == metrics.edits("abc", "") == 3
    assert metrics.edits("abc", "abc") == 0


def test_bleu_says_how_it_was_counted() -> None:
    texts = ["the cat sat on the mat today", "a dog runs over the green grass"]
    found = metrics.Bleu.of(texts, [(text,) for text in texts])
    assert found.value == pytest.approx(100)
    assert found.chrf == pytest.approx(100)
    assert "case:mixed|" in found.signature
    assert "tok:13a" in found.signature
    upper = [(text.upper(),) for text in texts]
    assert metrics.Bleu.of(texts, upper).value < 1
    lower = metrics.Bleu.of(texts, upper, lowercase=True)
    assert lower.value == pytest.approx(100)
    assert "case:lc|" in lower.signature


def test_arcs_are_scored_as_the_official_evaluation_scores_them(tmp_path: Path) -> None:
    udeval = pytest.importorskip("udtools.udeval", reason="needs udtools, of unspool[dev]")
    rng = np.random.default_rng(0)
    kinds = ["root", "nsubj", "nsubj:pass", "obj", "case", "punct", "aux", "nmod", "nmod:poss", "cc"]

    def tree(n: int) -> Tree:
        order = rng.permutation(n) + 1
        heads = {int(w): int(order[rng.integers(0, at)]) if at else 0 for at, w in enumerate(order)}
        names = [kinds[0] if heads[w] == 0 else kinds[rng.integers(1, len(kinds))] for w in range(1, n + 1)]
        return Tree(tuple(heads[w] for w in range(1, n + 1)), tuple(names))

    def changed(gold: Tree) -> Tree:
        """Another tree of which most is right, also but for its subtypes."""
        if rng.random() < 0.3:
            return tree(len(gold.heads))
        names = [
            name if name == "root" or rng.random() < 0.6 else kinds[rng.integers(1, len(kinds))]
            for name in gold.relations
        ]
        return Tree(gold.heads, tuple(names))

    gold = [tree(int(n)) for n in rng.integers(1, 12, size=40)]
    mine = [changed(one) for one in gold]
    loaded = []
    for name, part in (("gold", gold), ("mine", mine)):
        text = "".join(
            dependencies.with_tree(dependencies.as_sentence(["w"] * len(one.heads)), one) for one in part
        )
        (tmp_path / name).write_text(text)
        with (tmp_path / name).open() as file:
            loaded.append(
                udeval.load_conllu(file, name, {"no_empty_nodes": True, "multiple_roots_okay": False})
            )
    official = udeval.evaluate(*loaded)
    found = ArcScore.of(mine, gold)
    for value, name in ((found.value, "LAS"), (found.uas, "UAS"), (found.clas, "CLAS")):
        assert 0.2 < value < 0.95
        assert value == pytest.approx(official[name].f1, abs=1e-9), name


def test_arcs_of_other_sentences_or_of_none_are_refused() -> None:
    one = Tree((0,), ("root",))
    for mine, gold in (([], []), ([one], [one, one]), ([Tree((2, 0), ("x", "root"))], [one])):
        with pytest.raises(InputError, match="one relation a word"):
            ArcScore.of(mine, gold)
    found = ArcScore.of([Tree((), ()), one], [Tree((), ()), one])
    assert (found.value, found.uas, found.clas, found.words) == (1.0, 1.0, 1.0, 1)
