"""The rows of a run: what its settings ask for, the same under any workers, ranks and breaks."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric

from dnassm.config import RunConfig
from dnassm.data.alphabet import decode
from dnassm.data.batch import Batch
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import build_store
from dnassm.data.tokenizer import Tokenizer, build_tokenizer
from dnassm.data.tokenizers.bpe import BpeTokenizer
from dnassm.data.windows import make_loader, window_bases
from dnassm.errors import ArtifactError, ConfigError, DnassmError
from dnassm.mixers.mamba import Mamba
from dnassm.runs import load_run
from dnassm.task import token_loss
from dnassm.training.hardware import Hardware
from dnassm.training.learner import Learner
from dnassm.training.pretrain import pretrain
from dnassm.training.rows import training_rows

CPU = Hardware(accelerator="cpu")
MERGES = ["A C", "G T", "AC GT", "A A", "T T", "C G", "T G"]
LENGTH = 24

KMER = ["data.tokenizer=kmer", "data.tokenizer.options.k=3"]
OVERLAP = [*KMER, "data.tokenizer.options.overlap=true"]
PACKED = ["data.packing=true", "data.soft_masked_weight=0.25"]
BPE = "data.tokenizer=TOKENIZER"  # the path of a saved one

FEEDS = {
    **{f"{name} of bases": [f"data.sampler={name}"] for name in SAMPLERS.names()},
    "uniform of kmers": [*KMER, "data.soft_masked_weight=0.25"],
    "tiled of overlapping kmers": [*OVERLAP, "data.sampler=tiled", "data.sampler.options.step=10"],
    "intervals of byte pairs": [BPE, "data.sampler=intervals"],
    "packed bases": PACKED,
    "packed kmers": [*KMER, *PACKED],
    "packed overlapping kmers": [*OVERLAP, *PACKED, "data.packing.min_bases=20"],
}
OWN = {
    "intervals": ["data.sampler.options.bed=rows.bed"],
    "annotated": ["data.sampler.options.annotation=features.bed"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Long and short contigs, soft-masked and unknown bases; the files of samplers beside it."""
    rng = np.random.default_rng(4)
    folder = tmp_path_factory.mktemp("genome")
    sizes = {"one": 1500, "two": 700} | {f"s{i}": int(rng.integers(20, 150)) for i in range(20)}
    with (folder / "genome.fa").open("w") as fasta:
        for name, size in sizes.items():
            bases = rng.choice(list("ACGTacgtN"), size, p=[0.2] * 4 + [0.045] * 4 + [0.02])
            fasta.write(f">{name}\n{''.join(bases)}\n")
    (folder / "rows.bed").write_text(
        "".join(f"one\t{at}\t{at + 130}\n" for at in range(0, 1300, 91))
    )
    (folder / "features.bed").write_text("one\t200\t700\tgene\ntwo\t20\t300\texon\n")
    BpeTokenizer(merges=MERGES).save(folder / "pairs.json")
    return build_store([folder / "genome.fa"], folder / "store")


def settings_of(feed: str, store) -> list[str]:
    if "byte pairs" in feed:
        pytest.importorskip("tokenizers")
    folder = store.path.parent
    own = next((own for name, own in OWN.items() if feed.startswith(name)), [])
    return [
        setting.replace("TOKENIZER", str(folder / "pairs.json"))
        .replace("options.bed=", f"options.bed={folder}/")
        .replace("annotation=", f"annotation={folder}/")
        for setting in (f"data.length={LENGTH}", *FEEDS[feed], *own)
    ]


def config_of(feed: str, store) -> RunConfig:
    return RunConfig().override(settings_of(feed, store))


def tokenizer_of(config: RunConfig) -> Tokenizer:
    return build_tokenizer(config.data.tokenizer.name, config.data.tokenizer.options)


def rows_of(config: RunConfig, store):
    return training_rows(config.data, tokenizer_of(config), store, seed=3)


@pytest.fixture(params=FEEDS)
def feed(request, store):
    config = config_of(request.param, store)
    return config, rows_of(config, store)


def plain(batch: Batch) -> list:
    return [part if part is None else part.tolist() for part in batch]


