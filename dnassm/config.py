"""RunConfig: everything that decides what a run computes, in one frozen, validated value.

Read from a preset or a TOML file, changed by ``key=value`` overrides, stored in every run folder.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dnassm.errors import ConfigError
from dnassm.registry import did_you_mean

PRESETS = Path(__file__).resolve().parent / "presets"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Spec(_Section):
    """One of several by its name, with its own options; a name alone stands for its defaults."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class MixerSpec(_Spec):
    """A mixer by name with its own options."""

    name: str = Field(description="a name of `dnassm list mixers`")
    options: dict[str, Any] = Field(
        default_factory=dict, description="fields of the mixer's Config"
    )


class TokenizerSpec(_Spec):
    """A tokenizer by name with its own options, or a saved one by its path."""

    name: str = Field("single", description="a name of `dnassm list tokenizers`, or a path")
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the tokenizer; none with a path"
    )


class SamplerSpec(_Spec):
    """A sampler by name with its own options."""

    name: str = Field("uniform", description="a name of `dnassm list samplers`")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the sampler")


class PackingConfig(_Section):
    """Short contigs side by side on a row, instead of the windows of a sampler."""

    min_bases: int = Field(1, ge=1, description="shortest piece to keep")
    max_n_fraction: float | None = Field(
        None, ge=0, le=1, description="most unknown bases of a piece; None: not nothing but them"
    )


class ModelConfig(_Section):
    """The model: one letter of `pattern` per block."""

    d_model: int = Field(128, ge=1, le=1 << 16, description="width D of the residual stream")
    pattern: str = Field(
        "mmmm", min_length=1, max_length=4096, description="one letter per block, first to last"
    )
    letters: dict[str, MixerSpec] = Field(
        default={"m": MixerSpec(name="mamba"), "s": MixerSpec(name="s4d")},
        description="what each letter of the pattern stands for",
    )
    bidirectional: bool = Field(False, description="run every mixer in both directions")  # noqa: FBT003
    dropout: float = Field(0.0, ge=0, lt=1, description="on the output of every block")
    tie_embeddings: bool = Field(True, description="the head shares the embedding matrix")  # noqa: FBT003
    vocab_size: int = Field(
        8, ge=2, le=1 << 24, description="tokens V; pretraining sets it from the tokenizer"
    )

    @model_validator(mode="after")
    def _letters_are_defined(self) -> ModelConfig:
        long = [key for key in self.letters if len(key) != 1]
        if long:
            raise ValueError(f"letters must be single characters, got {long[0]!r}")
        unknown = sorted(set(self.pattern) - set(self.letters))
        if unknown:
            raise ValueError(
                f"pattern {self.pattern!r} uses {', '.join(unknown)}, defined letters are "
                f"{', '.join(sorted(self.letters))}"
            )
        return self


class DataConfig(_Section):
    """What the model reads."""

    length: int = Field(1024, ge=2, description="tokens of a row that the model reads")
    tokenizer: TokenizerSpec = Field(
        TokenizerSpec(), description="bases to tokens: its name and options, or its path"
    )
    sampler: SamplerSpec = Field(
        SamplerSpec(), description="which windows are read: its name and options"
    )
    packing: PackingConfig | None = Field(
        None, description="true: short contigs side by side on a row, in place of the sampler"
    )
    rc_probability: float = Field(0.5, ge=0, le=1, description="share of windows read on strand -")
    soft_masked_weight: float = Field(
        1.0, ge=0, le=1, description="of soft-masked bases in the loss; 0.1 as Evo 2 and PlantCAD"
    )
    workers: int = Field(0, ge=0, description="loader processes; changes speed, never the batches")

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_on_or_off(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _packing_or_a_sampler(self) -> DataConfig:
        if self.packing is not None and self.sampler != SamplerSpec():
            raise ValueError(
                f"packing takes the place of a sampler, got both it and {self.sampler.name}; set "
                "one of them"
            )
        return self


class ObjectiveConfig(_Section):
    """What the model is trained to predict."""

    name: Literal["next", "masked"] = Field("next", description="next token, or masked tokens")
    mask_ratio: float = Field(0.15, gt=0, lt=1, description="share of tokens to hide (masked)")


class TrainingConfig(_Section):
    """How the model is trained."""

    max_steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="windows per step, over all devices")
    lr: float = Field(2e-3, gt=0, description="peak learning rate")
    lr_final: float = Field(0.05, ge=0, le=1, description="last learning rate, as a share of lr")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising rate")
    weight_decay: float = Field(0.1, ge=0, description="AdamW; none on norms, biases, A, D, dt")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto", description="auto: bf16 on a device that has it, float32 on CPU"
    )
    seed: int = Field(0, ge=0, description="of weights, windows, masks and dropout")
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.csv")
    valid_every: int = Field(200, ge=1, description="steps between looks at held-out windows")
    valid_windows: int = Field(32, ge=0, description="held-out windows of such a look; 0: none")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="the newest so many are kept")


class RunConfig(_Section):
    """A whole run; `config.json` of a run folder holds it."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()

    @classmethod
    def preset(cls, name: str) -> RunConfig:
        """Return the preset called `name`; raises ConfigError with a near-miss hint."""
        names = preset_names()
        if name not in names:
            raise ConfigError(
                f"no preset named {name!r}; have {', '.join(names)}.{did_you_mean(name, names)}"
            )
        return cls.from_toml(PRESETS / f"{name}.toml")

    @classmethod
    def from_toml(cls, path: Path) -> RunConfig:
        """Read a TOML file with the tables model, data, objective, training."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: expected TOML, got: {error}") from error
        return cls.checked(values, origin=str(path))

    @classmethod
    def checked(cls, values: Mapping[str, Any], *, origin: str) -> RunConfig:
        """Validate nested `values`; every problem of `origin` in one ConfigError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(explain(cls, problem) for problem in error.errors())
            raise ConfigError(f"{origin}: {problems}") from error

    def override(self, assignments: Iterable[str]) -> RunConfig:
        """Apply ``section.key=value`` strings; values are read as JSON, else taken as text."""
        values = self.model_dump()
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or "." not in key:
                raise ConfigError(
                    f"--set {assignment}: expected section.key=value, as training.lr=0.001"
                )
            *parents, leaf = key.strip().split(".")
            node = values
            for parent in parents:
                section = _as_section(parent, node.get(parent))
                if not isinstance(section, dict):
                    raise ConfigError(f"--set {assignment}: {parent} is a value, not a section")
                node[parent] = section
                node = section
            try:
                node[leaf] = json.loads(text)
            except json.JSONDecodeError:
                node[leaf] = text
        return self.checked(values, origin="--set")


def _as_section(name: str, value: Any) -> Any:
    """`value` as the dict that a key below it goes into, where it has one."""
    if value is None or (name == "packing" and value is True):
        return {}
    return {"name": value} if name in ("tokenizer", "sampler") and isinstance(value, str) else value


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def explain(model: type[BaseModel], problem: Any) -> str:
    """One problem that pydantic found in `model` as a phrase: where, what was expected, and got."""
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, problem["loc"][:-1])
        name = str(problem["loc"][-1])
        return f"no setting {where}; have {', '.join(known)}.{did_you_mean(name, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error"):
        return f"{where}: {message}"
    return f"{where}: {message}, got {_shortened(repr(problem['input']))}"


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = get_args(annotation) or (annotation,)  # X, or one of X | None
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not sections or annotation == dict[str, MixerSpec]:
            return list(MixerSpec.model_fields)
        model = sections[0]
    return list(model.model_fields)
