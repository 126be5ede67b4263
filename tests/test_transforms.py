"""torch's transforms over the layers: compiled, exported, mapped, differentiated forward and twice.

T time steps   B batch   I input size   H hidden size
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from unspool import nn, ops
from unspool.kernels.contract import Cell, Weights

T, B, I, H, P = 5, 3, 4, 6, 2
LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("cell", list(Cell), ids=[cell.value for cell in Cell])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def first(result: Any) -> Tensor:
    output: Tensor = result[0]
    return output


# -- the operators


def arguments(
    cell: Cell, dtype: torch.dtype, directions: int, options: bool, grad: bool, beyond: str = "plain"
) -> ops.arguments.Layer:
    """What an operator takes, with everything given or with nothing but the weights."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_(grad)

    rows, lstm = len(cell.gates) * H, cell is Cell.LSTM
    wide = P if beyond == "projection" else H
    more: dict[str, Any] = {
        "projection": {"projection": (P, H)},
        "peephole": {"peephole": (3, H)},
        "layer norm": {"norm_input": (2, rows), "norm_recurrent": (2, rows)}
        | ({"norm_cell": (2, H)} if lstm else {}),
    }.get(beyond, {})
    weights = [
        Weights(draw(rows, I), draw(rows, wide), draw(rows), draw(H) if cell is Cell.GRU else None)._replace(
            **{name: draw(*shape) for name, shape in more.items()}
        )
        for _ in range(directions)
    ]
    state = draw(directions, B, wide), draw(directions, B, H) if lstm else None
    precision = "bfloat16" if beyond == "bfloat16" else "float32"
    run = ops.Run(cell, "auto", precision=precision)
    if options:
        run = ops.Run(
            cell,
            "auto",
            torch.tensor([T, 0, 2]),
            torch.rand(T, B) < 0.3,
            torch.rand(directions, B, wide, dtype=dtype),
            precision=precision,
        )
    given = (draw(T, B, I), *(state if options else (None, None)), None, None)
    return ops.arguments.Layer(run, (*given, *ops.arguments.flat_weights(weights)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize(
    ("cell", "beyond", "directions"),
    [
        *((cell, "plain", directions) for cell in Cell for directions in (1, 2)),
        *((cell, "layer norm", 2) for cell in Cell),
        (Cell.LSTM, "projection", 2),
        (Cell.LSTM, "peephole", 2),
        (Cell.LSTM, "bfloat16", 2),
        (Cell.GRU, "bfloat16", 2),
    ],
)
def test_torch_finds_no_fault_in_an_operator(
    cell: Cell, beyond: str, directions: int, options: bool, dtype: torch.dtype
) -> None:
    if beyond == "bfloat16" and dtype == torch.float64:
        return  # products of float64 stay what they are
    it = arguments(cell, dtype, directions, options, True, beyond)
    for name in ("infer", "forward"):
        torch.library.opcheck(getattr(torch.ops.unspool, name).default, it.flat)
    still = arguments(cell, dtype, directions, options, False, beyond)
    results = torch.ops.unspool.forward.default(*still.flat)
    trace = ops.arguments.or_none(cell, results[:4], ("gates", "hidden", "cell", "recurrent_candidate"))
    arriving = torch.randn_like(results[1])
    flat = (0, arriving, None, None, *trace, *still.flat)
    torch.library.opcheck(torch.ops.unspool.backward.default, flat)


# -- compiled and exported


@pytest.mark.slow
@every_layer
def test_compiled_whole_without_a_break_or_a_recompile_per_length(name: str) -> None:
    torch._dynamo.reset()
    layer = LAYERS[name](I, H, 2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, (steps, batch) in enumerate(((5, 3), (7, 4), (11, 2), (9, 6))):
        x = torch.randn(steps, batch, I, requires_grad=True)
        with torch.compiler.set_stance("default" if n == 0 else "fail_on_recompile"):
            got = first(compiled(x))
        want = first(layer(x))
        assert torch.equal(got, want)
        wanted = [x, *layer.parameters()]
        upstream = torch.randn_like(want)
        for a, b in zip(
            torch.autograd.grad(got, wanted, upstream),
            torch.autograd.grad(want, wanted, upstream),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_compiled_with_lengths_as_a_tensor() -> None:
    torch._dynamo.reset()
    layer = nn.LSTM(I, H)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, stance in ((5, "default"), (8, "fail_on_recompile"), (11, "fail_on_recompile")):
        x, lengths = torch.randn(steps, 3, I), torch.tensor([steps, 0, 2])
        with torch.compiler.set_stance(stance):
            got = first(compiled(x, lengths=lengths))
        assert torch.equal(got, first(layer(x, lengths=lengths)))


class Tagger(torch.nn.Module):
    """Words to labels: what is exported in practice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, I)
        self.layer = nn.LSTM(I, H, bidirectional=True)
        self.labels = torch.nn.Linear(2 * H, 3)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        output, _ = self.layer(self.embedding(words), lengths=lengths)
        labels: Tensor = self.labels(output)
        return labels


@pytest.mark.slow
def test_exported_with_dynamic_time_and_batch_saved_and_loaded(tmp_path: Path) -> None:
    model = Tagger().eval()
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        model,
        (torch.randint(20, (6, 3)), torch.tensor([6, 2, 4])),
        dynamic_shapes={"words": {0: steps, 1: batch}, "lengths": {0: batch}},
    )
    torch.export.save(exported, tmp_path / "tagger.pt2")
    loaded = torch.export.load(tmp_path / "tagger.pt2").module()
    for t, b in ((6, 3), (9, 5), (2, 2)):
        words, lengths = torch.randint(20, (t, b)), torch.randint(1, t + 1, (b,))
        assert torch.equal(loaded(words, lengths), model(words, lengths))


class Translator(torch.nn.Module):
    """An encoder in both directions over ragged sources, and a decoder that begins where it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = torch.nn.Embedding(20, I), torch.nn.Embedding(15, I)
        self.encoder = nn.GRU(I, H, bidirectional=True)
        self.decoder = nn.LSTM(I, 2 * H, 2)
        self.words = torch.nn.Linear(2 * H, 15)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        read, h = self.encoder(self.source(source), lengths=lengths)
        begin = torch.cat([h[0], h[1]], 1).expand(2, -1, -1)
        written, _ = self.decoder(self.target(target), (begin, torch.tanh(begin)))
        seen = torch.softmax(torch.einsum("tbh,sbh->tbs", written, read), 2)
        scores: Tensor = self.words(written + torch.einsum("tbs,sbh->tbh", seen, read))
        return scores


def words_for(steps: int, batch: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(1, steps + 1, (batch,))
    return torch.randint(20, (steps, batch)), lengths, torch.randint(15, (targets, batch))


@pytest.mark.slow
def test_an_encoder_and_decoder_is_exported_saved_and_loaded(tmp_path: Path) -> None:
    model = Translator().eval()
    source, batch, target = (torch.export.Dim(name, min=1) for name in ("source", "batch", "target"))
    exported = torch.export.export(
        model,
        words_for(6, 3, 4),
        dynamic_shapes={
            "source": {0: source, 1: batch},
            "lengths": {0: batch},
            "target": {0: target, 1: batch},
        },
    )
    torch.export.save(exported, tmp_path / "translator.pt2")
    loaded = torch.export.load(tmp_path / "translator.pt2").module()
    for sizes in ((6, 3, 4), (9, 5, 2), (2, 2, 11)):
        given = words_for(*sizes)
        assert torch.equal(loaded(*given), model(*given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Tagger, Translator])
def test_a_whole_model_is_compiled_without_a_break_and_trains_alike(kind: Any) -> None:
    torch._dynamo.reset()
    model = kind()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, sizes in enumerate(((6, 3, 4), (9, 5, 2), (7, 2, 11))):
        given = words_for(*sizes)[: 2 if kind is Tagger else 3]
        with torch.compiler.set_stance("default" if n == 0 else "fail_on_recompile"):
            got = compiled(*given)
        want = model(*given)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        weights, upstream = list(model.parameters()), torch.randn_like(want)
        pairs = zip(
            torch.autograd.grad(got, weights, upstream),
            torch.autograd.grad(want, weights, upstream),
            strict=True,
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# -- mapped


@every_layer
def test_gradients_of_each_sample_are_those_of_a_loop(name: str) -> None:
    layer = LAYERS[name](I, H, 2, bidirectional=True).double()
    weights = {key: value.detach() for key, value in layer.named_parameters()}
    x = torch.randn(B, T, I, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return first(functional_call(layer, weights, (sample.unsqueeze(1),))).square().sum()

    mapped = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for b in range(B):
        one = grad(loss)(weights, x[b])
        for key in weights:
            torch.testing.assert_close(mapped[key][b], one[key], atol=1e-12, rtol=1e-10)


@every_layer
def test_an_ensemble_is_mapped_over_its_weights(name: str) -> None:
    members = [LAYERS[name](I, H).double() for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(members)  # type: ignore[arg-type]
    x = torch.randn(T, B, I, dtype=torch.float64)

    def call(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return first(functional_call(members[0], (weights, buffers), (x,)))

    outputs = vmap(call)(weights, buffers)
    for output, member in zip(outputs, members, strict=True):
        torch.testing.assert_close(output, first(member(x)), atol=1e-12, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in its jvp rules
@every_layer
def test_a_jacobian_by_reverse_and_by_forward_mode_is_the_same(name: str) -> None:
    layer = LAYERS[name](I, H).double().eval()
    x = torch.randn(T, 1, I, dtype=torch.float64)

    def last(x: Tensor) -> Tensor:
        return first(layer(x))[-1, 0]

    want = torch.autograd.functional.jacobian(last, x)
    torch.testing.assert_close(jacrev(last)(x), want, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(torch.func.jacfwd(last)(x), want, atol=1e-12, rtol=1e-10)


@every_layer
def test_a_hessian_vector_product_is_torch_nns(name: str) -> None:
    ours = LAYERS[name](I, H).double()
    theirs = getattr(torch.nn, name.upper())(I, H).double()
    theirs.load_state_dict(ours.state_dict())
    x, v = torch.randn(2, T, B, I, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):

        def loss(x: Tensor, layer: Any = layer) -> Tensor:
            return first(layer(x)).square().sum()

        found.append(torch.autograd.functional.hvp(loss, x, v)[1])
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-8)


# -- autocast


@every_layer
def test_the_operator_under_autocast_is_the_layer(name: str) -> None:
    """Called as it is, it widens what it is given and narrows its products, compiled or not."""
    torch._dynamo.reset()
    layer = LAYERS[name](I, H)
    x = torch.randn(T, B, I).bfloat16()
    weights = layer._weights(0)
    it = ops.arguments.Layer(
        ops.Run(layer.cell, "auto"), (x, *[None] * 4, *ops.arguments.flat_weights(weights))
    )
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = first(layer(x))
        got = torch.ops.unspool.infer.default(*it.flat)[0]
        assert torch.equal(got.flatten(2), wanted)
        assert torch.equal(first(compiled(x)), wanted)
    assert wanted.dtype == torch.float32
    assert not torch.equal(wanted, first(layer(x.float())))
