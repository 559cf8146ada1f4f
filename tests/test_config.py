"""Presets, near misses and overrides of RunConfig."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import torch

from dnassm.config import PRESETS, RunConfig, preset_names
from dnassm.data.sampler import SAMPLERS
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ConfigError
from dnassm.model import DNAModel

# Presets


def test_the_tiny_presets_are_shipped():
    assert {"mamba-tiny", "mamba-masked-tiny", "s4d-tiny"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_in_its_first_line_what_it_is(name):
    first = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# .{20,110}\.", first)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_builds_a_model_of_the_size_it_names(name):
    config = RunConfig.preset(name)
    with torch.device("meta"):
        model = DNAModel(config.model)
    first = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    said = re.search(r"([\d.]+)M parameters", first)
    assert said is not None
    assert abs(model.parameter_count() / 1e6 - float(said[1])) <= 0.05
    assert config.data.sampler.name in SAMPLERS
    assert config.data.tokenizer.name in TOKENIZERS


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_json(name):
    config = RunConfig.preset(name)
    again = RunConfig.checked(json.loads(config.model_dump_json()), origin="json")
    assert again == config


@pytest.mark.parametrize("name", preset_names())
def test_a_masked_preset_sees_both_sides_and_a_causal_one_does_not(name):
    config = RunConfig.preset(name)
    assert config.model.bidirectional == (config.objective.name == "masked")


def test_a_preset_that_does_not_exist_is_named_with_a_near_miss():
    with pytest.raises(ConfigError, match=r"no preset named 'mamba-tny'.*mean 'mamba-tiny'"):
        RunConfig.preset("mamba-tny")


def test_every_setting_is_described():
    for section in RunConfig.model_fields.values():
        assert all(field.description for field in section.annotation.model_fields.values())


# Overrides


def test_an_override_changes_its_setting_and_nothing_else():
    base = RunConfig()
    changed = base.override(["training.lr=0.5", "model.pattern=ms", "data.length=64"])
    assert (changed.training.lr, changed.model.pattern, changed.data.length) == (0.5, "ms", 64)
    assert changed.training.model_copy(update={"lr": base.training.lr}) == base.training
    assert base == RunConfig()


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("training.lr=1e-3", "training.lr", 0.001),
        (" training.lr =3", "training.lr", 3.0),
        ("training.max_steps=1e3", "training.max_steps", 1000),
        ("model.tie_embeddings=false", "model.tie_embeddings", False),
        ("training.precision=32-true", "training.precision", "32-true"),
        ('objective.name="masked"', "objective.name", "masked"),
        ("model.letters.m.name=s4d", "model.letters.m.name", "s4d"),
        ("model.letters.m.options.d_state=8", "model.letters.m.options", {"d_state": 8}),
        ("model.letters.m.options={}", "model.letters.m.options", {}),
        ("model.letters.m=s4d", "model.letters.m", {"name": "s4d", "options": {}}),
        ("data.tokenizer=kmer", "data.tokenizer", {"name": "kmer", "options": {}}),
        ("data.tokenizer=a/b.json", "data.tokenizer.name", "a/b.json"),
        ('data.sampler={"name": "tiled"}', "data.sampler.name", "tiled"),
        ("data.sampler.options.x=1", "data.sampler", {"name": "uniform", "options": {"x": 1}}),
        ("data.packing=true", "data.packing", {"min_bases": 1, "max_n_fraction": None}),
        ("data.packing=false", "data.packing", None),
        ("data.packing.min_bases=7", "data.packing.min_bases", 7),
    ],
)
def test_a_value_is_read_as_json_or_else_as_text(assignment, path, value):
    found = RunConfig().override([assignment]).model_dump()
    for part in path.split("."):
        found = found[part]
    assert found == value


def test_a_name_and_its_options_may_be_set_one_after_the_other():
    config = RunConfig().override(["data.tokenizer=kmer", "data.tokenizer.options.k=3"])
    assert config.data.tokenizer.model_dump() == {"name": "kmer", "options": {"k": 3}}
    again = config.override(["data.tokenizer=single"])
    assert again.data.tokenizer.options == {}, "another one does not have them"
    on = RunConfig().override(["data.packing=true", "data.packing.min_bases=3"])
    assert on.data.packing.min_bases == 3
    assert on.override(["data.packing=false"]).data.packing is None


def test_a_new_letter_can_be_defined_and_used_at_once():
    config = RunConfig().override(["model.letters.x.name=mamba", "model.pattern=mx"])
    assert config.model.letters["x"].name == "mamba"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.lrr=1", r"no setting training.lrr; have .*Did you mean 'lr'\?"),
        ("trainng.lr=1", r"no setting trainng; have model, data.*Did you mean 'training'\?"),
        ("data.lenght=5", r"Did you mean 'length'\?"),
        ("model.letters.m.nam=s4d", r"no setting model.letters.m.nam; have name, options.*'name'"),
        ("model.letters.x.options={}", "model.letters.x.name: Field required"),
        ("training.lr", "expected section.key=value"),
        ("lr=1", "expected section.key=value"),
        ("training.lr.x=1", "lr is a value, not a section"),
        ("data.tokenizer.nam=x", "no setting data.tokenizer.nam; have name, options.*'name'"),
        ("data.packing.min_base=3", "no setting data.packing.min_base; have min.*'min_bases'"),
        ("data.packing=on", "data.packing: .*got 'on'"),
        ("data.soft_masked_weight=2", "soft_masked_weight: .*less than or equal to 1, got 2"),
        ("training.lr=fast", "training.lr: .*valid number.*got 'fast'"),
        ("training.lr=-1", "training.lr: .*greater than 0, got -1"),
        ("training.lr=Infinity", "training.lr: .*finite"),
        ("training.lr=NaN", "training.lr: "),
        ("training.max_steps=1.5", "training.max_steps: .*integer"),
        ("training.max_steps=0", "training.max_steps: .*greater than or equal to 1"),
        ("training.precision=16", "training.precision: .*'auto', '32-true' or 'bf16-mixed'"),
        ("objective.name=previous", "objective.name: .*'next' or 'masked'"),
        ("model.pattern=", "model.pattern: .*at least 1 character"),
        ("model.pattern=12", "model.pattern: .*valid string, got 12"),
        ("model.pattern=mxm", "pattern 'mxm' uses x, defined letters are m, s"),
        ("model.letters.mm.name=mamba", "letters must be single characters, got 'mm'"),
        ("model.dropout=1", "model.dropout: .*less than 1"),
        ("model.d_model=99999999", "model.d_model: .*less than or equal to 65536"),
        ("model=3", "expected section.key=value"),
    ],
)
def test_an_override_that_makes_no_sense_says_what_is_wrong(assignment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig().override([assignment])
    assert str(caught.value).startswith("--set")
    assert "\n" not in str(caught.value)


def test_every_mistake_is_reported_at_once():
    with pytest.raises(ConfigError, match=r"no setting data.lenght.*; no setting training.lrr"):
        RunConfig().override(["training.lrr=1", "data.lenght=5"])


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().training.lr = 3.0


# Files


def test_a_toml_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nd_model = 32\npattern = "s"\n')
    assert RunConfig.from_toml(path).model.d_model == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model\n", "expected TOML, got: .*line 1"),
        ("[model]\nd_model = \n", "expected TOML, got: .*line 2"),
        ("[model]\nd_modle = 3\n", r"no setting model.d_modle.*Did you mean 'd_model'\?"),
        ("[modle]\n", r"no setting modle.*Did you mean 'model'\?"),
        ('[model]\nd_model = "wide"\n', "model.d_model: .*integer.*got 'wide'"),
        ("model = 3\n", "model: .*got 3"),
        ("[model.letters]\nm = 3\n", "model.letters.m: .*got 3"),
        ('[model]\npattern = "q"\n', "pattern 'q' uses q, defined letters are m, s"),
    ],
)
def test_a_toml_file_with_a_mistake_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        RunConfig.from_toml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_missing_or_a_folder_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml: expected TOML"):
        RunConfig.from_toml(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        RunConfig.from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        RunConfig.from_toml(tmp_path)


def test_the_presets_are_valid_toml_with_known_tables():
    for name in preset_names():
        tables = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
        assert set(tables) <= {"model", "data", "objective", "training"}


def test_packing_and_a_sampler_exclude_each_other():
    with pytest.raises(ConfigError, match=r"place of a sampler.*tiled"):
        RunConfig().override(["data.packing=true", "data.sampler=tiled"])
