"""LLVM assembly to machine code of this CPU, in this process, by llvmlite."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

Passes = Literal["none", "variables", "all"]
_LOCK = threading.Lock()


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed (pip install llvmlite)"
    return None


@functools.cache
def llvm() -> ModuleType:
    """llvmlite's binding, imported at first use: who compiles nothing does not wait for it."""
    from llvmlite import binding

    for part in ("target", "asmprinter", "asmparser"):
        getattr(binding, f"initialize_native_{part}")()
    return binding


@functools.cache
def architecture() -> str:
    """Of this CPU, as LLVM calls it: x86_64, aarch64, ..."""
    return str(llvm().get_default_triple()).partition("-")[0]


@functools.cache
def has_features(*names: str) -> bool:
    """Whether this is an x86 with these instructions, by LLVM's names."""
    found = llvm().get_host_cpu_features()
    return architecture() in ("x86_64", "amd64") and all(found.get(name) for name in names)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Machine code in memory, as long as this lives. ctypes calls it without Python's lock."""

    engine: Any
    machine: Any
    functions: Mapping[str, Callable[..., None]]


def compile_assembly(
    assembly: str, functions: Mapping[str, tuple[Any, ...]], *, passes: Passes
) -> Compiled:
    """Compile a module of LLVM's assembly language.

    Args:
        assembly: the text.
        functions: name of each function that Python calls, and the ctypes of its arguments.
        passes: what LLVM may change before it selects instructions: "none"; "variables" to keep
            those in registers; or "all", without its vectorisers and its unroller.
    """
    binding = llvm()
    with _LOCK:  # LLVM's own state is not made for two compiles at once
        parsed = binding.parse_assembly(assembly)
        parsed.verify()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(),
            features=binding.get_host_cpu_features().flatten(),
            opt=2,
            jit=True,
        )
        _run_passes(passes, parsed, machine)
        engine = binding.create_mcjit_compiler(parsed, machine)
        engine.finalize_object()
        loaded = {
            name: ctypes.CFUNCTYPE(None, *arguments)(engine.get_function_address(name))
            for name, arguments in functions.items()
        }
    return Compiled(engine, machine, loaded)


def _run_passes(passes: Passes, parsed: Any, machine: Any) -> None:
    options = llvm().create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm().create_pass_builder(machine, options)
    manager = llvm().create_new_module_pass_manager()
    if passes == "variables":
        manager.add_sroa_pass()
    elif passes == "all":
        manager = builder.getModulePassManager()
    manager.run(parsed, builder)


class Assembly:
    """Lines of LLVM assembly; values are numbered as they come, behind a name."""

    def __init__(self, name: str = "v") -> None:
        self.name = name
        self.lines: list[str] = []

    def value(self, instruction: str) -> str:
        """Write an instruction; returns the name of its result."""
        name = f"%{self.name}{len(self.lines)}"
        self.lines.append(f"{name} = {instruction}")
        return name

    def write(self, instruction: str) -> None:
        """Write an instruction without a result, or a label."""
        self.lines.append(instruction)

    def load(self, kind: str, base: str, offset: int = 0) -> str:
        """What is stored `offset` bytes behind `base`, at any alignment."""
        return self.value(f"load {kind}, ptr {self.at(base, offset)}, align 1")

    def store(self, kind: str, value: str, base: str, offset: int = 0) -> None:
        """Store `value` `offset` bytes behind `base`, at any alignment."""
        self.write(f"store {kind} {value}, ptr {self.at(base, offset)}, align 1")

    def at(self, base: str, offset: int | str) -> str:
        """The address `offset` bytes behind `base`."""
        return self.value(f"getelementptr i8, ptr {base}, i64 {offset}") if offset else base

    def __str__(self) -> str:
        return "\n".join(self.lines)
