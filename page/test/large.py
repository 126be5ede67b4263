"""Writes a model of two layers of 256 units and a recording of 5,000 words, which the page is timed with.

Their weights are drawn, not trained: what is timed does not depend on them.
"""

import sys
from pathlib import Path

import numpy as np

from unspool import introspect, model
from unspool.kernels.contract import Cell
from unspool.model import Description, Model
from unspool.page import example
from unspool.vocabulary import Vocabulary, words

place = Path(sys.argv[1])
vocabulary = Vocabulary.build([words(text) for text, _ in example.sentences(200, seed=1)], lowercase=True)
description = Description(
    task="sentiment",
    labels=example.LABELS,
    cell=Cell.LSTM,
    embedding_size=64,
    hidden_size=256,
    num_layers=2,
    bidirectional=False,
    pooling="last",
    max_length=400,
)
chance = np.random.default_rng(0)
tensors = {
    name: chance.uniform(-0.1, 0.1, shape).astype(np.float32)
    for name, shape in model.shapes(description, len(vocabulary)).items()
}
example.write(place / "large", description, vocabulary, tensors, "# Drawn weights\n")
small = Model.load(sys.argv[2])
texts = [text for text, _ in example.sentences(1000, seed=3)]
introspect.record(small, " ".join(" ".join(texts).split()[:5000])).save(place / "long.safetensors")
