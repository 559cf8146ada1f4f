"""DNAModel: tokens to hidden states to logits, a pattern of blocks between embedding and head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dnassm.artifact import read_json, staged_file, write_json
from dnassm.block import Block, build_mixer
from dnassm.config import ModelConfig, RunConfig
from dnassm.errors import ArtifactError, ShapeError
from dnassm.kernels.linear_cross_entropy import linear_cross_entropy
from dnassm.kernels.norm import add_norm
from dnassm.mixer import SequenceMixer, check_packed
from dnassm.wrappers import Bidirectional

ModelState = tuple[Any, ...]
"""One mixer state per block, first block first."""

_CONFIG_FORMAT = "dnassm-run"
_CONFIG_VERSION = 1


class DNAModel(nn.Module):
    """Embedding, blocks, a last norm and a head over the vocabulary.

    >>> from dnassm.config import ModelConfig
    >>> model = DNAModel(ModelConfig(d_model=16, pattern="ms"))
    >>> logits, state = model(torch.zeros(2, 10, dtype=torch.int64))
    >>> tuple(logits.shape)
    (2, 10, 8)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            Block(config.d_model, self._mixer(letter), config.dropout) for letter in config.pattern
        )
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_parameters()

    def _mixer(self, letter: str) -> SequenceMixer:
        spec, width = self.config.letters[letter], self.config.d_model
        mixer = build_mixer(spec, width)
        return (
            Bidirectional(mixer, build_mixer(spec, width)) if self.config.bidirectional else mixer
        )

    def reset_parameters(self) -> None:
        """Embedding N(0, 0.02), output projections over sqrt(blocks); mark what is not decayed.

        Source: Radford et al. 2019, section 2.3, as in the code of the Mamba paper. The mixers
        initialise themselves.
        """
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("out_proj.weight"):
                    parameter.div_(math.sqrt(len(self.blocks)))
                if parameter.dim() < 2 or name == "embedding.weight":
                    parameter.no_weight_decay = True  # type: ignore[attr-defined]

    @property
    def causal(self) -> bool:
        """Whether position t depends on positions up to t alone."""
        return all(block.mixer.causal for block in self._blocks())

    @property
    def streaming(self) -> bool:
        """Whether a sequence may be cut anywhere and the state carried, with the same result."""
        return all(block.mixer.streaming == "exact" for block in self._blocks())

    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        layer: int | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Hidden states of tokens (B, L) after `state`.

        Args:
            tokens: (B, L) int64; (1, L) if packed.
            state: what an earlier call returned for the positions before; None starts anew.
            layer: None gives the output of the last norm, 0 the embedding, i the output of block i.
            cu_seqlens: (S+1,) edges of S sequences that are packed on the one row and do not see
                each other; their state has S rows. See `SequenceMixer.forward`.

        Returns:
            (B, L, D) float32 and one state per block that ran.

        Raises:
            ShapeError: tokens are not (B, L) integers, the state is of another model, the edges do
                not fit, or there is no such layer.
        """
        depth = len(self.blocks)
        if layer is not None and not 0 <= layer <= depth:
            raise ShapeError(f"DNAModel: layer must be 0..{depth} for {depth} blocks, got {layer}")
        blocks = self._blocks()[:layer]
        self._check(tokens, ("B", "L"), state, len(blocks))
        if cu_seqlens is not None:
            check_packed("DNAModel", tokens, cu_seqlens)
        x = self.embedding(tokens)
        states = []
        for index, block in enumerate(blocks):
            x, after = block(x, None if state is None else state[index], cu_seqlens)
            states.append(after)
        return (self.norm(x) if layer is None else x), tuple(states)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Logits (B, L, V) of tokens (B, L), and the state after them; see `hidden`."""
        x, state = self.hidden(tokens, state, cu_seqlens=cu_seqlens)
        return self._logits(x), state

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """`token_loss` of the logits, which are not stored: mean cross entropy in nats, a scalar.

        Args:
            tokens: (B, L) int64; (1, L) if packed, see `hidden`.
            targets: (B, L) int64, -100 where nothing is asked. On a GPU nobody waits to look at
                them: one that is no token makes the loss NaN.
            weights: (B, L); all 1 when None.
            cu_seqlens: (S+1,) edges of packed sequences.
        """
        x, _ = self.hidden(tokens, cu_seqlens=cu_seqlens)
        weight = self._head_weight()
        loss, _ = linear_cross_entropy(x, weight, targets, weights=weights, check=False)
        return loss

    def step(
        self, tokens: Tensor, state: ModelState, *, in_place: bool = False
    ) -> tuple[Tensor, ModelState]:
        """Logits (B, V) after one more token (B,), and the next state.

        With `in_place` it may lie where `state` did, and there are no gradients through it.
        """
        self._check(tokens, ("B",), state, len(self.blocks))
        x, blocks = self.embedding(tokens), self._blocks()
        normed, states = blocks[0].norm(x), []
        # One sum and norm between two mixers: a step is as long as it has launches.
        norms = [*(block.norm for block in blocks[1:]), self.norm]
        for block, before, norm in zip(blocks, state, norms, strict=True):
            mixer = block.mixer
            y, after = (mixer.advance if in_place else mixer.step)(normed, before)
            normed, x = add_norm(y, x, norm.weight, eps=cast("float", norm.eps))
            states.append(after)
        return self._logits(normed), tuple(states)

    def init_state(self, batch: int) -> ModelState:
        """The state before the first position."""
        return tuple(block.mixer.init_state(batch) for block in self._blocks())

    def _blocks(self) -> list[Block]:
        """`blocks` with the type that nn.ModuleList forgets."""
        return cast("list[Block]", list(self.blocks))

    def _check(
        self, tokens: Tensor, axes: tuple[str, ...], state: ModelState | None, parts: int
    ) -> None:
        if tokens.dim() != len(axes) or tokens.dtype not in (torch.int64, torch.int32):
            raise ShapeError(
                f"DNAModel: tokens must be int64 ({', '.join(axes)}), got {tokens.dtype} "
                f"{tuple(tokens.shape)}"
            )
        if state is not None and len(state) not in (parts, len(self.blocks)):
            raise ShapeError(
                f"DNAModel: state must have {parts} parts, one per block, got {len(state)}"
            )

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self._head_weight())

    def _head_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.head is None else self.head.weight

    def parameter_count(self) -> int:
        """Trained numbers in the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: Path, config: RunConfig | None = None) -> None:
        """Write model.safetensors and config.json into `folder`.

        Args:
            folder: a run folder; made when missing.
            config: the run that made the model; its `model` part is replaced by this model's.
        """
        run = (config or RunConfig()).model_copy(update={"model": self.config})
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with staged_file(folder / "model.safetensors") as staging:
            # Not save_file: it leaves a file of its own behind when it is killed.
            staging.write_bytes(save(weights))
        write_run_config(folder, run)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DNAModel:
        """Read a model from a run folder; nothing is unpickled.

        Raises:
            ArtifactError: a file is missing, broken or of a newer version, or they do not fit.
        """
        folder = Path(folder)
        config = read_run_config(folder).model
        path = folder / "model.safetensors"
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist; is {folder} a finished run?")
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path}: expected safetensors, got a broken file: {error}"
            ) from error
        # First the outline: a config that asks for terabytes is refused before it gets them.
        outline = {"embedding.weight": (config.vocab_size, config.d_model)} | {
            f"blocks.{index}.norm.weight": (config.d_model,) for index in range(len(config.pattern))
        }
        _check_weights(path, weights, outline)
        model = cls(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        _check_weights(
            path, weights, shapes | dict.fromkeys(sorted(weights.keys() - shapes.keys()))
        )
        model.load_state_dict(weights)
        return model


def _check_weights(
    path: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Refuse `weights` that are not floating point of these shapes; None: there should be none."""
    for name, shape in shapes.items():
        expected = "absent" if shape is None else f"floating point {shape}"
        got = "absent"
        if name in weights:
            kind = weights[name].dtype
            got = (
                f"{'floating point' if kind.is_floating_point else kind} {(*weights[name].shape,)}"
            )
        if got != expected:
            raise ArtifactError(
                f"{path}: weights do not fit config.json beside it: {name} must be {expected}, got "
                f"{got}; the two are not of one run"
            )


def write_run_config(folder: Path, config: RunConfig) -> None:
    """Write ``folder/config.json``, which makes `folder` a run folder; it is made when missing."""
    header = {
        "format": _CONFIG_FORMAT,
        "version": _CONFIG_VERSION,
        **config.model_dump(mode="json"),
    }
    write_json(folder / "config.json", header)


def read_run_config(folder: Path) -> RunConfig:
    """Read the RunConfig of a run folder.

    Raises:
        ArtifactError: `folder` is not a run, or was written by a newer version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is not a run folder: it holds no config.json; name what "
            "`dnassm pretrain --out` wrote"
        )
    header = read_json(path)
    if not isinstance(header, dict) or header.pop("format", None) != _CONFIG_FORMAT:
        raise ArtifactError(f"{path}: expected the config of a dnassm run, got another JSON file")
    version = header.pop("version", None)
    if version != _CONFIG_VERSION:
        raise ArtifactError(
            f"{path}: format version {version!r}, this dnassm reads {_CONFIG_VERSION}; "
            "upgrade dnassm"
        )
    return RunConfig.checked(header, origin=str(path))
