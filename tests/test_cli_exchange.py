"""export and convert: files of other libraries, there and back, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from unspool.cli import _run

pytest.importorskip("onnx")


@pytest.mark.parametrize(("name", "layer"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
def test_there_and_back_through_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, layer: type
) -> None:
    tensors = {key: value.numpy() for key, value in layer(3, 5, 2, bidirectional=True).state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    files = [
        tmp_path / each for each in ("a.safetensors", "b.onnx", "c.safetensors", "d.npz", "e.safetensors")
    ]
    for source, target in itertools.pairwise(files):
        assert _run(["convert", str(source), str(target), "--cell", name]) == 0
        assert f"written: {target}" in capsys.readouterr().err
    back = safetensors.numpy.load_file(files[2])
    assert back.keys() == tensors.keys()
    assert all(back[key].tobytes() == tensors[key].tobytes() for key in tensors)
    # Keras has one bias where only the sum counts.
    through_keras = safetensors.numpy.load_file(files[4])
    for key in tensors:
        if "weight" in key:
            np.testing.assert_array_equal(through_keras[key], tensors[key])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "a.safetensors", "b.onnx"], "does not say which cell"),
        (["convert", "a.txt", "b.onnx"], "cannot be told from its name"),
        (["export", "run", "b.txt"], "ends in .onnx"),
    ],
)
def test_what_cannot_be_told_is_asked_for(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(words) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not onnx")
    assert _run(["convert", str(tmp_path / "a.onnx"), str(tmp_path / "b.safetensors")]) == 1
    assert (
        _run(["convert", str(tmp_path / "none.safetensors"), str(tmp_path / "b.onnx"), "--cell", "gru"]) == 1
    )
    assert not (tmp_path / "b.onnx").exists()
