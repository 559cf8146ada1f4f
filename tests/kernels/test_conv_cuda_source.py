"""The CUDA source of the convolution without a GPU.

NVRTC compiles every variant for three architectures. And the same source, read as C++ with a thread
at a time, is held to the float64 reference: its indices and its borders are those of the GPU, only
the instructions named in ``INSTRUCTIONS`` are stood in for.
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
    unsigned short bits = (unsigned short)half; _Float16 f; std::memcpy(&f, &bits, 2); return (float)f;
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
RUN = """
extern "C" void run(const i64 *grid, i64 block, const i64 *a) {
    blockDim = {(unsigned)block, 1, 1};
    for (i64 b = 0; b < grid[0]; ++b)
        for (i64 t = 0; t < block; ++t) {
            blockIdx.x = (unsigned)b;
            threadIdx.x = (unsigned)t;
            NAME(ARGUMENTS);
        }
}
"""
# The architectures of A100, H100/H200 and B200.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
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
    pytest.param(
        dtype, width, packed, id=f"{str(dtype)[6:]}-{width}-{'packed' if packed else 'rows'}"
    )
    for dtype, width, packed in itertools.product(DTYPES, (1, 2, 3, 4, 8, 32), (False, True))
    if dtype == torch.bfloat16 or width == 4
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "width", "packed"), COMPILED)
def test_every_variant_is_compiled_without_a_gpu(dtype, width, packed, arch):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: no NVRTC")
    call = conv(batch=1, dtype=dtype, width=width, packed=[0, 9, 40] if packed else None)
    source = cuda.SOURCE.read_text(encoding="utf-8")
    odd = dataclasses.replace(call, x=call.x[:, :, 1:], weight=call.weight[1:])
    variants = {
        variant.macros(arguments)["VECTOR"]: (variant, arguments)
        for arguments in (call, odd)
        for variant in (
            cuda.forward_variant(arguments),
            cuda.backward_variant(arguments, arguments.x),
        )
    }
    for variant, arguments in variants.values():
        code = nvrtc.compile_source(source, variant.macros(arguments), arch, cached=False)
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
        i64 = ctypes.c_int64
        self.function((i64 * 3)(*grid), i64(block), (i64 * len(words))(*words))


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
    signature = re.search(rf"{name}\((.*?)\) \{{", text, flags=re.DOTALL)[1]
    kinds = [
        parameter.rpartition(" ")[0 if "*" not in parameter else 0]
        for parameter in re.sub(r"\s+", " ", signature).split(",")
    ]
    arguments = ", ".join(
        f"({'i64' if '*' not in p else p[: p.index('*') + 1].strip()})a[{n}]"
        for n, p in enumerate(re.sub(r"\s+", " ", signature).split(","))
    )
    run = RUN.replace("NAME", name).replace("ARGUMENTS", arguments)
    target.with_suffix(".cpp").write_text(SHIM + text + run, encoding="utf-8")
    command = [gxx, "-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"]
    command += [f"-D{key}={value}" for key, value in macros.items()]
    subprocess.run([*command, target.with_suffix(".cpp"), "-o", target], check=True)
    return Emulated(ctypes.CDLL(str(target)).run, len(kinds))


@pytest.fixture
def emulated(compiler, monkeypatch):
    """The cuda backend on CPU tensors, and on a GPU of one processor."""
    gpu = types.SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(nvrtc, "kernel", compiler)


def check(call, *, tolerance=None):
    """Values and every gradient against float64; nothing beside them is written."""
    tolerance = tolerance or {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 5e-4}
    generator = torch.Generator().manual_seed(5)
    dy = torch.randn(call.x.shape, generator=generator).to(call.x.dtype)
    dfinal = torch.randn(call.state_shape, generator=generator).to(call.x.dtype)
    got = (*cuda.forward(call), *cuda.backward(call, dy, dfinal))
    exact = Conv(
        *(
            t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for t in (getattr(call, f.name) for f in dataclasses.fields(Conv))
        )
    )
    want = (*reference.forward(exact), *reference.backward(exact, dy.double(), dfinal.double()))
    names = ("y", "final_state", "dx", "dweight", "dbias", "dinitial_state")
    for name, found, expected in zip(names, got, want, strict=True):
        if expected is None or expected.numel() == 0:
            continue
        error = (found.double() - expected).norm() / expected.norm()
        assert error < tolerance[call.x.dtype], (name, float(error))
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
