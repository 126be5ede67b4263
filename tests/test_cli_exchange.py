"""export and convert: files of other libraries, there and back, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import networks
from unspool import exchange, files
from unspool.cli import _run
from unspool.model import Model

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


def test_a_model_folder_becomes_a_file_that_reads_as_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files.write_folder(tmp_path / "best", networks.parts(networks.build("gru", 2)))
    assert _run(["export", str(tmp_path / "best"), str(tmp_path / "model.onnx")]) == 0
    assert "ONNX Runtime's answers lie within" in capsys.readouterr().err
    model, read = Model.load(tmp_path / "best"), exchange.from_onnx(tmp_path / "model.onnx")
    assert isinstance(read, Model)
    assert read.predict(["a quietly moving film"]) == model.predict(["a quietly moving film"])
    assert _run(["convert", str(tmp_path / "model.onnx"), str(tmp_path / "b.safetensors")]) == 2
    assert "whole model" in capsys.readouterr().err


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert _run(["export", str(tmp_path), str(tmp_path / "model.onnx")]) == 1
    assert not (tmp_path / "model.onnx").exists()
