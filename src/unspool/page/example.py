"""The page's own examples: small classifiers that are trained here, in seconds, so that it never opens blank.

Sentences come from a small grammar: praise and blame, turned by negations and by `but`.  What is right
follows from the order of the words, so that the network has something to remember.  Training is NumPy and
the kernels' own backward pass; nothing else of unspool is trained this way (`training`).

    T time steps   B batch   E embedding size   H hidden size   D directions   C classes
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

import unspool
from unspool import files, model
from unspool.introspect.capture import Capture, Reading
from unspool.introspect.monitor import measure
from unspool.kernels.contract import Cell, Weights
from unspool.model import Description, Floats, Model
from unspool.vocabulary import Vocabulary, words

LABELS = ("blame", "praise")
TEXT = "the film was not good at first , but the ending is wonderful ."
_E, _H, _EPOCHS, _BATCH, _RATE = 12, 16, 10, 32, 0.02
_VERSION = 1

_SUBJECTS = ("the film", "the story", "the music", "this book", "the ending", "the acting", "it")
_VERBS = ("is", "was", "seems", "looks")
_GOOD = ("good", "wonderful", "moving", "funny", "clever", "fine", "lovely")
_BAD = ("bad", "dull", "boring", "clumsy", "awful", "weak", "slow")
_DEGREES = ("", "", "very", "really", "quite")
_TAILS = ("", "", "at first", "in the end", "to be honest", "from start to finish")


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Draw sentences with their labels: 1 praise, 0 blame; what follows `but` decides."""
    chance = np.random.default_rng(seed)

    def pick(of: tuple[str, ...]) -> str:
        return of[int(chance.integers(len(of)))]

    def clause() -> tuple[str, int]:
        praise, negated = bool(chance.integers(2)), chance.random() < 0.4
        parts = [pick(_SUBJECTS), pick(_VERBS), "not" if negated else "", pick(_DEGREES)]
        parts += [pick(_GOOD if praise else _BAD), pick(_TAILS)]
        return " ".join(part for part in parts if part), int(praise != negated)

    drawn = []
    for _ in range(count):
        first, label = clause()
        if chance.random() < 0.35:
            second, label = clause()
            first = f"{first} , but {second}"
        drawn.append((f"{first} .", label))
    return drawn


def corpus() -> list[str]:
    """The texts that patterns are searched in, when no others are given."""
    return [text for text, _ in sentences(200, seed=2)]


def folder(cell: Cell, cache: Path) -> Path:
    """The run folder of an example, trained if it is not there yet.

    Raises:
        OSError: the cache cannot be written.
    """
    place = cache / "examples" / f"{cell.value}-{_VERSION}-{unspool.__version__}"
    if not (place / "best" / files.MARKER).is_file():
        place.mkdir(parents=True, exist_ok=True)
        train(cell, place)
    return place


def train(cell: Cell, place: Path) -> Model:
    """Train an example and write its folder `best` and its `metrics.jsonl` into `place`."""
    examples = sentences(900, seed=1)
    tokenised = [words(text) for text, _ in examples]
    vocabulary = Vocabulary.build(tokenised, lowercase=True)
    description = Description(
        task="sentiment",
        labels=LABELS,
        cell=cell,
        embedding_size=_E,
        hidden_size=_H,
        num_layers=1,
        bidirectional=True,
        pooling="last",
        max_length=400,
    )
    chance = np.random.default_rng(0)
    tensors = {
        name: chance.uniform(-0.25, 0.25, shape).astype(np.float32)
        for name, shape in model.shapes(description, len(vocabulary)).items()
    }
    tensors["embedding.weight"] = chance.normal(0, 0.5, tensors["embedding.weight"].shape).astype(np.float32)
    moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in tensors.items()}
    held, log, step = examples[:100], [], 0
    for epoch in range(1, _EPOCHS + 1):
        order, losses, norms = 100 + chance.permutation(len(examples) - 100), [], []
        for at in range(0, len(order), _BATCH):
            chosen = [examples[k] for k in order[at : at + _BATCH]]
            step += 1
            now = Model(description, vocabulary, tensors)
            loss, gradients, taken = _gradients(now, [t for t, _ in chosen], np.array([y for _, y in chosen]))
            losses.append(loss)
            norms.append(_adam(tensors, gradients, moments, step, _RATE * (1 - (epoch - 1) / _EPOCHS)))
            if step % 25 == 0:
                log.append({"step": step, "monitor": measure(taken)})
        now = Model(description, vocabulary, tensors)
        scores = model.softmax(now.logits(now.encode([text for text, _ in held])))
        truth = np.array([label for _, label in held])
        log.append(
            {
                "epoch": epoch,
                "step": step,
                "train_loss": float(np.mean(losses)),
                "dev_loss": float(-np.log(scores[np.arange(len(truth)), truth]).mean()),
                "accuracy": float((scores.argmax(1) == truth).mean()),
                "best": epoch == _EPOCHS,
                "gradient_norm": float(np.mean(norms)),
            }
        )
    files.write_file(place / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in log).encode())
    card = f"# An example of unspool's page\n\nA {cell.value}, trained on 800 sentences of a small grammar.\n"
    write(place / "best", description, vocabulary, tensors, card)
    return now


