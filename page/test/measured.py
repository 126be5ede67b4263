"""Prints what introspect measures, for the page to be compared with: word, unit, direction, value."""

import json
import sys

from unspool import introspect
from unspool.kernels.contract import Gate
from unspool.model import Model

folder, text = sys.argv[1:]
recording = introspect.record(Model.load(folder), text)
gates = {"f": Gate.FORGET, "o": Gate.OUTPUT}
found = [
    {"letter": letter, "word": word, "unit": unit, "direction": direction, "value": float(values[word, unit])}
    for letter, word, unit, direction in (("f", 3, 5, 0), ("o", 1, 2, 1), ("c", 6, 11, 0))
    for values in [
        recording.gate(gates[letter], direction=direction)
        if letter in gates
        else recording.cell_state(direction=direction)
    ]
]
print(json.dumps(found))
