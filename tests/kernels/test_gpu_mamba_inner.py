"""The Mamba block on a GPU: its kernels, its pieces and its memory; steps and their CUDA graph."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dnassm.config import MixerSpec, ModelConfig
from dnassm.generation import Stepper, generate
from dnassm.kernels.causal_conv1d import causal_conv1d_step
from dnassm.kernels.mamba_inner import State, arguments, mamba_inner_step
from dnassm.kernels.mamba_inner.arguments import KEEP
from dnassm.kernels.mamba_inner.cases import BOTH, Case, Inputs, furthest, outcome
from dnassm.kernels.selective_scan import selective_scan_step
from dnassm.kernels.selective_scan.cases import Case as ScanCase
from dnassm.mixer import MIXERS
from dnassm.model import DNAModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WIDE = Case(length=500, width=64, inner=128, states=16, rank=8)
CASES = {
    "plain": WIDE,
    "bare": dataclasses.replace(WIDE, bare=True),
    "reverse": dataclasses.replace(WIDE, reverse=(True,)),
    "both directions": dataclasses.replace(WIDE, reverse=BOTH),
    "packed": dataclasses.replace(WIDE, batch=1, packed=(0, 1, 300, 500)),
    "packed, both directions": dataclasses.replace(
        WIDE, batch=1, packed=(0, 7, 499, 500), reverse=BOTH
    ),
    "one row": dataclasses.replace(WIDE, batch=1),
    "one row, reverse": dataclasses.replace(WIDE, batch=1, reverse=(True,)),
    "one position": dataclasses.replace(WIDE, length=1),
    "narrow": Case(length=33),
}
# Against float64 of the same numbers: a product of some hundred rounded ones, five in a row.
ROUNDING = {torch.float32: 3e-4, torch.bfloat16: 5e-2}
STEPPING = [name for name in MIXERS.names() if MIXERS[name].streaming == "exact"]


@pytest.fixture(autouse=True)
def _products_in_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(case: Case, dtype: torch.dtype) -> tuple[Inputs, dict[str, Tensor]]:
    options = {name: edges.cuda() for name, edges in case.options.items()}
    return case.inputs(dtype, device="cuda"), options


def truth(inputs: Inputs, weights: list[Tensor], case: Case) -> dict[str, Tensor]:
    """The composition in float64 on the CPU, of the same numbers."""
    exact = inputs.replaced({n: t.double().cpu() for n, t in inputs.named().items()})
    return outcome(exact, [w.cpu() for w in weights], fused=False, **case.options)[0]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", CASES)
def test_values_and_every_gradient_are_those_of_the_composition(name, dtype):
    case = CASES[name]
    inputs, options = on_gpu(case, dtype)
    want, weights = outcome(inputs, fused=False, **options)
    got, _ = outcome(inputs, weights, **options)
    assert torch.equal(got["y"], want["y"]), "not the same bits"
    assert furthest(got, want)[0] <= ROUNDING[dtype], furthest(got, want)
    exact = truth(inputs, weights, case)
    assert furthest(got, exact)[0] <= ROUNDING[dtype], furthest(got, exact)


@pytest.mark.parametrize("keep", [(), ("x_dbl", "scan"), KEEP], ids=["nothing", "some", "all"])
@pytest.mark.parametrize("forward", [1, 2, 3])
@pytest.mark.parametrize("length", [4096, 4097])
@pytest.mark.parametrize(
    "name", ["plain", "reverse", "both directions", "one row", "one row, reverse"]
)
def test_where_rows_are_cut_changes_nothing(name, length, forward, keep, monkeypatch):
    """The forward's rows in so many pieces, if its marks allow that; the backward's in more."""
    case = dataclasses.replace(CASES[name], length=length)
    inputs, _ = on_gpu(case, torch.float32)
    want, weights = outcome(inputs, fused=False)
    row = length * case.inner * 4
    monkeypatch.setitem(arguments.FORWARD_BYTES, "cuda", row // forward + 1)
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", row // 3)
    got, _ = outcome(inputs, weights, keep=keep)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


@pytest.mark.parametrize("backend", ["cuda", "triton", "portable"])
def test_every_backend_serves_both_operators(backend):
    inputs, _ = on_gpu(CASES["both directions"], torch.float32)
    want, weights = outcome(inputs, fused=False, backend="portable")
    got, _ = outcome(inputs, weights, backend=backend)
    assert furthest(got, want)[0] <= ROUNDING[torch.float32], furthest(got, want)


def test_every_run_has_the_same_bits():
    inputs, _ = on_gpu(CASES["both directions"], torch.bfloat16)
    first, weights = outcome(inputs)
    for _ in range(3):
        again, _ = outcome(inputs, weights)
        assert [name for name in first if not torch.equal(first[name], again[name])] == []


@pytest.mark.parametrize("name", ["plain", "both directions", "packed"])
def test_forward_and_backward_are_captured_in_a_cuda_graph(name):
    inputs, options = on_gpu(CASES[name], torch.bfloat16)
    leaves = {key: t.detach().clone().requires_grad_() for key, t in inputs.named().items()}
    dy = torch.randn_like(inputs.x)

    def call() -> list[Tensor]:
        y = inputs.replaced(leaves).run(**options)[0]
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), dy)]

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    with torch.no_grad():
        leaves["x"].normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, found, call()))


def test_autocast_casts_what_it_casts_in_the_composition():
    inputs, _ = on_gpu(CASES["both directions"], torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        want, weights = outcome(inputs, fused=False)
        got, _ = outcome(inputs, weights)
    assert got["y"].dtype == torch.bfloat16
    assert torch.equal(got["y"], want["y"])
    assert furthest(got, want)[0] <= ROUNDING[torch.bfloat16], furthest(got, want)
    assert got["din_weight"].dtype == torch.float32


def most_beyond(case: Case, **options) -> tuple[int, Inputs]:
    """Bytes at the worst moment of forward and backward beyond the inputs, dy and gradients."""
    inputs, _ = on_gpu(case, torch.bfloat16)
    inputs = inputs.replaced({name: t.requires_grad_() for name, t in inputs.named().items()})
    leaves = list(inputs.named().values())
    dy = torch.ones_like(inputs.x)

    def both() -> tuple[Tensor, ...]:
        y = inputs.run(**options)[0]
        return (y, *torch.autograd.grad(y, leaves, dy))

    both()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    both()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - base, inputs


def test_memory_is_that_of_a_piece_beside_what_is_kept(monkeypatch):
    """At 2^18 positions, E 512 and 2^15 a piece: y, dx, what is kept and six of a piece."""
    case = Case(1, 1 << 18, 256, 512, states=16, rank=16, bare=True)
    whole = 2 * case.length * case.inner  # bytes of a tensor (1, L, E)
    for most in (arguments.PIECE_BYTES, arguments.FORWARD_BYTES):
        monkeypatch.setitem(most, "cuda", whole // 8)
    beyond, _ = most_beyond(case, keep=("x_dbl", "scan"))
    y, dx, marks, x_dbl = whole / 2, whole / 2, whole / 2, whole * 48 / 512
    assert beyond <= y + dx + marks + x_dbl + 6 * whole / 8 + (96 << 20)


ASKED = {  # GiB, what is kept by default, x and dy included
    1.4: Case(8, 8192, 768, 1536, states=16, rank=48, bare=True),
    6.0: Case(1, 1 << 20, 256, 512, states=16, rank=16, bare=True),
}


@pytest.mark.parametrize("gib", ASKED)
def test_a_block_takes_as_little_as_is_asked(gib):
    beyond, inputs = most_beyond(ASKED[gib])
    assert beyond + 2 * inputs.x.nbytes <= gib * (1 << 30)


# Steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 3, 64, 256])
def test_a_step_of_scan_and_convolution_is_that_of_the_cpu(batch, dtype):
    case = ScanCase(batch=batch, length=1, channels=520, states=16, groups=2)
    inputs = case.inputs(dtype)
    along = ("x", "dt", "B", "C", "z")
    given = {n: t[:, 0] if n in along else t for n, t in inputs.items()}
    given["state"] = given.pop("initial_state")
    want = selective_scan_step(**{n: t.double() for n, t in given.items()})
    got = selective_scan_step(**{n: t.cuda() for n, t in given.items()})
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=close, atol=close)
    x, state = given["x"], torch.randn(batch, 3, 520).to(dtype)
    weight, bias = torch.randn(520, 4), torch.randn(520)
    exact = causal_conv1d_step(
        x.double(), weight.double(), bias.double(), state.double(), silu=True
    )
    on_device = (tensor.cuda() for tensor in (x, weight, bias, state))
    y, after = causal_conv1d_step(*on_device, silu=True)
    torch.testing.assert_close(y.cpu().double(), exact[0], rtol=close, atol=close)
    assert torch.equal(after.cpu(), exact[1].to(dtype))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("batch", [1, 3, 64, 256])
@pytest.mark.parametrize("inner", [33, 128, 512, 1024])
@torch.no_grad()
def test_a_step_over_its_own_state_is_that_of_the_cpu(inner, batch, dtype):
    case = Case(batch, 1, inner // 2, inner, states=16, rank=-(-inner // 32))
    inputs = case.inputs(dtype)
    want, exact = stepped(inputs, in_place=False, device="cpu", kind=torch.float64)
    got, after = stepped(inputs, in_place=True, device="cuda")
    for mine, theirs in zip((got, *after), (want, *exact), strict=True):
        close = {"rtol": ROUNDING[dtype], "atol": ROUNDING[dtype]}
        torch.testing.assert_close(mine.cpu().double(), theirs, **close)
    again, _ = stepped(inputs, in_place=True, device="cuda")
    assert torch.equal(again, got), "not the same bits"


def stepped(
    inputs: Inputs, *, in_place: bool, device: str, kind: torch.dtype | None = None
) -> tuple[Tensor, State]:
    """Two steps of one input, on copies of its tensors."""
    copies = {n: t.to(device, kind or t.dtype, copy=True) for n, t in inputs.named().items()}
    call = inputs.replaced(copies)
    walk, x = call.walks[0], call.x[:, 0]
    for _ in range(2):
        y, state = mamba_inner_step(x, call.in_weight, call.out_weight, walk, in_place=in_place)
        assert (state.ssm is walk.ssm_state) == in_place
        walk = walk._replace(conv_state=state.conv, ssm_state=state.ssm)
    return y, state


def make(name: str) -> DNAModel:
    torch.manual_seed(3)
    config = ModelConfig(d_model=64, pattern="xxx", letters={"x": MixerSpec(name=name)})
    return DNAModel(config).cuda().eval()


@pytest.mark.parametrize("batch", [1, 5, 64, 256])
@pytest.mark.parametrize("name", STEPPING)
@torch.no_grad()
def test_a_graph_of_a_step_is_the_step(name, batch):
    model = make(name)
    captured, plain = Stepper(model, batch), Stepper(model, batch, graph=False)
    tokens = torch.randint(5, (batch, 20), device="cuda")
    for t in range(20):
        assert torch.equal(captured.step(tokens[:, t]), plain.step(tokens[:, t]))
    for mine, theirs in zip(captured.state, plain.state, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    captured.reset()
    want = model(tokens)[0][:, -1]
    torch.testing.assert_close(captured.read(tokens), want, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_graph_starts_anew_and_takes_a_state():
    stepper = Stepper(make("mamba"), 2)
    tokens = torch.randint(5, (2, 30), device="cuda")
    first = stepper.read(tokens).clone()
    stepper.reset()
    for t in range(30):
        last = stepper.step(tokens[:, t])
    torch.testing.assert_close(last, first, rtol=1e-3, atol=1e-3)


def test_the_same_tokens_come_from_a_graph_and_without_it():
    model = make("mamba")
    prompt = torch.randint(5, (4, 9), device="cuda")
    found = [
        torch.stack(list(generate(Stepper(model, 4, graph=graph), prompt, 40, seed=7)), 1)
        for graph in (True, False)
    ]
    assert torch.equal(*found)


@torch.no_grad()
def test_projections_in_bf16_are_the_model_under_autocast():
    model = make("mamba")
    tokens = torch.randint(5, (3,), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        want, _ = model.step(tokens, model.init_state(3))
    got = Stepper(model, 3, dtype=torch.bfloat16).step(tokens)
    torch.testing.assert_close(got, want.float(), rtol=2e-2, atol=2e-2)
