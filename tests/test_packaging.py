"""What a user installs: the wheel, tried in an empty environment outside the repository."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dnassm.pipelines.cli import LazyGroup, cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "dnassm", "kernels", "data", "pipelines"]
COMMANDS = LazyGroup().list_commands(click.Context(cli))
LEFT_OUT = ("__pycache__", "*.pyc", "*.so")


def run(*command: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Run outside the repository and show everything it said when it fails."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files that packaging needs and nothing else; a build leaves nothing behind here."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns(*LEFT_OUT)
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(source: Path, kind: str) -> Path:
    out = source / "dist"
    builder = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation"]
    run(*builder, "--outdir", out, source, cwd=source.parent, timeout=120)
    suffix = ".whl" if kind == "wheel" else ".tar.gz"
    return next(path for path in out.iterdir() if path.name.endswith(suffix))


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    return build(source, "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Environment that holds the wheel and sees our dependencies, but not our editable install."""
    home = tmp_path_factory.mktemp("user")
    venv.create(home / "env", with_pip=False, symlinks=True)
    python = home / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}"]
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=home, timeout=120)
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=home).stdout
    # The folder named in a .pth file is searched, but the .pth files in it are not read: they would
    # bring in our editable install.
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site.strip(), "dependencies.pth").write_text("\n".join(sorted(folders)), encoding="utf-8")
    return home


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(source, wheel):
    library = {
        str(Path(folder, name).relative_to(source))
        for folder, _, names in os.walk(source / "dnassm", followlinks=True)
        for name in names
    }
    assert files_of(wheel) == library
    assert {"dnassm/data/interval.py", "dnassm/pipelines/cli.py", "dnassm/py.typed"} <= library


def test_the_wheel_holds_real_files_in_place_of_the_links(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            assert not stat.S_ISLNK(entry.external_attr >> 16), entry.filename
        assert b"class Interval" in archive.read("dnassm/data/interval.py")
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_source_archive_builds_the_same_wheel(source, wheel, tmp_path):
    with tarfile.open(build(source, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.iterdir())
    assert files_of(build(unpacked, "wheel")) == files_of(wheel)


def test_the_installed_package_is_the_wheel_and_not_this_repository(installed):
    python = installed / "env" / "bin" / "python"
    code = "import dnassm.data, dnassm.kernels as k; print(dnassm.data.__file__, *k.__path__)"
    for place in run(python, "-c", code, cwd=installed).stdout.split():
        assert Path(place).is_relative_to(installed / "env")
    said = run(installed / "env" / "bin" / "dnassm", "--version", cwd=installed).stdout
    assert PROJECT["version"] in said


@pytest.mark.slow
@pytest.mark.skipif("quickstart" not in COMMANDS, reason="the command quickstart is missing")
def test_quickstart_runs_from_the_wheel_in_an_empty_environment(installed):
    dnassm = installed / "env" / "bin" / "dnassm"
    run(dnassm, "quickstart", "--minutes", "0.2", "--out", "first", cwd=installed, timeout=280)
    assert (installed / "first" / "report.html").stat().st_size > 10_000


def test_the_version_is_the_same_everywhere():
    import dnassm

    assert dnassm.__version__ == PROJECT["version"] == importlib.metadata.version("dnassm")
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_for_ci_within_what_the_project_allows():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != "dnassm":
            assert name in pins, f"{name}: add the version that was tested to constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{text}, pinned {pins[name]}"


def test_every_extra_that_the_code_names_exists():
    named = set()
    for folder in ("dnassm", "data", "pipelines", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r'require\(\s*"[\w.]+",\s*"(\w+)"', text))
    assert named <= set(PROJECT["optional-dependencies"])