def write(
    place: Path, description: Description, vocabulary: Vocabulary, tensors: dict[str, Floats], card: str
) -> None:
    """Write a model folder of these weights."""
    files.write_folder(
        place,
        {
            model.CONFIG: model.config_text(description.as_config(), tensors, unspool.__version__),
            model.VOCABULARY: vocabulary.to_bytes(),
            files.WEIGHTS: files.pack(tensors),
            model.CARD: card.encode(),
        },
    )


def _gradients(
    now: Model, texts: list[str], labels: "np.ndarray[Any, Any]"
) -> tuple[float, dict[str, Floats], Capture]:
    """The mean cross-entropy of a batch, and its gradient with respect to every parameter."""
    encoded = now.encode(texts)
    x, rows = now.embed(encoded.tokens), np.arange(len(texts))
    trace, _ = now.kernels.forward(now.layers[0], x, lengths=encoded.lengths)
    likely = model.softmax(now.read_out(trace.hidden, encoded.lengths))
    loss = float(-np.log(likely[rows, labels]).mean())
    d_logits = likely.copy()
    d_logits[rows, labels] -= 1
    d_logits /= np.float32(len(texts))
    pooled = model.pool(trace.hidden, encoded.lengths, "last")
    d_pooled = d_logits @ now.class_weights
    d_hidden = np.zeros_like(trace.hidden)
    d_hidden[encoded.lengths - 1, rows, 0] = d_pooled[:, :_H]
    d_hidden[0, rows, 1] = d_pooled[:, _H:]
    back, flow = now.kernels.backward(now.layers[0], x, trace, d_hidden=d_hidden, lengths=encoded.lengths)
    d_embedding = np.zeros_like(now.embedding)
    np.add.at(d_embedding, encoded.tokens.T, back.x)
    found = {
        "embedding.weight": d_embedding,
        "classifier.weight": d_logits.T @ pooled,
        "classifier.bias": d_logits.sum(0),
    }
    for suffix, weights in zip(("_l0", "_l0_reverse"), back.weights, strict=True):
        found |= _by_torchs_names(weights, suffix)
    reading = Reading(now.description.cell, encoded.lengths, [x], [trace], [flow])
    return loss, found, Capture({"layers": [reading]})


def _by_torchs_names(weights: Weights, suffix: str) -> dict[str, Floats]:
    bias_hh = np.array(weights.bias)
    if weights.candidate_bias is not None:
        bias_hh[2 * _H :] = weights.candidate_bias
    return {
        f"layers.0.weight_ih{suffix}": weights.input,
        f"layers.0.weight_hh{suffix}": weights.recurrent,
        f"layers.0.bias_ih{suffix}": weights.bias,
        f"layers.0.bias_hh{suffix}": bias_hh,
    }


def _adam(
    tensors: dict[str, Floats],
    gradients: dict[str, Floats],
    moments: dict[str, tuple[Floats, Floats]],
    step: int,
    rate: float,
) -> float:
    """One step of Adam (Kingma & Ba 2015), the gradient clipped to a norm of 1; returns the norm."""
    norm = float(np.sqrt(sum(float(np.square(g).sum()) for g in gradients.values())))
    scale = min(1.0, 1 / max(norm, 1e-12))
    for name, (first, second) in moments.items():
        g = gradients[name] * np.float32(scale)
        first += np.float32(0.1) * (g - first)
        second += np.float32(0.001) * (g * g - second)
        mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
        tensors[name] = (tensors[name] - rate * mean / (np.sqrt(spread) + 1e-8)).astype(np.float32)
    return norm
