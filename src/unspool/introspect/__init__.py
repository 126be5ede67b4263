"""What a network keeps, erases and passes back: functions from data to data, drawn elsewhere (`page`).

Nothing is computed by a second path: gates and states are the trace that the kernels kept, gradients come
through the kernels' own backward pass.

    recording.py      every gate and state of a model's run over a text
    attribution.py    which word moved the answer
    inputs.py         which input moved a torch model's
    gradients.py      the chain rule's terms, the gradient by lag, Jacobians
    capture.py        the same of a torch model's own layers, while they run
    monitor.py        gradients, gates and memory of a training step
    statistics.py     saturation of gates, span of memory
    faults.py         where a run first went wrong
    intervene.py      runs with gates or states set
    step.py           one step taken apart
    search.py         where else a unit holds
    stack.py          the layers of whatever is looked at, in one form
    whole.py          a whole torch model, run so that its layers can be looked at
    tables.py         results as text, HTML and pandas tables
"""

from unspool.introspect.attribution import (
    Contributions,
    RightContext,
    contributions,
    right_context,
    uncertain,
)
from unspool.introspect.capture import Capture, Reading, capture
from unspool.introspect.faults import Fault, locate, locate_captured, locate_recorded
from unspool.introspect.gradients import (
    GradientFlow,
    Jacobian,
    Terms,
    gradient_flow,
    gradient_terms,
    jacobian,
)
from unspool.introspect.inputs import InputContributions
from unspool.introspect.intervene import ablate, patch
from unspool.introspect.monitor import Monitor, measure
from unspool.introspect.recording import Recording, record
from unspool.introspect.search import Stretch, stretches
from unspool.introspect.statistics import (
    MemorySpan,
    MemorySpans,
    Saturation,
    Saturations,
    memory_span,
    saturation,
)
from unspool.introspect.step import Step, one_step

__all__ = [
    "Capture",
    "Contributions",
    "Fault",
    "GradientFlow",
    "InputContributions",
    "Jacobian",
    "MemorySpan",
    "MemorySpans",
    "Monitor",
    "Reading",
    "Recording",
    "RightContext",
    "Saturation",
    "Saturations",
    "Step",
    "Stretch",
    "Terms",
    "ablate",
    "capture",
    "contributions",
    "gradient_flow",
    "gradient_terms",
    "jacobian",
    "locate",
    "locate_captured",
    "locate_recorded",
    "measure",
    "memory_span",
    "one_step",
    "patch",
    "record",
    "right_context",
    "saturation",
    "stretches",
    "uncertain",
]
