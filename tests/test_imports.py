"""The shape of the repository: three links, cheap imports, a public name for each promise."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dnassm

ROOT = Path(__file__).resolve().parent.parent


def modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\njson.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["kernels", "data", "pipelines"])
def test_the_library_reaches_each_root_folder_through_a_relative_link(name):
    link = ROOT / "dnassm" / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../{name}"


def test_the_kernels_folder_never_shadows_the_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_importing_the_package_imports_nothing_heavy():
    loaded = modules_after("import dnassm; dnassm.Interval")
    assert loaded.isdisjoint({"torch", "lightning", "sklearn", "Bio", "matplotlib", "pydantic"})


@pytest.mark.parametrize(
    "module", ["errors", "registry", "artifact", "extras", "console", "provenance", "catalogue"]
)
def test_the_foundation_loads_without_torch(module):
    assert "torch" not in modules_after(f"import dnassm.{module}")


@pytest.mark.parametrize("name", dnassm.__all__)
def test_every_public_name_can_be_imported(name):
    public = getattr(dnassm, name)
    assert public.__module__.startswith("dnassm.")
    assert public.__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dnassm.no_such_name


def test_a_module_has_one_name_only():
    kernels = importlib.import_module("dnassm.kernels")
    assert all("dnassm" in folder for folder in kernels.__path__)
    doubled = {
        name
        for name, module in list(sys.modules.items())
        if not name.startswith(("dnassm", "__main__"))
        and str(getattr(module, "__file__", None) or "").startswith(
            (f"{ROOT}/dnassm/", f"{ROOT}/kernels/")
        )
    }
    assert doubled == set()
