"""The extension module built from native/bindings.cpp; only `native` imports it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

def engines() -> list[str]: ...
def roofline(isa: str, precision: str, bytes: int, threads: int) -> tuple[float, float]: ...
def lend(team: int) -> None: ...
def draw(
    isa: str,
    seed: int,
    step: int,
    layer: int,
    use: int,
    times: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    below: int,
    chosen: float,
    other: float,
    out: Floats,
    threads: int,
) -> None: ...
def empty(shape: Sequence[int]) -> Floats: ...

class Layer:
    def __init__(
        self,
        isa: str,
        precision: str,
        cell: int,
        input: int,
        hidden: int,
        weights: Sequence[Floats],
        threads: int,
        output: int,
        options: Sequence[Floats | None],
        cell_clip: float,
        preactivation_clip: float,
    ) -> None: ...
    def forward(
        self,
        x: Floats,
        hidden: Floats | None,
        cell: Floats | None,
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.uint8] | None,
        reset_hidden: Floats | None,
        reset_cell: Floats | None,
        recurrent_mask: Floats | None,
        options: Sequence[Floats | None] | None,
        out_hidden: Floats,
        gates: Floats | None,
        out_cell: Floats | None,
        recurrent_candidate: Floats | None,
        final_hidden: Floats,
        final_cell: Floats | None,
        threads: int,
    ) -> None: ...
    def backward(
        self,
        x: Floats,
        hidden: Floats | None,
        cell: Floats | None,
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.uint8] | None,
        reset_hidden: Floats | None,
        reset_cell: Floats | None,
        recurrent_mask: Floats | None,
        options: Sequence[Floats | None] | None,
        trace_hidden: Floats,
        trace_gates: Floats,
        trace_cell: Floats | None,
        trace_candidate: Floats | None,
        d_hidden: Floats | None,
        d_final_hidden: Floats | None,
        d_final_cell: Floats | None,
        d_x: Floats,
        d_weights: Sequence[Floats],
        d_states: Sequence[Floats],
        flow: Sequence[Floats],
        threads: int,
    ) -> None: ...

class SmallCalls:
    def __init__(
        self,
        table: Any,
        tensor: type,
        parameter: type,
        isa: str,
        cell: int,
        input: int,
        hidden: int,
        layers: int,
        directions: int,
        bias: bool,
    ) -> None: ...
    def forward(self, *given: Any) -> Any: ...
    def stack(self, *given: Any) -> bool: ...
    def backward(self, *given: Any) -> bool: ...

class Stream:
    def __init__(
        self,
        layers: Sequence[Layer],
        rows: int,
        hidden: Floats,
        cell: Floats,
        share_hidden: Floats | None,
        share_cell: Floats | None,
    ) -> None: ...
    def step(self, x: Floats, rows: NDArray[np.int64] | None, out: Floats, threads: int) -> None: ...
