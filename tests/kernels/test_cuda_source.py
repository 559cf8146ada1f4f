"""The CUDA source of the scan without a GPU: NVRTC compiles what the backend would launch.

Which kernels, macros and launches there are is asked of the backend itself, on CPU tensors and with
the properties of a GPU that is not there.
"""

from __future__ import annotations

import dataclasses
import re
import types
from pathlib import Path

import pytest
import torch

from dnassm.kernels import nvrtc
from dnassm.kernels.selective_scan import cuda
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cases import Case
from dnassm.kernels.selective_scan.cuda import cut, shape, walk

# Shared memory of a block and of a multiprocessor, multiprocessors, GB: A100, L4, H100, B200.
DEVICES = {
    "sm_80": (166912, 167936, 108, 80),
    "sm_89": (101376, 102400, 58, 24),
    "sm_90": (232448, 233472, 132, 80),
    "sm_100": (232448, 233472, 148, 180),
}
SOURCES = sorted(Path(cuda.__file__).parent.glob("*.cu"))
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LONG = Case(batch=1, length=4096, channels=64, states=16)


def scan(case: Case = LONG, dtype=BF16, *, packed=False, without=(), **options) -> Scan:
    """One call; `packed` makes two sequences, `without` leaves arguments out."""
    inputs = case.inputs(dtype)
    edges = None
    if packed:
        edges = torch.tensor([0, case.length // 2, case.length], dtype=torch.int32)
        inputs["initial_state"] = inputs["initial_state"].expand(2, -1, -1)
    given = {n: None if n in without else inputs.get(n) for n in Gradients._fields}
    flags = {"dt_softplus": "dt_bias" in inputs, "reverse": False, "exact": False, **options}
    return Scan(**given, cu_seqlens=edges, **flags)


def sized(**sizes) -> Case:
    return Case(batch=1, **{"length": 4096, "channels": 64, "states": 16, **sizes})


SIDE_BY_SIDE = 3 * LONG.channels
"""Numbers of a row of `lanes`."""


def lanes():
    """A wide tensor as the Mamba block has it: y, then dz or z, then what is not the scan's."""
    wide = torch.zeros(1, LONG.length, SIDE_BY_SIDE, dtype=BF16)
    return wide.chunk(3, dim=2)


def beside() -> Scan:
    """A call whose backward writes dz over z and y beside it."""
    y, z, _ = lanes()
    return dataclasses.replace(scan(), z=z, dz_into=z, y_into=y)


SCANS = {
    "bf16": lambda: scan(),
    "fp32": lambda: scan(dtype=FP32),
    "exact, fp16": lambda: scan(dtype=FP16, exact=True),
    "y beside dz": beside,
    "packed": lambda: scan(packed=True),
    "packed, reverse, fp32": lambda: scan(dtype=FP32, packed=True, reverse=True),
    "bare, fp32": lambda: scan(sized(bare=True), FP32),
    "N 1, no z": lambda: scan(sized(states=1), without=("z",)),
    "N 1, fp32": lambda: scan(sized(states=1), FP32),
    "N 100, packed, fp16": lambda: scan(sized(states=100), FP16, packed=True),
    "N 128, fp32": lambda: scan(sized(states=128), FP32),
    "odd channels": lambda: scan(sized(channels=33)),
    "odd channels, fp32": lambda: scan(sized(channels=33), FP32),
    "wide": lambda: scan(sized(channels=1024)),
    "short": lambda: scan(sized(length=3)),
    "2 channels per thread": lambda: scan(sized(length=64, channels=30_000)),
    "1 channel per thread": lambda: scan(sized(length=512, channels=11_000)),
    "1 channel per thread, fp32": lambda: scan(sized(length=512, channels=11_000), FP32),
}
FEW = ("bf16", "packed, reverse, fp32", "N 100, packed, fp16")
COMPILED = [
    *(("sm_90", name) for name in (*FEW, "exact, fp16", "bare, fp32", "N 1, no z", "odd channels")),
    *(("sm_80", name) for name in FEW),
    *(("sm_100", name) for name in FEW),
    ("sm_89", "N 128, fp32"),
    ("sm_90", "y beside dz"),
    ("sm_90", "2 channels per thread"),
    *((arch, "1 channel per thread") for arch in ("sm_80", "sm_90", "sm_100")),
    ("sm_90", "1 channel per thread, fp32"),
]
PLANNED = [(arch, name) for arch in DEVICES for name in SCANS]
LAID_OUT = {
    "forward": "2 * TILES * TB * MAP_ROW * 4 + NWARP * sizeof(Work)",
    "chunk_ends": "2 * TILES * TB * NPAD * 4 + NWARP * sizeof(Work)",
    "backward": "HELD * ROW * 4 + NWARP * sizeof(Work)",
}
"""Shared memory of a block, as the source has it."""


class Recorded:
    """Stands in for a `nvrtc.Kernel`: it remembers how it is launched and computes nothing."""

    def __init__(self, name, macros) -> None:
        self.name, self.macros = name, macros
        self.launches = []

    def launch(self, grid, block, arguments, *, shared=0) -> None:
        self.launches.append((grid, block, list(arguments), shared))


@pytest.fixture
def planned(monkeypatch):
    """Plan a call for a GPU: (arch, scan) -> every kernel that forward and backward launch."""

    def plan(arch: str, call: Scan) -> list[Recorded]:
        block, processor, count, gigabytes = DEVICES[arch]
        gpu = types.SimpleNamespace(
            shared_memory_per_block_optin=block,
            shared_memory_per_multiprocessor=processor,
            multi_processor_count=count,
            total_memory=gigabytes * 10**9,
        )
        found: dict[str, Recorded] = {}

        def kernel(source, name, macros, device):
            assert source == walk.sources(name)
            return found.setdefault(f"{name} {sorted(macros.items())}", Recorded(name, macros))

        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        monkeypatch.setattr(nvrtc, "kernel", kernel)
        forget()
        y, state, marks = cuda.forward(call)
        cuda.backward(call, marks, torch.zeros_like(y), torch.zeros_like(state))
        cuda.backward_and_output(call, marks, torch.zeros_like(y), torch.zeros_like(state))
        return list(found.values())

    yield plan
    forget()


def forget() -> None:
    """What the backend remembers of a device, which here changes."""
    for module in (cut, shape, walk):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def parameters() -> dict[str, int]:
    """Kernel of the source -> number of its parameters."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    text = re.sub(r"//.*", "", text).replace("\\\n", " ")
    common = re.search(r"#define ARGUMENTS (.*)", text)[1]
    kernels = re.findall(
        r'extern "C" __global__ void\s+__launch_bounds__\([^)]*\)\s+(\w+)\(([^)]*)\)', text
    )
    return {name: given.replace("ARGUMENTS", common).count(",") + 1 for name, given in kernels}


@pytest.mark.parametrize(("arch", "name"), COMPILED, ids=str)
def test_every_kernel_that_a_call_needs_is_compiled_without_a_gpu(planned, arch, name):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed: no NVRTC")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: no NVRTC")
    for kernel in planned(arch, SCANS[name]()):
        source = nvrtc.joined(walk.sources(kernel.name))
        least = min(shared for *_, shared in kernel.launches)
        source += f'static_assert({LAID_OUT.get(kernel.name, "0")} <= {least}, "shared memory");\n'
        code = nvrtc.compile_source(source, kernel.macros, arch, cached=False)
        assert code.startswith(b"\x7fELF")
        assert kernel.name.encode() in code


@pytest.mark.parametrize(("arch", "name"), PLANNED, ids=str)
def test_a_launch_is_within_what_the_gpu_has_and_the_kernel_takes(planned, arch, name):
    takes = parameters()
    for kernel in planned(arch, SCANS[name]()):
        assert kernel.launches
        for grid, block, arguments, shared in kernel.launches:
            assert len(arguments) == takes[kernel.name]
            assert 0 < block <= 1024
            assert block % 32 == 0
            assert all(size > 0 for size in grid)
            assert max(grid[1:]) <= 65535
            assert shared <= DEVICES[arch][0]


# What the backward does with shared memory: tiles whose dB and dC are summed at once, early states,
# step sizes that stay; bf16, N 16, marks 64 and 16 steps apart. As measured on an H200; elsewhere
# nothing is done at the price of narrower blocks.
FILLED = {
    "sm_80": ((4, 0, 0), (4, 0, 0)),
    "sm_89": ((1, 0, 0), (1, 0, 0)),
    "sm_90": ((4, 2, 5), (4, 2, 1)),
    "sm_100": ((4, 2, 5), (4, 2, 1)),
}


@pytest.mark.parametrize("arch", DEVICES)
def test_the_backward_fills_shared_memory_without_narrower_blocks(planned, arch):
    planned(arch, scan())  # from now on the device is that one
    for span, wanted in zip((64, 16), FILLED[arch], strict=True):
        found = shape._shape_of(16, 512, 2, torch.device("cpu"), span)
        assert (found.gather, found.early, found.sizes) == wanted
        assert (found.threads, found.rows) == (256, 128)


@pytest.mark.parametrize(
    ("rows", "length", "whole", "span"),
    [
        (8, 8192, 0, 64),
        (4, 8192, 8 * 8192, 64),  # by itself there would be room for 16
        (4, 8192, 0, 16),
        (1, 1 << 15, 1 << 20, 128),
        (1, 199_936, 390_000, 128),  # of two pieces that are not alike
        (1, 1 << 20, 0, 128),
    ],
)
def test_pieces_of_a_call_keep_the_marks_that_the_whole_would(planned, rows, length, whole, span):
    planned("sm_100", scan())  # of 180 GB: room for 352 MB
    wide = torch.empty(1, 1, 1536, dtype=BF16).expand(rows, length, -1)
    maps = torch.empty(1, 1, 1, 16, dtype=BF16).expand(rows, length, -1, -1)
    call = dataclasses.replace(
        scan(), x=wide, dt=wide, z=wide, B=maps, C=maps, A=torch.empty(1536, 16), whole=whole
    )
    assert cuda.marks_shape(call) == (rows, length // span, 48, 512)


def test_all_kernels_of_the_source_are_planned_for(planned):
    found = {kernel.name for kernel in planned("sm_90", scan())}
    assert found == set(parameters())
    assert {path for name in found for path in walk.sources(name)} == set(SOURCES)


def test_the_calls_cover_every_dtype_and_both_ends_of_what_a_thread_loads_at_once(planned):
    found = [k.macros for make in SCANS.values() for k in planned("sm_90", make())]
    for macro, values in {"DTYPE": {0, 1, 2}, "N": {1, 16, 100, 128}}.items():
        assert {macros[macro] for macros in found} >= values
    assert {1, 8} <= {macros["VEC"] for macros in found}
    assert {macros["NC"] for macros in found} == {1, 2, 4}
    assert {macros["OUTPUT"] for macros in found if "OUTPUT" in macros} == {0, 1, 2}
    assert {macros["DZ_APART"] for macros in found if "DZ_APART" in macros} == {0, 1}
    assert {macros["EARLY"] for macros in found if "EARLY" in macros} == {0, 2}
    for macro in ("PACKED", "HAS_Z", "SOFTPLUS", "EXACT"):
        assert {macros[macro] for macros in found} == {0, 1}


@pytest.mark.parametrize("overwrite", [(), ("dt",), ("dy",), ("dt", "dy")], ids=str)
def test_a_gradient_lies_over_its_source_where_a_call_allows_it(planned, overwrite):
    call = dataclasses.replace(scan(), overwrite=overwrite)
    planned("sm_90", call)  # from now on a launch computes nothing
    y, state, marks = cuda.forward(call)
    dy = torch.zeros_like(y)
    found, again = cuda.backward_and_output(call, marks, dy, torch.zeros_like(state))
    for name, source, gradient in (("dt", call.dt, found.dt), ("dy", dy, found.x)):
        assert (gradient.data_ptr() == source.data_ptr()) == (name in overwrite)
    assert again.data_ptr() not in {t.data_ptr() for t in (call.x, call.dt, dy, y)}


@pytest.mark.parametrize("room", ["none", "z", "dz", "dz and y", "y alone", "y elsewhere"])
def test_gradients_are_written_where_there_is_room_by_its_strides(planned, room):
    y, z, _ = lanes()
    _, dz, _ = (None, z, None) if room == "z" else lanes()
    y = y.contiguous() if room == "y elsewhere" else y
    into = {"none": {}, "z": {"dz_into": dz}, "dz": {"dz_into": dz}, "y alone": {"y_into": y}}
    call = dataclasses.replace(scan(), z=z, **into.get(room, {"dz_into": dz, "y_into": y}))
    seen = set()
    for kernel in planned("sm_90", call):
        if kernel.name != "backward":
            continue
        for *_, arguments, _ in kernel.launches:
            given, macros = dict(zip(walk.parameters(), arguments, strict=True)), kernel.macros
            seen.add(macros["OUTPUT"])
            assert (given["zt"], given["dxt"]) == (SIDE_BY_SIDE, LONG.channels)
            assert macros["DZ_APART"] == (call.dz_into is not None)
            if macros["DZ_APART"]:
                assert (given["dz"], given["dzt"]) == (dz.data_ptr(), SIDE_BY_SIDE)
            if macros["OUTPUT"]:
                assert (given["y"] == y.data_ptr()) == (macros["OUTPUT"] == 2)
    assert seen == ({0, 2} if room == "dz and y" else {0, 1})


def test_room_of_another_dtype_is_left_alone(planned):
    y, dz, _ = (part.float() for part in lanes())
    call = dataclasses.replace(scan(), dz_into=dz, y_into=y)
    for kernel in planned("sm_90", call):
        if kernel.name == "backward":
            assert (kernel.macros["DZ_APART"], kernel.macros["OUTPUT"] in (0, 1)) == (0, True)


def test_the_source_includes_nothing():
    for path in SOURCES:
        assert "#include" not in path.read_text(encoding="utf-8"), path.name
