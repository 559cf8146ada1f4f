"""Registries find what lies in their folder; extras say what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dnassm.errors import DnassmError, MissingExtraError, UnknownNameError
from dnassm.extras import require
from dnassm.registry import Registry, did_you_mean


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """A package `things` whose files register classes in a registry of the test."""
    folder = tmp_path / "things"
    folder.mkdir()
    (folder / "__init__.py").write_text("from dnassm.registry import Registry\nREGISTRY = None\n")
    for name in ("apple", "pear"):
        (folder / f"{name}.py").write_text(
            "import things\n"
            f"@things.REGISTRY.register('{name}')\n"
            f"class Thing:\n    name = '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import things

    things.REGISTRY = Registry("thing", "things")
    yield things
    for module in [name for name in sys.modules if name.split(".")[0] == "things"]:
        del sys.modules[module]


def test_every_file_of_the_folder_is_found_and_names_are_sorted(package):
    assert package.REGISTRY.names() == ["apple", "pear"]
    assert package.REGISTRY["pear"].name == "pear"
    assert "apple" in package.REGISTRY
    assert "plum" not in package.REGISTRY
    assert 3 not in package.REGISTRY


def test_the_folder_is_not_imported_before_the_first_look(package):
    assert "things.apple" not in sys.modules
    package.REGISTRY.names()
    assert "things.apple" in sys.modules


def test_a_new_file_is_all_that_a_new_thing_needs(package):
    (Path(package.__file__).parent / "fig.py").write_text(
        "import things\nthings.REGISTRY.register('fig')(object)\n"
    )
    assert package.REGISTRY.names() == ["apple", "fig", "pear"]


def test_an_unknown_name_is_an_error_with_the_known_ones_and_a_near_miss(package):
    with pytest.raises(UnknownNameError) as caught:
        package.REGISTRY["aple"]
    expected = "no thing named 'aple'; have apple, pear. Did you mean 'apple'?"
    assert str(caught.value) == expected
    assert isinstance(caught.value, DnassmError)
    assert isinstance(caught.value, KeyError)


def test_one_name_for_two_things_is_refused(package):
    with pytest.raises(ValueError, match="thing 'apple' is registered twice"):
        package.REGISTRY.register("apple")(int)
        package.REGISTRY.names()


def test_the_same_thing_may_be_registered_again(package):
    thing = package.REGISTRY["apple"]
    assert package.REGISTRY.register("apple")(thing) is thing


def test_a_broken_file_is_not_hidden_and_is_looked_at_again(package):
    broken = Path(package.__file__).parent / "zucchini.py"
    broken.write_text("raise RuntimeError('sour')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="sour"):
            package.REGISTRY.names()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("aple", " Did you mean 'apple'?"), ("zzz", ""), ("", ""), ("peer", " Did you mean 'pear'?")],
)
def test_a_hint_is_the_nearest_name_or_nothing(name, hint):
    assert did_you_mean(name, ["apple", "pear"]) == hint


def test_an_installed_extra_is_its_module():
    assert require("json", "none", "reading").loads("1") == 1


def test_a_missing_extra_says_what_it_is_for_and_how_to_install_it():
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module.part", "embed", "writing .h5ad")
    assert str(caught.value) == (
        "writing .h5ad needs no_such_module, which is not installed; run: "
        "pip install 'dnassm[embed]'"
    )
    assert isinstance(caught.value, ImportError)


def test_what_the_extra_itself_misses_is_named(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="needs no_such_dependency"):
        require("half_installed", "embed", "writing .h5ad")
