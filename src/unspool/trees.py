"""The best dependency tree of a sentence: the maximum spanning tree with one root.

    tree(s) = argmax over heads of Σ_d s[d, head(d)],  every word reached from 0, one word's head is 0

Where each word's best head happens to be such a tree, that is the answer; else Chu-Liu/Edmonds, in the
form for dense graphs of Tarjan: a path is grown backwards from head to head, and a cycle that it runs into
becomes one node, O(n²) in all.  One root alone: every edge from 0 is lowered by more than all others can
differ, so that no tree with two of them can be the best (Stanojević and Cohen 2021).

Knows no word and no sentence.  NumPy only.

    n words   0 the root, which is no word

Source: Chu and Liu 1965; Edmonds 1967; Tarjan 1977; Stanojević and Cohen 2021.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError

Ints = NDArray[np.int64]


class Tree(NamedTuple):
    """The heads of a sentence's words, and each word's relation to its head."""

    heads: tuple[int, ...]  # 0 the root, else the head's number, from 1
    relations: tuple[str, ...]
    tags: tuple[str, ...] = ()  # of the words, where tags are learned or predicted too


def best(scores: NDArray[Any]) -> Ints:
    """Find the heads of the best tree with one root.

    Args:
        scores: (n, n + 1) of each word (row) what each head is worth, the root first; finite.  A word's
            own place, scores[d, d + 1], is not read.

    Returns:
        (n,) heads: 0 the root, else 1 to n.

    Raises:
        InputError: another shape, or a score that is not finite.
    """
    given: NDArray[np.float64] = np.array(scores, np.float64)
    if given.ndim != 2 or given.shape[1] != len(given) + 1:
        raise InputError(
            f"scores should be (n, n + 1): a row a word, a column a head, the root first.\n"
            f"  Received: {given.shape}."
        )
    n = len(given)
    words = np.arange(n)
    given[words, words + 1] = 0
    if not np.isfinite(given).all():
        raise InputError("every score of a head should be finite.\n  Fix: look at what made them.")
    if n == 0:
        return np.zeros(0, np.int64)
    span = float(given.max() - given.min())
    given[words, words + 1] = -np.inf
    greedy: Ints = given.argmax(1)
    if fault(greedy) is None:
        return greedy
    given[:, 0] -= 1 + n * span
    return _edmonds(given)


def fault(heads: Ints) -> str | None:
    """Say what keeps heads (n,) from being a tree with one root; None if nothing does.

    A head out of range is not looked for.
    """
    roots = np.flatnonzero(heads == 0)
    if len(roots) > 1:
        return f"{len(roots)} words have head 0: {', '.join(str(root + 1) for root in roots[:5])}"
    inside = cycle(heads)
    if inside:
        return f"words go in a cycle: {' → '.join(map(str, [*inside[:8], inside[0]]))}"
    return None


def cycle(heads: Ints) -> list[int]:
    """The words of one cycle, from 1, each followed by its head; empty where there is none."""
    state = [0] * (len(heads) + 1)  # 0 not seen, else the walk that saw it
    state[0] = -1
    above = [0, *heads.tolist()]
    for start in range(1, len(above)):
        at = start
        while not state[at]:
            state[at] = start
            at = above[at]
        if state[at] == start:
            found = [at]
            while above[found[-1]] != at:
                found.append(above[found[-1]])
            return found
    return []


def _edmonds(weights: NDArray[np.float64]) -> Ints:
    """The maximum spanning tree from 0 of (n, n + 1) weights, -inf where there is no edge; overwritten."""
    n = len(weights)
    # Nodes: 0 the root, 1 to n the words, from n + 1 on cycles.  A cycle keeps its edges in the row of one
    # of its words: `row` says which.
    weights = np.concatenate([np.full((1, n + 1), -np.inf), weights])
    enters = np.repeat(np.arange(n + 1)[:, None], n + 1, 1)  # (row, head) → the word that this edge enters
    node = np.arange(n + 1)  # of each word: the node that it is part of now
    row = list(range(n + 1))
    inside: list[list[int]] = [[] for _ in range(n + 1)]  # of each node: the nodes of its cycle
    around = [-1] * (n + 1)  # of each node: the cycle that it is part of
    words = [[at] for at in range(n + 1)]
    chosen: list[tuple[int, int, float]] = [(-1, -1, 0.0)] * (n + 1)  # of each node: head, word, weight
    done = {0}
    for start in range(1, n + 1):
        if int(node[start]) in done:
            continue
        path = [int(node[start])]
        on_path = {path[0]}
        while True:
            at = path[-1]
            line = weights[row[at]]
            head = int(line.argmax())
            chosen[at] = (head, int(enters[row[at], head]), float(line[head]))
            before = int(node[head])
            if before in done:
                break
            if before not in on_path:
                path.append(before)
                on_path.add(before)
                continue
            members = path[path.index(before) :]
            del path[-len(members) :]
            on_path.difference_update(members)
            made = len(row)
            members_rows = [row[member] for member in members]
            lowered = weights[members_rows] - np.array([[chosen[member][2]] for member in members])
            which = lowered.argmax(0)
            columns = np.arange(n + 1)
            keep = members_rows[0]
            weights[keep], enters[keep] = lowered[which, columns], enters[members_rows][which, columns]
            held = [word for member in members for word in words[member]]
            weights[keep, held] = -np.inf
            node[held] = made
            row.append(keep)
            inside.append(members)
            around.append(-1)
            words.append(held)
            chosen.append((-1, -1, 0.0))
            for member in members:
                around[member] = made
            path.append(made)
            on_path.add(made)
        done.update(path)
    heads = np.zeros(n, np.int64)
    open_nodes = [at for at in range(1, len(row)) if around[at] < 0]
    while open_nodes:
        at = open_nodes.pop()
        head, word, _ = chosen[at]
        heads[word - 1] = head
        # What the edge enters loses the edges of the cycles that hold it; their other nodes keep theirs.
        below = word
        while below != at:
            open_nodes += [member for member in inside[around[below]] if member != below]
            below = around[below]
    return heads
