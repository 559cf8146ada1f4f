"""One run in one process: what it learns, what it leaves, what it refuses."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dnassm.data.store import build_store
from dnassm.errors import ArtifactError, ConfigError, DnassmError, GenomeError, MissingExtraError
from dnassm.runs import load_run
from dnassm.training import checkpoint
from dnassm.training.checkpoint import checkpoints
from dnassm.training.hardware import Hardware
from dnassm.training.learner import Learner
from dnassm.training.pretrain import pretrain

CPU = Hardware(accelerator="cpu")


@pytest.fixture(scope="module")
def finished(store, tiny, tmp_path_factory):
    return pretrain(tiny, store, tmp_path_factory.mktemp("finished") / "run", hardware=CPU)


@pytest.fixture
def halted(store, tiny, tmp_path, monkeypatch):
    """A run that broke down in step 14: checkpoints of steps 6 and 12."""
    step = Learner.step

    def breaks(self, tokens, *, number, rate):
        if number == 14:
            raise RuntimeError("power cut")
        return step(self, tokens, number=number, rate=rate)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", breaks)
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(tiny, store, tmp_path / "run", hardware=CPU)
    return tmp_path / "run"


def resume(out, store, config, **options):
    return pretrain(config, store, out, resume=True, hardware=CPU, **options)


def rows(run) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def one_line(error: BaseException) -> str:
    assert isinstance(error, DnassmError)
    text = str(error)
    assert "\n" not in text
    return text


def test_a_small_mamba_learns_a_repetitive_genome(tiny, tmp_path):
    rng = np.random.default_rng(0)
    unit = rng.choice(list("ACGT"), 12)
    bases = np.tile(unit, 500)
    noisy = rng.random(bases.size) < 0.02
    bases[noisy] = rng.choice(list("ACGT"), noisy.sum())
    (tmp_path / "g.fa").write_text(">a\n" + "".join(bases) + "\n")
    store = build_store([tmp_path / "g.fa"], tmp_path / "store", split="halves")
    config = tiny.override(
        [
            "model.dropout=0",
            "data.rc_probability=0",
            "training.max_steps=150",
            "training.valid_every=150",
            "training.checkpoint_every=150",
            "training.lr=1e-2",
            "training.batch_size=4",
        ]
    )
    run = pretrain(config, store, tmp_path / "run", hardware=CPU)
    shares = np.unique(bases, return_counts=True)[1] / bases.size
    order_0 = float(-(shares * np.log2(shares)).sum())
    last = rows(run.path)[-1]
    assert order_0 > 1.7
    assert float(last["valid_bits"]) < 0.6 * order_0


def test_a_run_leaves_its_whole_folder(finished, store, tiny):
    names = {path.name for path in finished.path.iterdir()}
    expected = {"model.safetensors", "config.json", "tokenizer.json", "README.md", "run.json"}
    assert names == expected | {"metrics.csv", "checkpoints"}
    loaded = load_run(finished.path)
    assert loaded.digest == finished.digest
    assert loaded.config == tiny
    assert not loaded.model.training
    assert [path.name for path in checkpoints(finished.path / "checkpoints")] == [
        "step-00000012",
        "step-00000018",
        "step-00000024",
    ]


def test_run_json_says_where_the_model_came_from(finished, store, tiny):
    record = json.loads((finished.path / "run.json").read_text())
    assert record["command"] == "pretrain"
    assert record["inputs"] == {str(store.path): store.digest}
    assert record["seed"] == tiny.training.seed
    assert record["config"] == {**tiny.model_dump(mode="json"), "minutes": None}
    assert {"argv", "versions", "device", "created"} <= set(record)
    assert record["versions"]["torch"]


def test_the_model_card_says_what_it_is_and_how_to_load_it(finished, store):
    card = (finished.path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: dnassm\n")
    for fact in (
        f"{finished.model.parameter_count():,} parameters",
        "2 contigs, 8,500 bases",
        store.digest[:16],
        "3,072 tokens in 24 steps",
        'DNAModel.from_pretrained("run")',
    ):
        assert fact in card


def test_metrics_rows_are_whole_and_in_order(finished):
    found = rows(finished.path)
    assert [int(row["step"]) for row in found] == [4, 8, 12, 16, 20, 24]
    assert [int(row["tokens"]) for row in found] == [128 * int(row["step"]) for row in found]
    assert [row["valid_bits"] != "" for row in found] == [False, True] * 3
    seconds = [float(row["seconds"]) for row in found]
    assert seconds == sorted(seconds)
    assert all(float(row["tokens_per_s"]) > 0 for row in found)


def test_a_finished_run_is_resumed_by_saying_so(finished, store, tiny, capsys):
    before = (finished.path / "model.safetensors").stat().st_mtime_ns
    assert resume(finished.path, store, tiny).digest == finished.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err
    assert (finished.path / "model.safetensors").stat().st_mtime_ns == before


def test_resuming_with_another_setting_names_it(halted, store, tiny):
    changed = tiny.override(["training.max_steps=30", "model.dropout=0.2", "data.workers=1"])
    with pytest.raises(ConfigError) as caught:
        resume(halted, store, changed)
    text = one_line(caught.value)
    assert "training.max_steps=24, asked for 30" in text
    assert "model.dropout=0.1, asked for 0.2" in text
    assert "workers" not in text
    with pytest.raises(ConfigError, match=r"minutes=None, asked for 5"):
        resume(halted, store, tiny, minutes=5)


def test_resuming_on_another_genome_is_refused(halted, tiny, tmp_path):
    (tmp_path / "g.fa").write_text(">a\n" + "ACGT" * 300 + "\n")
    other = build_store([tmp_path / "g.fa"], tmp_path / "other")
    with pytest.raises(ArtifactError, match="was trained on another genome"):
        resume(halted, other, tiny)


def test_resuming_what_is_no_run_is_refused(store, tiny, tmp_path):
    with pytest.raises(ArtifactError, match="holds no run to resume"):
        resume(tmp_path / "nothing", store, tiny)


@pytest.mark.parametrize("content", ["", "[]", '{"inputs": []}', "{"])
def test_a_damaged_run_json_is_named(halted, store, tiny, content):
    (halted / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"run\.json: expected"):
        resume(halted, store, tiny)


def test_a_run_of_before_goes_on(halted, store, tiny, finished):
    """A checkpoint and a run.json as the first version wrote them."""
    progress = halted / "checkpoints" / "step-00000012" / "progress.json"
    values = json.loads(progress.read_text())
    del values["losses"]
    progress.write_text(json.dumps(values))
    record = json.loads((halted / "run.json").read_text())
    del record["config"]["minutes"]
    (halted / "run.json").write_text(json.dumps(record))
    assert resume(halted, store, tiny).digest == finished.digest


def _cut(path, name, size):
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:size])


def _rewrite(path, name, change):
    tensors = load_file(path / name)
    change(tensors)
    save_file(tensors, path / name)


def _rename(tensors):
    tensors["exp_avg/other"] = tensors.pop("exp_avg/embedding.weight")


def _reshape(tensors):
    tensors["exp_avg/norm.weight"] = torch.zeros(3)


def _progress(**changes):
    def change(path):
        file = path / "progress.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


DAMAGE = {
    "weights cut": lambda path: _cut(path, "model.safetensors", 100),
    "weights empty": lambda path: _cut(path, "model.safetensors", 0),
    "weights gone": lambda path: (path / "model.safetensors").unlink(),
    "weights of another model": lambda path: _rewrite(path, "model.safetensors", dict.popitem),
    "pickle": lambda path: (path / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n" * 9),
    "moments cut": lambda path: _cut(path, "optimizer.safetensors", 500),
    "moments renamed": lambda path: _rewrite(path, "optimizer.safetensors", _rename),
    "moments of another shape": lambda path: _rewrite(path, "optimizer.safetensors", _reshape),
    "progress is text": lambda path: (path / "progress.json").write_text("step 12"),
    "progress is a list": lambda path: (path / "progress.json").write_text("[12]"),
    "step is text": _progress(step="12"),
    "step is of another": _progress(step=13),
    "step is true": _progress(step=True),
    "tokens are negative": _progress(tokens=-1),
    "seconds are null": _progress(seconds=None),
    "losses are text": _progress(losses=["x"]),
    "losses are a number": _progress(losses=3),
    "one word too many": _progress(hostile=1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_says_what_to_do(halted, store, tiny, damage):
    newest = halted / "checkpoints" / "step-00000012"
    damage(newest)
    with pytest.raises(ArtifactError) as caught:
        resume(halted, store, tiny)
    text = one_line(caught.value)
    assert str(newest) in text
    assert "delete this folder to go on from the one before" in text


def test_the_one_before_gives_the_same_model(halted, store, tiny, finished):
    for path in (halted / "checkpoints" / "step-00000012").iterdir():
        path.unlink()
    assert resume(halted, store, tiny).digest == finished.digest


@pytest.mark.parametrize("part", ["1", "12,1536,0.5,2.0,2.0,1.0e-03,12"])
def test_a_row_cut_short_is_dropped(halted, store, tiny, part):
    with (halted / "metrics.csv").open("a") as file:
        file.write(part)
    resume(halted, store, tiny)
    steps = [row["step"] for row in rows(halted)]
    assert steps == ["4", "8", "12", "16", "20", "24"]


def test_a_full_disk_reported_by_safetensors_is_one_line(store, tiny, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ArtifactError) as caught:
        pretrain(tiny, store, tmp_path / "run", hardware=CPU)
    assert "No space left on device" in one_line(caught.value)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    store, tiny, tmp_path, monkeypatch
):
    step = Learner.step

    def diverges(self, tokens, *, number, rate):
        loss = step(self, tokens, number=number, rate=rate)
        return loss * float("nan") if number == 9 else loss

    monkeypatch.setattr(Learner, "step", diverges)
    with pytest.raises(ConfigError, match=r"not finite at or before step 12; lower training\.lr"):
        pretrain(tiny, store, tmp_path / "run", hardware=CPU)
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000006"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_never_replaced(store, tiny, tmp_path, force):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Other"]}')
    (model / "model.safetensors").write_text("precious")
    with pytest.raises(ArtifactError, match="not a run of this dnassm"):
        pretrain(tiny, store, model, force=force, hardware=CPU)
    assert (model / "model.safetensors").read_text() == "precious"
    with pytest.raises(ArtifactError, match="is a file"):
        pretrain(tiny, store, model / "config.json", force=force, hardware=CPU)


def test_a_run_is_replaced_only_by_force_and_its_neighbours_stay(halted, store, tiny, finished):
    with pytest.raises(ArtifactError, match="unfinished run; go on with --resume"):
        pretrain(tiny, store, halted, hardware=CPU)
    (halted / "notes.txt").write_text("mine")
    assert pretrain(tiny, store, halted, force=True, hardware=CPU).digest == finished.digest
    assert (halted / "notes.txt").read_text() == "mine"
    with pytest.raises(ArtifactError, match="finished run; pass --force"):
        pretrain(tiny, store, halted, hardware=CPU)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (["model.bidirectional=true"], ConfigError, "next needs a causal model"),
        (["data.sampler=unifrom"], DnassmError, "Did you mean 'uniform'"),
        (["data.tokenizer=singel"], DnassmError, "Did you mean 'single'"),
        (["data.length=100000"], GenomeError, "100000"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(store, tiny, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        pretrain(tiny.override(settings), store, tmp_path / "run", hardware=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (Hardware(devices=0), "--devices: expected auto or a number of at least 1, got 0"),
        (Hardware(devices="many"), "--devices: expected auto"),
        (Hardware(strategy="fsdp"), "--strategy: expected auto or ddp, got 'fsdp'"),
        (Hardware(accelerator="gpux"), "cannot start"),
    ],
)
def test_hardware_that_is_not_there_is_one_line(store, tiny, tmp_path, hardware, words):
    with pytest.raises(ConfigError) as caught:
        pretrain(tiny, store, tmp_path / "run", hardware=hardware)
    assert words in one_line(caught.value)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_must_be_a_number_above_zero(store, tiny, tmp_path, minutes):
    with pytest.raises(ConfigError, match="minutes: expected a number above 0"):
        pretrain(tiny, store, tmp_path / "run", hardware=CPU, minutes=minutes)


def test_minutes_end_the_run_and_the_display_follows_the_clock(store, tiny, tmp_path, capsys):
    config = tiny.override(["training.max_steps=1000000", "training.checkpoint_every=1000000"])
    run = pretrain(config, store, tmp_path / "run", hardware=CPU, minutes=0.01)
    found = rows(run.path)
    assert 0.6 <= float(found[-1]["seconds"]) < 60
    assert int(found[-1]["step"]) < 1_000_000
    assert float(found[-1]["lr"]) < 0.2 * max(float(row["lr"]) for row in found)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "pretrain " in said
    assert "bits/base" in said
    done, total = said.split()[1].split("/")
    assert float(done) >= 0.95 * float(total.removesuffix("k")), "at its end it is at 100 %"
    assert json.loads((run.path / "run.json").read_text())["config"]["minutes"] == 0.01


def test_a_causal_model_with_the_masked_objective_is_warned_of(store, tiny, tmp_path, capsys):
    config = tiny.override(["objective.name=masked", "training.max_steps=1"])
    pretrain(config, store, tmp_path / "run", hardware=CPU)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "sees only the left one" in warnings[0]


def test_tensorboard_gets_the_rows_of_the_metrics(store, tiny, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    run = pretrain(tiny, store, tmp_path / "run", hardware=CPU, tensorboard=True)
    events = accumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = rows(run.path)
    assert [e.step for e in events.Scalars("train_bits")] == [int(row["step"]) for row in found]
    assert [e.value for e in events.Scalars("train_bits")] == pytest.approx(
        [float(row["train_bits"]) for row in found]
    )
    assert [e.step for e in events.Scalars("valid_bits")] == [8, 16, 24]


def test_without_tensorboard_the_extra_is_named_before_anything_is_written(
    store, tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dnassm\[log\]'"):
        pretrain(tiny, store, tmp_path / "run", hardware=CPU, tensorboard=True)
    assert not (tmp_path / "run").exists()
