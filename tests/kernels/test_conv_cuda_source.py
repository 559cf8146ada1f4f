"""The CUDA source of the convolution without a GPU.

NVRTC compiles every variant for an H100, and some for an A100 and a B200. And the same source, read
as C++ with a thread at a time, is held to the float64 reference: its indices and its borders are
those of the GPU, only the instructions named in ``INSTRUCTIONS`` are stood in for.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import re
import shutil
import subprocess
import types

import pytest
import torch

from dnassm.kernels import nvrtc
from dnassm.kernels.causal_conv1d import cuda, reference
from dnassm.kernels.causal_conv1d.arguments import Conv

INSTRUCTIONS = {
    "exp2_approx": "return std::exp2(x);",
    "reciprocal": "return 1.f / x;",
    "low_half": "return widened(word & 0xffffu);",
    "high_half": "return widened(word >> 16);",
    "both_halves": "return narrowed(low) | (unsigned)narrowed(high) << 16;",
}
SHIM = """
#include <cmath>
#include <cstring>
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx, blockDim;
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
using std::fmaf;
#if FLOAT16
static float widened(unsigned half) {
    _Float16 f; std::memcpy(&f, &half, 2); return (float)f;  // little-endian
}
static unsigned narrowed(float f) {
    _Float16 half = (_Float16)f; unsigned short bits; std::memcpy(&bits, &half, 2); return bits;
}
#else
static float widened(unsigned half) { return __uint_as_float(half << 16); }
static unsigned narrowed(float f) {
    const unsigned u = __float_as_uint(f); return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
#endif
"""
WATCH = """
static const i64 *ranges;  // first and last byte + 1 of every tensor
static i64 tensors, strays;
static void watch(const element *at) {
    for (i64 n = 0; n < tensors; ++n)
        if ((i64)at >= ranges[2 * n] && (i64)at + BYTES <= ranges[2 * n + 1]) return;
    ++strays;
}
"""
RUN = """
extern "C" i64 run(const i64 *grid, i64 block, const i64 *a, const i64 *within, i64 count) {
    ranges = within, tensors = count, strays = 0;
    blockDim = {(unsigned)block, 1, 1};
    for (i64 b = 0; b < grid[0]; ++b)
        for (i64 t = 0; t < block; ++t) {
            blockIdx.x = (unsigned)b;
            threadIdx.x = (unsigned)t;
            NAME(ARGUMENTS);
        }
    return strays;
}
"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def conv(*, batch=2, length=40, channels=8, width=4, dtype=torch.float32, packed=None, **options):
    """Random arguments; `packed` are the edges of the sequences."""
    generator = torch.Generator().manual_seed(length + width)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(dtype)

    rows = batch if packed is None else len(packed) - 1
    settings = {"silu": True, "reverse": False, **options}
    return Conv(
        normal(batch, length, channels, dtype=dtype),
        normal(channels, width),
        normal(channels),
        normal(rows, width - 1, channels, dtype=dtype),
        None if packed is None else torch.tensor(packed, dtype=torch.int32),
        **settings,
    )


# Compiled by NVRTC

COMPILED = [
    *itertools.product([torch.bfloat16], (1, 2, 3, 4, 8, 32), (False, True), ["sm_90"]),
    *itertools.product([torch.float32, torch.float16], [4], (False, True), ["sm_90"]),
    *itertools.product([torch.bfloat16], [4], [True], ["sm_80", "sm_100"]),
    *itertools.product([torch.float16, torch.float32], [4], [False], ["sm_80", "sm_100"]),
]


@pytest.mark.parametrize(("dtype", "width", "packed", "arch"), COMPILED)
def test_every_variant_is_compiled_without_a_gpu(dtype, width, packed, arch):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: no NVRTC")
    call = conv(batch=1, dtype=dtype, width=width, packed=[0, 9, 40] if packed else None)
    source = cuda.SOURCE.read_text(encoding="utf-8")
    odd = dataclasses.replace(call, x=call.x[:, :, 1:], weight=call.weight[1:])
    found = {
        str(macros): macros
        for arguments in (call, odd)
        for macros in (
            cuda.forward_variant(arguments, arguments.x).macros(arguments),
            cuda.backward_variant(arguments, *2 * (arguments.x,)).macros(arguments),
        )
    }
    for macros in found.values():
        code = nvrtc.compile_source(source, macros, arch, cached=False)
        assert b"causal_conv1d_forward" in code
        assert b"causal_conv1d_backward" in code


def test_the_source_includes_nothing():
    assert "#include" not in cuda.SOURCE.read_text(encoding="utf-8")


# Run as C++


class Emulated:
    """Stands in for a `nvrtc.Kernel`: its threads run one after the other."""

    def __init__(self, function, arguments) -> None:
        self.function = function
        self.arguments = arguments

    def launch(self, grid, block, arguments) -> None:
        assert len(arguments) == self.arguments
        words = [
            0 if a is None else a.data_ptr() if isinstance(a, torch.Tensor) else a
            for a in arguments
        ]
        given = [a for a in arguments if isinstance(a, torch.Tensor) and a.numel()]
        ranges = [
            edge for a in given for edge in (a.data_ptr(), a.data_ptr() + span(a) * a.itemsize)
        ]
        strays = self.function(
            words_of(grid), word(block), words_of(words), words_of(ranges), word(len(given))
        )
        assert strays == 0, f"{strays} loads or stores beside every tensor"


word = ctypes.c_int64


def words_of(numbers):
    return (word * len(numbers))(*numbers)


def span(tensor):
    """Numbers in memory from its first to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * step for size, step in steps)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Compile the source as C++ for macros: (source, name, macros, device) -> Emulated."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ to read the CUDA source as C++")
    folder = tmp_path_factory.mktemp("emulated")
    known = {}

    def kernel(source, name, macros, device):
        key = (name, *sorted(macros.items()))
        if key not in known:
            known[key] = build(found, folder / f"k{len(known)}", name, macros)
        return known[key]

    return kernel


def build(gxx, target, name, macros):
    text = cuda.SOURCE.read_text(encoding="utf-8")
    for function, body in INSTRUCTIONS.items():
        text, count = re.subn(
            rf"(INLINE \w+ {function}\([^)]*\)) \{{.*?\n\}}",
            lambda match, body=body: f"{match[1]} {{ {body} }}",
            text,
            flags=re.DOTALL,
        )
        assert count == 1, function
    assert "asm(" not in text
    for function, pointer in (("INLINE Raw load(", "from"), ("INLINE void store(", "to")):
        before, _, behind = text.partition(function)
        first, _, body = behind.partition("{")
        watched = f"{{ watch({pointer});"
        text = before + (WATCH if pointer == "from" else "") + function + first + watched + body
    signature = re.search(rf"{name}\((.*?)\) \{{", text, flags=re.DOTALL)[1]
    parameters = [" ".join(parameter.split()) for parameter in signature.split(",")]
    kinds = [p[: p.index("*") + 1] if "*" in p else "i64" for p in parameters]
    arguments = ", ".join(f"({kind})a[{n}]" for n, kind in enumerate(kinds))
    run = RUN.replace("NAME", name).replace("ARGUMENTS", arguments)
    target.with_suffix(".cpp").write_text(SHIM + text + run, encoding="utf-8")
    command = [gxx, "-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"]
    command += [f"-D{key}={value}" for key, value in macros.items()]
    subprocess.run([*command, target.with_suffix(".cpp"), "-o", target], check=True)
    return Emulated(ctypes.CDLL(str(target)).run, len(kinds))


def inside_nan(tensor):
    """The same values and strides with NaN around and between them in memory."""
    if tensor is None or tensor.numel() == 0:
        return tensor
    around = torch.full((span(tensor) + 128,), torch.nan, dtype=tensor.dtype)
    return around.as_strided(tensor.shape, tensor.stride(), 64).copy_(tensor)


class Made:
    """Tensors of torch.empty, NaN at first, with more NaN around them that must stay."""

    def __init__(self) -> None:
        self.all = []
        self.empty = torch.empty

    def __call__(self, shape, **kind):
        numel = torch.Size(shape).numel()
        around = self.empty(numel + 128, **kind).fill_(torch.nan)
        self.all.append((around, numel))
        return around[64 : 64 + numel].view(shape)

    def check(self) -> None:
        assert self.all
        for around, numel in self.all:
            assert around[:64].isnan().all()
            assert around[64 + numel :].isnan().all()
            assert not around[64 : 64 + numel].isnan().any()


@pytest.fixture
def emulated(compiler, monkeypatch):
    """Let the cuda backend run on CPU tensors, as on a GPU of one processor."""
    gpu = types.SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(nvrtc, "kernel", compiler)
    made = Made()
    monkeypatch.setattr(torch, "empty", made)
    yield
    made.check()


TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 5e-4}


def check(call):
    """Values and every gradient against float64, on guarded tensors."""
    generator = torch.Generator().manual_seed(5)
    dy = torch.randn(call.x.shape, generator=generator).to(call.x.dtype)
    dfinal = torch.randn(call.state_shape, generator=generator).to(call.x.dtype)
    names = ("x", "weight", "bias", "initial_state")
    guarded = dataclasses.replace(call, **{n: inside_nan(getattr(call, n)) for n in names})
    got = (*cuda.forward(guarded), *cuda.backward(guarded, inside_nan(dy), inside_nan(dfinal)))
    wide = {n: None if getattr(call, n) is None else getattr(call, n).double() for n in names}
    exact = dataclasses.replace(call, **wide)
    want = (*reference.forward(exact), *reference.backward(exact, dy.double(), dfinal.double()))
    names = ("y", "final_state", "dx", "dweight", "dbias", "dinitial_state")
    assert got[0].dtype == got[1].dtype == got[2].dtype == call.x.dtype
    for name, found, expected in zip(names, got, want, strict=True):
        if expected is None or expected.numel() == 0:
            continue
        assert found.shape == expected.shape, name
        error = (found.double() - expected).norm() / expected.norm()
        assert error < TOLERANCES[call.x.dtype], (name, float(error))
    return got


@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 16, 17, 40, 131])
def test_its_values_and_gradients_are_those_of_the_reference(emulated, length, silu, reverse):
    check(conv(length=length, silu=silu, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 9])
def test_packed_sequences_of_any_length_do_not_see_each_other(emulated, width, reverse):
    edges = [0, 1, 2, 4, 7, 8, 25, 26, 28, 44, 64, 65, 100, 131]
    check(conv(batch=1, length=131, width=width, packed=edges, reverse=reverse))
    check(conv(batch=1, length=131, width=width, packed=[0, 131], reverse=reverse))


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_of_any_number_and_every_dtype(emulated, dtype, channels):
    check(conv(channels=channels, dtype=dtype, length=50))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("begin", "step"), [(0, 1), (8, 1), (1, 1), (2, 1), (0, 2)])
def test_a_slice_of_a_wider_tensor_is_taken_as_it_is(emulated, dtype, begin, step):
    call = conv(dtype=dtype)
    wide = torch.full((2, 40, 64), torch.nan, dtype=dtype)
    view = wide[:, :, begin : begin + 8 * step : step]
    view.copy_(call.x)
    check(dataclasses.replace(call, x=view))
    transposed = call.x.transpose(1, 2).contiguous().transpose(1, 2)
    check(dataclasses.replace(call, x=transposed))


@pytest.mark.parametrize("packed", [None, [0, 3, 20, 40]])
def test_without_bias_and_state(emulated, packed):
    call = conv(batch=1 if packed else 2, packed=packed)
    check(dataclasses.replace(call, bias=None, initial_state=None))


def test_bits_do_not_depend_on_tiles_rows_or_packing(emulated, monkeypatch):
    call = conv(length=131, dtype=torch.bfloat16, channels=16)
    whole = check(call)
    row = dataclasses.replace(call, x=call.x[1:], initial_state=call.initial_state[1:])
    assert torch.equal(cuda.forward(row)[0], whole[0][1:])
    packed = dataclasses.replace(row, cu_seqlens=torch.tensor([0, 131], dtype=torch.int32))
    assert torch.equal(cuda.forward(packed)[0], whole[0][1:])
    gpu = types.SimpleNamespace(multi_processor_count=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert torch.equal(cuda.forward(call)[0], whole[0])
    assert torch.equal(check(call)[2], whole[2])


def test_a_gradient_of_any_layout_is_taken(emulated):
    call = conv(length=30)
    dfinal = torch.zeros(call.state_shape)
    want = cuda.backward(call, torch.ones_like(call.x), dfinal)
    for dy in (torch.ones(1, 1, 1).expand(call.x.shape), torch.ones(2, 30, 20)[:, :, 3:11]):
        assert torch.equal(cuda.backward(call, dy, dfinal).x, want.x)


@pytest.mark.parametrize("packed", [None, [0, 3, 20, 131]])
@pytest.mark.parametrize("reverse", [False, True], ids=["onwards", "reverse"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("begin", [0, 8, 3])
def test_results_are_written_where_they_are_wanted(emulated, begin, dtype, reverse, packed):
    call = conv(batch=1 if packed else 2, length=131, dtype=dtype, packed=packed, reverse=reverse)
    dy, dfinal = torch.ones_like(call.x), torch.zeros(call.state_shape)
    for run in (cuda.forward, lambda call: cuda.backward(call, dy, dfinal)):
        around = torch.full((*call.x.shape[:2], 24), torch.nan, dtype=dtype)
        into = around[:, :, begin : begin + 8]
        got = run(dataclasses.replace(call, into=into))
        assert got[0] is into
        torch.testing.assert_close(got, run(call), rtol=0, atol=0)
        assert int(around.isnan().sum()) == around.numel() - into.numel()
