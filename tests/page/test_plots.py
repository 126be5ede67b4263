"""Results on an axis of matplotlib: what is drawn is what was found, and nothing else is touched."""

from typing import Any

import numpy as np
import pytest
import torch

import networks
from unspool import introspect, nn
from unspool.errors import InputError, MissingExtra
from unspool.introspect.tables import Shown
from unspool.kernels.contract import Gate
from unspool.page import plot

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

TEXT = "the film was <b>not</b> dull"


def results() -> dict[str, Any]:
    torch.manual_seed(0)
    layer, x = nn.LSTM(2, 4, 2, bidirectional=True), torch.randn(9, 2, 2)
    model = networks.build("lstm", 2).model
    fault = introspect.locate(layer, torch.where(torch.arange(9)[:, None, None] == 7, torch.inf, x))
    return {
        "terms": introspect.gradient_terms(layer, x, at=7),
        "flow": introspect.gradient_flow(layer, x, at=7),
        "flow of a GRU": introspect.gradient_flow(nn.GRU(2, 3), x, at=2),
        "jacobian": introspect.jacobian(layer, x[:, 0], at=7, of=2),
        "saturation": introspect.saturation(layer, x),
        "span": introspect.memory_span(layer, x),
        "capture": introspect.record(layer, x),
        "reading": introspect.record(layer, x, lengths=torch.tensor([9, 5]))[""],
        "inputs": introspect.contributions(layer, x, target=1, at=-1),
        "words": introspect.contributions(model, TEXT),
        "right context": introspect.right_context(model, TEXT),
        "recording": introspect.record(model, TEXT),
        "fault": fault,
    }


RESULTS = results()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_drawn_on_its_own_axis_or_on_one_of_ours(name: str) -> None:
    alone = plot(RESULTS[name])
    assert isinstance(alone.figure, Figure)
    left, right = Figure().subplots(1, 2)
    assert plot(RESULTS[name], right) is right
    assert right.has_data()
    assert not left.has_data()
    assert alone.get_title() == right.get_title() != ""
    alone.figure.canvas.draw()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_text_html_and_a_table(name: str) -> None:
    result = RESULTS[name]
    assert isinstance(result, Shown)
    assert "\n" not in repr(result)
    assert len(repr(result)) < 200
    assert str(result).count("\n") < 40
    page = result._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == page.count("</tr>") > 1
    assert "<b>" not in page  # a word's own mark-up
    pytest.importorskip("pandas")
    table = result.to_frame()
    assert len(table) == len(next(iter(result.columns().values()))) > 0


def test_what_is_drawn_is_what_was_found() -> None:
    terms = RESULTS["terms"]
    (line, _) = plot(terms).lines
    drawn = np.nan_to_num(line.get_ydata())
    np.testing.assert_array_equal(drawn, terms.norms)
    words = plot(RESULTS["words"])
    np.testing.assert_allclose([bar.get_height() for bar in words.patches], RESULTS["words"].values)
    assert [label.get_text() for label in words.get_xticklabels()] == list(RESULTS["words"].words)
    (image,) = plot(RESULTS["reading"], what=Gate.FORGET, layer=0, direction=1, sample=1).images
    want = RESULTS["reading"].gate(Gate.FORGET, layer=0, direction=1)[:5, 1].T
    np.testing.assert_array_equal(image.get_array(), want)
    (image,) = plot(RESULTS["capture"], what="cell").images
    np.testing.assert_array_equal(image.get_array(), RESULTS["capture"][""].cell_state()[:, 0].T)
    flow = RESULTS["flow"]
    np.testing.assert_array_equal(plot(flow).lines[2].get_ydata(), flow.by_lag("cell_path"))


def test_a_long_result_is_a_short_text() -> None:
    flow = introspect.gradient_flow(nn.LSTM(2, 3), torch.randn(500, 2), at=499)
    assert "… 480 more" in str(flow)
    assert len(flow.to_frame()) == 500
    assert flow._repr_html_().count("<tr>") == 62


def test_what_cannot_be_drawn_is_refused() -> None:
    for call, said in (
        (lambda: plot([1, 2]), "no picture.*\n.*list.*\n.*GradientFlow.*Terms"),
        (lambda: plot(RESULTS["reading"], what="memory"), "no 'memory'"),
        (lambda: plot(RESULTS["reading"], what=Gate.RESET), "no such gate"),
        (lambda: plot(RESULTS["reading"], layer=2), "no layer 2"),
        (lambda: plot(RESULTS["reading"], sample=2), "no sample 2"),
        (lambda: plot(RESULTS["capture"], module="encoder"), "no recurrent layer named"),
        (lambda: plot(introspect.record(nn.GRU(2, 3), torch.randn(4, 2)), what="cell"), "no cell state"),
    ):
        with pytest.raises(InputError, match=said):
            call()  # type: ignore[no-untyped-call]


def test_without_matplotlib_or_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"unspool\[plot\]"):
        plot(RESULTS["terms"])
    with pytest.raises(MissingExtra, match=r"unspool\[tables\]"):
        RESULTS["terms"].to_frame()