def joined(batches: list[Batch]) -> list:
    """Batches of several devices as the one batch that a single device would have read."""
    packed = batches[0].cu_seqlens is not None
    tokens, weights = (
        None if parts[0] is None else torch.cat(parts, dim=1 if packed else 0)
        for parts in ([b.tokens for b in batches], [b.weights for b in batches])
    )
    edges, at = [0], 0
    for batch in batches if packed else []:
        edges += [at + edge for edge in batch.cu_seqlens.tolist()[1:]]
        at += batch.tokens.numel()
    return plain(Batch(tokens, torch.tensor(edges) if packed else None, weights))


def test_rows_have_the_length_that_was_asked_for_whatever_a_token_is(feed):
    config, rows = feed
    tokens = rows.batch(0, 3).tokens
    assert tokens.shape == ((1, 3 * LENGTH) if config.data.packing else (3, LENGTH))
    assert tokens.dtype == torch.int64
    assert (tokens < tokenizer_of(config).vocab_size).all()


def test_steps_of_a_run_resumed_anywhere_on_other_devices_and_workers_are_the_same(feed):
    """Row for row, weight for weight, edge for edge; over the end of an epoch."""
    _, rows = feed
    size, steps = 6, min(len(rows) // 6 + 2, 12)
    whole = [plain(batch) for batch in make_loader(rows, batch_size=size, batches=steps)]
    assert len({str(batch) for batch in whole}) > 1
    for world, workers, seen in ((1, 2, 1), (2, 0, steps // 2), (3, 1, steps - 1)):
        by_rank = [
            make_loader(
                rows,
                batch_size=size // world,
                start_batch=seen,
                batches=steps - seen,
                workers=workers,
                rank=rank,
                world_size=world,
            )
            for rank in range(world)
        ]
        assert [joined(list(step)) for step in zip(*by_rank, strict=True)] == whole[seen:]


@pytest.mark.parametrize("feed", [name for name in FEEDS if "packed" not in name])
def test_the_other_strand_is_read_before_it_is_cut_into_tokens(feed, store):
    config = config_of(feed, store).override(["data.rc_probability=0.5"])
    rows = rows_of(config, store)
    tokenizer, pairs = tokenizer_of(config), str.maketrans("ACGTacgt", "TGCAtgca")
    strands = set()
    for index in range(min(len(rows), 40)):
        window = rows.sampler(3, 0, index)
        strands.add(window.strand)
        text = decode(store.fetch(type(window)(window.contig, window.start, window.end)))
        letters = text[::-1].translate(pairs) if window.strand == "-" else text
        expected = tokenizer.encode(letters)[:LENGTH]
        found = rows[index].numpy()
        np.testing.assert_array_equal(found[: expected.size], expected)
        assert (found[expected.size :] == tokenizer.pad_id).all()
    assert strands == {"+", "-"}


def test_a_window_holds_just_the_bases_of_its_tokens(store):
    single, kmer, overlapping = (
        build_tokenizer(name, options)
        for name, options in (
            ("single", {}),
            ("kmer", {"k": 6}),
            ("kmer", {"k": 6, "overlap": True}),
        )
    )
    sizes = [window_bases(t, 100, store, split="train") for t in (single, kmer, overlapping)]
    assert sizes == [100, 600, 105]
    whole = overlapping.encode("ACGT" * 27)[:100]
    assert all(len(overlapping.vocab[token]) == 6 for token in whole)


def test_windows_of_byte_pairs_have_about_as_many_tokens_as_asked_for(store):
    pytest.importorskip("tokenizers")
    pairs = BpeTokenizer(merges=MERGES)
    bases = window_bases(pairs, 100, store, split="train")
    assert bases == window_bases(pairs, 100, store, split="train")
    contig = store.fetch(next(iter(store.splits["train"])))
    tokens = [pairs.encode_codes(contig[at : at + bases]).size for at in range(0, 1200, 100)]
    assert 90 < np.mean(tokens) < 110


# What the model makes of them


@pytest.fixture
def tiny() -> RunConfig:
    return RunConfig().override(
        [
            "model.d_model=16",
            "model.pattern=ms",
            "data.length=48",
            "training.batch_size=4",
            "training.max_steps=8",
            "training.log_every=2",
            "training.valid_every=8",
            "training.checkpoint_every=3",
        ]
    )


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("objective", ["next", "masked"])
def test_a_step_on_every_kind_of_rows_changes_the_weights(feed, objective, store, tiny):
    masked = ["objective.name=masked", "model.bidirectional=true"] if objective == "masked" else []
    config = tiny.override([*settings_of(feed, store), *masked, "model.vocab_size=300"])
    learner = Learner(Fabric(accelerator="cpu", devices=1), config, tokenizer_of(config))
    learner.wrap()
    before = [parameter.clone() for parameter in learner.model.parameters()]
    loss = learner.step(rows_of(config, store).batch(0, 4), number=0, rate=1e-3)
    assert loss > 0
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before, learner.model.parameters(), strict=True)
    )


def test_packed_rows_reach_the_mixers_with_their_edges(store, tiny, tmp_path, monkeypatch):
    seen = []
    forward = Mamba.forward

    def watched(self, x, state, cu_seqlens):
        seen.append(cu_seqlens)
        return forward(self, x, state, cu_seqlens)

    config = tiny.override(["data.packing=true", "training.valid_windows=0"])
    rows = rows_of(config.override(["training.seed=3"]), store)
    monkeypatch.setattr(Mamba, "forward", watched)
    pretrain(config.override(["training.seed=3"]), store, tmp_path / "run", hardware=CPU)
    expected = [rows.batch(4 * step, 4 * step + 4).cu_seqlens.tolist() for step in range(8)]
    assert [edges.tolist() for edges in seen] == expected


@pytest.mark.parametrize("objective", ["next", "masked"])
def test_the_gradient_of_packed_rows_is_that_of_their_sequences(objective, store, tiny):
    """The weighted mean over targets, each sequence run by itself."""
    masked = ["objective.name=masked", "model.bidirectional=true"] if objective == "masked" else []
    config = tiny.override([*PACKED, *masked])
    learner = Learner(Fabric(accelerator="cpu", devices=1), config, tokenizer_of(config))
    model = learner.model.double()
    batch = rows_of(config, store).batch(0, 4)
    generator = torch.Generator().manual_seed(0)
    inputs, targets, weights = learner.objective.prepare(batch, generator)
    loss = token_loss(model(inputs, None, batch.cu_seqlens)[0], targets, weights)
    got = torch.autograd.grad(loss, list(model.parameters()))
    total, weight = torch.zeros(()), torch.zeros(())
    for start, stop in itertools.pairwise(batch.cu_seqlens.tolist()):
        part = slice(start, stop)
        counted = weights[:, part][targets[:, part] >= 0].sum()
        alone = token_loss(model(inputs[:, part])[0], targets[:, part], weights[:, part])
        total, weight = total + alone * counted, weight + counted
    want = torch.autograd.grad(total / weight, list(model.parameters()))
    torch.testing.assert_close(loss, total / weight)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("feed", ["intervals of byte pairs", "packed kmers"])
def test_a_run_takes_tokenizer_sampler_and_packing_from_its_settings(feed, store, tiny, tmp_path):
    config = tiny.override(settings_of(feed, store))
    run = load_run(pretrain(config, store, tmp_path / "run", hardware=CPU).path)
    tokenizer = tokenizer_of(config)
    assert run.tokenizer.to_json() == tokenizer.to_json()
    assert run.model.config.vocab_size == tokenizer.vocab_size
    assert run.config.data == config.data
    with (run.path / "metrics.csv").open(newline="") as file:
        tokens = int(list(csv.DictReader(file))[-1]["tokens"])
    assert tokens == 8 * 4 * LENGTH
    assert tokenizer.name in (run.path / "README.md").read_text() or "pairs" in feed


def test_soft_masked_weights_change_what_is_learnt_and_not_what_is_measured(store, tiny, tmp_path):
    runs = {
        weight: pretrain(
            tiny.override([f"data.soft_masked_weight={weight}", "training.lr=1e-30"]),
            store,
            tmp_path / weight,
            hardware=CPU,
        )
        for weight in ("1.0", "0.1")
    }
    rows = {}
    for weight, run in runs.items():
        with (run.path / "metrics.csv").open(newline="") as file:
            rows[weight] = list(csv.DictReader(file))
    train, valid = (
        {weight: [row[name] for row in found] for weight, found in rows.items()}
        for name in ("train_bits", "valid_bits")
    )
    assert train["1.0"] != train["0.1"], "the loss is weighted"
    assert valid["1.0"] == valid["0.1"], "bits per base are not"


# Breaks


@pytest.fixture
def halted(store, tiny, tmp_path, monkeypatch):
    """A run that broke down in step 5, in a folder of its own: config and run."""

    def of(settings: list[str]) -> tuple[RunConfig, object]:
        step = Learner.step

        def breaks(self, batch, *, number, rate):
            if number == 5:
                raise RuntimeError("power cut")
            return step(self, batch, number=number, rate=rate)

        config = tiny.override(settings)
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", breaks)
            with pytest.raises(RuntimeError, match="power cut"):
                pretrain(config, store, tmp_path / "run", hardware=CPU)
        return config, tmp_path / "run"

    return of


@pytest.mark.parametrize(
    "feed", ["annotated of bases", "tiled of overlapping kmers", "packed kmers"]
)
def test_a_broken_run_goes_on_to_the_same_weights(feed, store, halted, tmp_path):
    config, out = halted(settings_of(feed, store))
    resumed = pretrain(config.override(["data.workers=1"]), store, out, resume=True, hardware=CPU)
    assert resumed.digest == pretrain(config, store, tmp_path / "whole", hardware=CPU).digest


def test_a_file_of_the_sampler_that_changed_stops_the_resumption(store, halted, tmp_path):
    bed = tmp_path / "rows.bed"
    bed.write_text((store.path.parent / "rows.bed").read_text())
    config, out = halted(["data.sampler=intervals", f"data.sampler.options.bed={bed}"])
    bed.write_text("one\t0\t700\n")
    with pytest.raises(ArtifactError, match=r"rows\.bed has changed since the run"):
        pretrain(config, store, out, resume=True, hardware=CPU)


def test_a_run_resumes_from_another_working_directory(store, halted, tmp_path, monkeypatch):
    monkeypatch.chdir(store.path.parent)
    config, out = halted(["data.sampler=intervals", "data.sampler.options.bed=rows.bed"])
    stored = load_run(pretrain(config, store, out, resume=True, hardware=CPU).path).config
    assert stored.data.sampler.options == {"bed": str(store.path.parent / "rows.bed")}


# Mistakes


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["data.sampler=tiled", "data.sampler.options.setp=3"], ConfigError, "Did you mean 'step'"),
        (["data.sampler.options.length=3"], ConfigError, "no option 'length'"),
        (["data.sampler.options.max_n_fraction=few"], ConfigError, "cannot use its options"),
        (["data.sampler=intervals", "data.sampler.options.bed=no.bed"], ArtifactError, "no.bed"),
        (["data.tokenizer=kmer", "data.tokenizer.options.k=99"], ConfigError, "1 to 8, got 99"),
        (["data.tokenizer=kmer", "data.tokenizer.options.q=9"], ConfigError, "no option 'q'"),
        (["data.tokenizer=missing.json"], ArtifactError, "missing.json does not exist"),
        (["data.tokenizer=bpe"], ConfigError, "expected merges, got none"),
        (["data.packing.min_bases=5000"], ConfigError, "min_bases: expected 1 to length=48"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(
    settings, error, words, store, tiny, tmp_path
):
    with pytest.raises(error, match=words) as caught:
        pretrain(tiny.override(settings), store, tmp_path / "run", hardware=CPU)
    assert isinstance(caught.value, DnassmError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_byte_pairs_are_not_packed(store, tiny):
    tokenizer = BpeTokenizer(merges=MERGES)
    with pytest.raises(ConfigError, match="tokens of a fixed number of bases"):
        training_rows(tiny.override(["data.packing=true"]).data, tokenizer, store, seed=0)
