"""DNAModel: its pattern, its states, and its files in good and in bad condition."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dnassm.config import DataConfig, MixerSpec, ModelConfig, RunConfig
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ArtifactError, ConfigError, DnassmError, ShapeError, UnknownNameError
from dnassm.mixers.mamba import Mamba
from dnassm.mixers.s4d import S4D
from dnassm.model import DNAModel
from dnassm.runs import load_run

SMALL = {
    "m": MixerSpec(name="mamba", options={"d_state": 4}),
    "s": MixerSpec(name="s4d", options={"d_state": 4}),
}


def make(seed: int = 0, **changes) -> DNAModel:
    torch.manual_seed(seed)
    settings = {"d_model": 8, "pattern": "msm", "letters": SMALL}
    return DNAModel(ModelConfig(**{**settings, **changes}))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 8, (2, 30), generator=torch.Generator().manual_seed(1))


# Pattern and head


def test_the_pattern_names_the_mixer_of_each_block():
    kinds = [type(block.mixer) for block in make(pattern="mssm").blocks]
    assert kinds == [Mamba, S4D, S4D, Mamba]


def test_a_letter_carries_its_own_options():
    letters = {"a": SMALL["m"], "b": MixerSpec(name="mamba", options={"d_state": 7})}
    model = make(pattern="ab", letters=letters)
    assert [block.mixer.config.d_state for block in model.blocks] == [4, 7]


def test_a_mixer_that_does_not_exist_is_named_with_a_near_miss():
    with pytest.raises(UnknownNameError, match=r"no mixer named 'manba'.*Did you mean 'mamba'"):
        make(pattern="x", letters={"x": MixerSpec(name="manba")})


def test_an_option_of_a_mixer_that_does_not_exist_is_named_with_a_near_miss():
    letters = {"m": MixerSpec(name="mamba", options={"d_stat": 4})}
    with pytest.raises(
        ConfigError, match=r"mixer mamba: no setting d_stat.*Did you mean 'd_state'"
    ):
        make(pattern="m", letters=letters)


def test_the_tied_head_is_the_embedding_and_the_untied_one_is_not(tokens):
    tied, untied = make(), make(tie_embeddings=False)
    assert untied.parameter_count() - tied.parameter_count() == 8 * 8
    hidden, _ = tied.hidden(tokens)
    torch.testing.assert_close(tied(tokens)[0], hidden @ tied.embedding.weight.T)
    hidden, _ = untied.hidden(tokens)
    torch.testing.assert_close(untied(tokens)[0], hidden @ untied.head.weight.T)


def test_output_projections_start_smaller_the_deeper_the_model():
    shallow, deep = make(pattern="m"), make(pattern="m" * 16)
    ratio = (
        deep.blocks[0].mixer.out_proj.weight.std() / shallow.blocks[0].mixer.out_proj.weight.std()
    )
    torch.testing.assert_close(ratio, torch.tensor(0.25), atol=0.05, rtol=0)


def test_embedding_norms_and_biases_are_not_decayed_and_the_maps_are():
    marked = {
        name: getattr(parameter, "no_weight_decay", False)
        for name, parameter in make(tie_embeddings=False).named_parameters()
    }
    for name, parameter in make(tie_embeddings=False).named_parameters():
        if parameter.dim() < 2 or name == "embedding.weight":
            assert marked[name], name
        if name.endswith("proj.weight") or name == "head.weight":
            assert not marked[name], name


def test_causal_and_streaming_follow_from_the_blocks():
    assert make().causal
    assert make().streaming
    both = make(bidirectional=True)
    assert not both.causal
    assert not both.streaming


# Hidden states and states


def test_layers_are_counted_from_the_embedding_to_the_last_block(tokens):
    model = make().double()
    x = model.embedding(tokens)
    assert torch.equal(model.hidden(tokens, layer=0)[0], x)
    for index, block in enumerate(model.blocks, start=1):
        x, _ = block(x)
        hidden, states = model.hidden(tokens, layer=index)
        assert torch.equal(hidden, x)
        assert len(states) == index
    assert torch.equal(model.hidden(tokens)[0], model.norm(x))


@pytest.mark.parametrize("layer", [-1, 4, 100])
def test_a_layer_that_does_not_exist_is_refused(tokens, layer):
    with pytest.raises(ShapeError, match=rf"layer must be 0..3 for 3 blocks, got {layer}"):
        make().hidden(tokens, layer=layer)


@pytest.mark.parametrize("cut", [1, 15, 29])
def test_a_sequence_in_two_parts_is_the_whole(tokens, cut):
    model = make().double()
    whole, end = model(tokens)
    left, state = model(tokens[:, :cut])
    right, state = model(tokens[:, cut:], state)
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_do_not_see_each_other(tokens, bidirectional):
    model = make(bidirectional=bidirectional).double()
    row, edges = tokens[:1], torch.tensor([0, 1, 12, 30])
    packed, state = model(row, None, edges)
    alone = [model(row[:, start:stop]) for start, stop in [(0, 1), (1, 12), (12, 30)]]
    torch.testing.assert_close(packed, torch.cat([logits for logits, _ in alone], 1))
    if bidirectional:
        return
    for number, (_, end) in enumerate(alone):
        one = tuple(type(part)(*(tensor[number : number + 1] for tensor in part)) for part in state)
        torch.testing.assert_close(one, end)


def test_edges_of_packed_sequences_go_with_one_row(tokens):
    with pytest.raises(ShapeError, match="DNAModel: cu_seqlens packs sequences on one row"):
        make().hidden(tokens, layer=0, cu_seqlens=torch.tensor([0, 30]))


def test_a_state_may_be_used_up_to_a_layer(tokens):
    model = make().double()
    whole, _ = model.hidden(tokens, layer=2)
    _, state = model.hidden(tokens[:, :10], layer=2)
    right, _ = model.hidden(tokens[:, 10:], state, layer=2)
    torch.testing.assert_close(right, whole[:, 10:])


def test_steps_are_the_forward_pass(tokens):
    model = make().double().eval()
    want, end = model(tokens)
    state, outputs = model.init_state(2), []
    for t in range(tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        outputs.append(logits)
    torch.testing.assert_close(torch.stack(outputs, 1), want)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[0], r"must be int64 \(B, L\), got torch.int64 \(30,\)"),
        (lambda t: t.float(), r"must be int64 \(B, L\), got torch.float32"),
        (lambda t: t[:, :0], "L > 0|none of them 0"),
    ],
)
def test_tokens_of_the_wrong_kind_are_refused(tokens, spoil, message):
    with pytest.raises(ShapeError, match=message):
        make()(spoil(tokens))


def test_a_state_of_another_model_is_refused(tokens):
    state = make(pattern="m").init_state(2)
    with pytest.raises(ShapeError, match="state must have 3 parts, one per block, got 1"):
        make()(tokens, state)
    with pytest.raises(ShapeError, match="state must have 3 parts, one per block, got 1"):
        make().step(tokens[:, 0], state)


# Dropout and precision


def test_dropout_acts_in_training_only(tokens):
    model = make(dropout=0.5)
    first, second = (model(tokens)[0] for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    assert torch.equal(model(tokens)[0], make()(tokens)[0])


def test_the_residual_is_float32_under_bf16_autocast(tokens):
    model = make(pattern="m" * 4)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output[0].dtype))
        block.mixer.register_forward_hook(lambda _, __, output: seen.append(output[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, _ = model.hidden(tokens)
    assert seen == [torch.bfloat16, torch.float32] * 4
    assert hidden.dtype == torch.float32


def test_the_residual_is_not_rounded_on_its_way_under_bf16_autocast(tokens):
    model = make(pattern="m")
    parts = []
    model.blocks[0].mixer.register_forward_hook(lambda _, __, output: parts.append(output[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, _ = model.hidden(tokens, layer=0)
        after, _ = model.hidden(tokens, layer=1)
    assert torch.equal(after, x + parts[0].float())


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"bidirectional": True}], ids=str
)
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, tokens, changes):
    model = make(seed=3, **changes).eval()
    model.save_pretrained(tmp_path)
    again = DNAModel.from_pretrained(tmp_path).eval()
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(tokens)[0], model(tokens)[0])


def test_what_is_not_decayed_stays_marked_after_loading(saved):
    """Fine-tuning reads the marks."""
    for name, parameter in DNAModel.from_pretrained(saved).named_parameters():
        want = getattr(make().get_parameter(name), "no_weight_decay", False)
        assert getattr(parameter, "no_weight_decay", False) == want


def test_the_settings_of_the_run_are_kept(tmp_path):
    config = RunConfig(data=DataConfig(length=77))
    make().save_pretrained(tmp_path, config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["data"]["length"] == 77
    assert written["model"]["pattern"] == "msm"
    assert (written["format"], written["version"]) == ("dnassm-run", 1)


def test_saving_over_a_run_replaces_it(saved):
    make(seed=9).save_pretrained(saved)
    again = DNAModel.from_pretrained(saved)
    assert torch.equal(again.embedding.weight, make(seed=9).embedding.weight)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def rewrite_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2, this dnassm reads 1; upgrade dnassm"),
        ({"version": None}, "format version None"),
        ({"format": "other"}, "expected the config of a dnassm run"),
        ({"model": {"d_modl": 8}}, "no setting model.d_modl.*Did you mean 'd_model'"),
        ({"model": {"d_model": 10**12}}, "model.d_model"),
        ({"model": 3}, "model: .*got 3"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_read_says_why(saved, changes, message):
    rewrite_config(saved, **changes)
    with pytest.raises(DnassmError, match=message) as caught:
        DNAModel.from_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert str(saved / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\x00\xff", "null"])
def test_a_config_that_is_no_object_is_refused(saved, text):
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"config.json: expected"):
        DNAModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 16}, r"embedding.weight must be floating point \(8, 16\), got .*\(8, 8\)"),
        ({"pattern": "ms"}, "blocks.2.*must be absent, got floating point"),
        ({"pattern": "msmm"}, "blocks.3.* must be floating point .*, got absent"),
        ({"tie_embeddings": False}, "head.weight must be floating point .8, 8., got absent"),
        ({"d_model": 60000, "vocab_size": 1 << 24}, "embedding.weight must be"),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_their_config_are_refused(saved, changes, message):
    model = json.loads((saved / "config.json").read_text())["model"]
    rewrite_config(saved, model={**model, **changes})
    with pytest.raises(ArtifactError, match=message) as caught:
        DNAModel.from_pretrained(saved)
    assert len(str(caught.value)) < 500


def change_weights(folder: Path, name: str, change) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors")


def test_weights_of_another_shape_or_kind_are_refused(saved):
    change_weights(saved, "norm.weight", lambda t: t[1:])
    with pytest.raises(ArtifactError, match=r"norm.weight must be floating point \(8,\), got .*7"):
        DNAModel.from_pretrained(saved)
    make().save_pretrained(saved)
    change_weights(saved, "norm.weight", lambda t: t.long())
    with pytest.raises(ArtifactError, match=r"norm.weight must be floating.*got torch.int64"):
        DNAModel.from_pretrained(saved)


def test_weights_kept_in_half_precision_are_read_as_float32(saved):
    change_weights(saved, "norm.weight", lambda t: t.half())
    assert DNAModel.from_pretrained(saved).norm.weight.dtype == torch.float32


def with_header(content: bytes, header: bytes, size: int | None = None) -> bytes:
    (old,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", len(header) if size is None else size) + header + content[8 + old :]


def lie(content: bytes, find: bytes, replace: bytes) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size]
    assert find in header
    return with_header(content, header.replace(find, replace))


HOSTILE = {
    "empty": lambda c: b"",
    "seven bytes": lambda c: c[:7],
    "header only begun": lambda c: c[:50],
    "cut in the data": lambda c: c[: len(c) // 2],
    "one byte short": lambda c: c[:-1],
    "one byte long": lambda c: c + b"\0",
    "header longer than the file": lambda c: with_header(c, b"{}", 1 << 40),
    "header of 2^64 - 1": lambda c: with_header(c, b"{}", (1 << 64) - 1),
    "header that is no JSON": lambda c: with_header(c, b"x" * 64),
    "header that is a list": lambda c: with_header(c, b"[1, 2, 3]"),
    "header without tensors": lambda c: with_header(c, b"{}"),
    "header of deep nesting": lambda c: with_header(c, b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a shape that is too large": lambda c: lie(c, b'"shape":[8,8]', b'"shape":[8,9]'),
    "a shape of 2^62": lambda c: lie(c, b'"shape":[8,8]', b'"shape":[4611686018427387904,8]'),
    "a negative shape": lambda c: lie(c, b'"shape":[8,8]', b'"shape":[-8,-8]'),
    "an unknown dtype": lambda c: lie(c, b'"F32"', b'"F33"'),
    "a pickle": lambda c: b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.",
    "random": lambda c: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
def test_a_broken_or_hostile_weight_file_is_refused_in_one_line(saved, spoil):
    path = saved / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ArtifactError) as caught:
        DNAModel.from_pretrained(saved)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_file_and_a_folder_that_is_no_run_are_named(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors does not exist; is .*finished run"):
        DNAModel.from_pretrained(saved)
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtifactError, match=r"other is not a run folder: it holds no config.json"):
        DNAModel.from_pretrained(tmp_path / "other")


# Runs


def test_a_run_is_loaded_with_its_tokenizer_in_evaluation_mode(saved):
    TOKENIZERS["single"]().save(saved / "tokenizer.json")
    run = load_run(saved)
    assert not run.model.training
    assert run.tokenizer.vocab_size == 8
    assert len(run.digest) == 64
    make(seed=4).save_pretrained(saved)
    assert load_run(saved).digest != run.digest


def test_a_run_without_tokenizer_or_folder_is_refused(saved, tmp_path):
    with pytest.raises(ArtifactError, match=r"tokenizer.json"):
        load_run(saved)
    with pytest.raises(ArtifactError, match="nowhere is not a folder; expected a run made by"):
        load_run(tmp_path / "nowhere")


def test_a_tokenizer_of_another_run_is_refused(tmp_path):
    make(vocab_size=12).save_pretrained(tmp_path)
    TOKENIZERS["single"]().save(tmp_path / "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"tokenizer.json has 8 tokens, the model has 12"):
        load_run(tmp_path)
