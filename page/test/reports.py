"""Writes what the browser test drops on the page: a failure report, and files that cannot be opened.

Prints what `introspect` says of the report: its title, step, layer, gate and unit.
"""

import json
import sys
from pathlib import Path

import torch

from unspool import files, introspect, nn
from unspool.model import Model
from unspool.page.opened import of_file

place, folder = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
layer, x = nn.LSTM(3, 6, 2), torch.randn(12, 2, 3)
x[7, 1, 0] = 0
with torch.no_grad():  # unit 2 of the forget gate is no number where x is zero, and shut or open elsewhere
    layer.weight_ih_l0[8, 0] = torch.inf
with introspect.capture(layer) as taken, torch.no_grad():
    layer(x)
report = place / "fault.safetensors"
taken.save(report)
opened = of_file(report)
fault = opened.fault
assert fault is not None
shows = opened.place_of(fault)
print(
    json.dumps(
        {
            "title": fault.title(),
            "step": fault.step,
            "layer": fault.layer,
            "unit": shows["unit"],
            "letter": shows["quantity"] or "i",
        }
    )
)

introspect.record(Model.load(folder), "the film was good .").save(place / "now.safetensors")
tensors, about = files.unseal("recording", 1, place / "now.safetensors")
kept = {key: about[key] for key in ("cell", "words", "known")}
(place / "later.safetensors").write_bytes(files.seal("recording", 2, tensors, kept))
(place / "cut.safetensors").write_bytes((place / "now.safetensors").read_bytes()[:-9])
(place / "config.json").write_text("{}")
