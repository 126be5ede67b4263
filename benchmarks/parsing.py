"""Time a trained parser without torch beside the same network on torch.nn.LSTM, in turn, in one run.

    python benchmarks/parsing.py RUN/best           needs UNSPOOL_DATA for UD English EWT

The test part in batches of 64, both sides from words to trees: ours by `unspool.Parser`, torch's by the
recipe's network with --layers torch, on packed sequences.  Processor time, which other work beside hardly
changes: with one thread (OMP_NUM_THREADS=1, UNSPOOL_THREADS=1) it is what a free core takes.  Training steps
are timed by `recipes.py`.
"""

import dataclasses
import statistics
import sys
import time

import numpy as np
import torch

from stamp import in_words, stamp
from unspool import parser
from unspool.kernels import native
from unspool.recipes import parsing, reader
from unspool.trees import Tree

TURNS = 5


def main() -> None:
    """Print the stamp and what was found."""
    torch.set_num_threads(native.threads())
    print(in_words(stamp("python benchmarks/parsing.py RUN/best")))
    served = parser.Parser.load(sys.argv[1])
    config = parsing.Config(data="ewt")
    d = served.description
    names = parsing.Names(d.relations, d.root, d.tags)
    network = torchs(served, names)
    asked = parsing.numbered(config, parsing.read(config, quiet=True).test, names)
    texts = [sentence.words for sentence in asked.sentences]
    trees: dict[str, list[Tree]] = {}

    def ours() -> float:
        begin = time.process_time()
        trees["ours"] = served.predict(texts)
        return time.process_time() - begin

    def theirs() -> float:
        begin = time.process_time()
        with torch.inference_mode():
            found = parsing.parsed(asked, d, network, served.tables)
            answers = {row: tree for rows, batch, *_ in found for row, tree in zip(rows, batch, strict=True)}
        trees["torch"] = [answers[row] for row in range(len(texts))]
        return time.process_time() - begin

    turns = [(ours(), theirs()) for _ in range(TURNS + 1)][1:]  # the first warms up
    ratios = sorted(torchs_time / own for own, torchs_time in turns)
    own, other = (len(texts) / statistics.median(seconds) for seconds in zip(*turns, strict=True))
    equal = sum(mine == other for mine, other in zip(trees["ours"], trees["torch"], strict=True))
    print(
        f"{len(texts):,} sentences: {own:,.0f} a second of processor time, torch.nn.LSTM {other:,.0f}; "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
        f"{equal:,} trees are the same"
    )


def torchs(served: parser.Parser, names: parsing.Names) -> parsing.Network:
    """The network of a served parser on torch's layers."""
    d = served.description
    sizes = ("word_size", "letter_size", "letter_hidden_size", "hidden_size", "num_layers")
    same = {name: getattr(d, name) for name in (*sizes, *(size for _, size in parser.SIDES))}
    config = dataclasses.replace(
        parsing.Config(recurrent_dropout=0.0), layers="torch", cell=d.cell.value, tags=d.tag_column, **same
    )
    none = np.zeros((len(served.tables.vectors), d.vector_size), np.float32)
    network = parsing.Network(config, reader.Words(served.tables, none), names).eval()
    network.load_state_dict({name: torch.tensor(part) for name, part in served._tensors.items()})
    return network


if __name__ == "__main__":
    main()
