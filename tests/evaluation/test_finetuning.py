"""Fine-tuning: splits without leaks, a result anyone can check, errors that name the row."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
import torch

from dnassm.config import ModelConfig
from dnassm.data.leakage_copies import count_duplicates
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.errors import ArtifactError, ConfigError, LabelError
from dnassm.finetuning import Classifier, Examples, FinetuneOptions, finetune, load_task
from dnassm.finetuning.folds import hold_out, stratified_folds
from dnassm.finetuning.full import FullLearner, warmup_cosine
from dnassm.finetuning.result import thin
from dnassm.model import DNAModel
from dnassm.runs import load_run

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def reverse(sequence):
    return sequence[::-1].translate(COMPLEMENT)


def sequences(count, seed=0, length=30, letters="ACGT"):
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, k=length + rng.randrange(9))) for _ in range(count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    DNAModel(ModelConfig(d_model=16, pattern="m")).save_pretrained(folder)
    TOKENIZERS["single"]().save(folder / "tokenizer.json")
    return load_run(folder)


def write(path, rows, header="sequence,label"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def read_table(path, delimiter=","):
    return list(csv.DictReader(path.read_text().splitlines(), delimiter=delimiter))


def rows_of_two_classes(count, seed=0):
    """Sequences rich in GC against sequences rich in AT: easy for anything that counts."""
    half = count // 2
    rich = sequences(half, seed, letters="GGGCCCAT")
    poor = sequences(half, seed + 1, letters="AAATTTCG")
    rows = [(s, "gc") for s in rich] + [(s, "at") for s in poor]
    random.Random(seed).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def split_csv(tmp_path_factory):
    parts = ["train"] * 80 + ["dev"] * 20 + ["test"] * 40
    rows = [(*row, part) for row, part in zip(rows_of_two_classes(140), parts, strict=True)]
    path = tmp_path_factory.mktemp("data") / "gc.csv"
    return write(path, rows, header="sequence,label,split")


def test_copies_of_a_sequence_stay_in_one_fold():
    base = sequences(60)
    data = base + base[:10] + [reverse(s) for s in base[5:25]] + [s.lower() for s in base[:3]]
    labels = [i % 3 for i in range(len(data))]
    folds = stratified_folds(data, labels, 5, seed=1)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(data)))
    home = {}
    for number, fold in enumerate(folds):
        for i in fold:
            key = min(data[i].upper(), reverse(data[i].upper()))
            assert home.setdefault(key, number) == number


def test_every_fold_has_its_share_of_every_class():
    labels = [0] * 70 + [1] * 20 + [2] * 10
    for fold in stratified_folds(sequences(100), labels, 5, seed=0):
        assert np.bincount([labels[i] for i in fold]).tolist() == [14, 4, 2]


def test_folds_follow_from_the_seed():
    data, labels = sequences(40), [0, 1] * 20
    first, again, other = (
        [fold.tolist() for fold in stratified_folds(data, labels, 4, seed=s)] for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_leave_one_out_is_as_many_folds_as_sequences():
    folds = stratified_folds(sequences(12), [0, 1] * 6, 12, seed=0)
    assert [len(fold) for fold in folds] == [1] * 12
    with pytest.raises(LabelError, match="2 to 12"):
        stratified_folds(sequences(12), [0, 1] * 6, 13, seed=0)


def test_a_held_out_part_never_takes_the_last_sequence_of_a_class():
    labels = [0] * 30 + [1]
    kept, held = hold_out(sequences(31), labels, share=0.1, seed=0)
    assert sorted([*kept, *held]) == list(range(31))
    assert 30 in kept
    assert 2 <= len(held) <= 4


def test_duplicates_are_counted_by_strand():
    base = sequences(5)
    data = [*base, base[0], base[1].lower(), reverse(base[2])]
    assert count_duplicates(data).to_json() == {"exact": 2, "reverse_complement": 1}
    test = [base[0], reverse(base[1]), sequences(1, seed=9)[0]]
    assert count_duplicates(test, among=base).to_json() == {"exact": 1, "reverse_complement": 1}


def test_an_official_split_is_used_as_it_is(split_csv):
    task = load_task(split_csv)
    assert (len(task.train), len(task.dev), len(task.test)) == (80, 20, 40)
    assert task.classes == ("at", "gc")
    again = load_task(split_csv, test_split="dev")
    assert (len(again.test), again.dev) == (20, None)


def test_a_folder_of_tables_is_a_task(tmp_path):
    for part, count in (("train", 20), ("dev", 6), ("test", 8)):
        write(tmp_path / f"{part}.csv", rows_of_two_classes(count))
    task = load_task(tmp_path)
    assert (len(task.train), len(task.dev), len(task.test)) == (20, 6, 8)
    assert len(task.files) == 3


@pytest.fixture(scope="module")
def probe(run, split_csv, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "probe"
    options = FinetuneOptions(scratch=True)
    return out, finetune(run, split_csv, out, options=options)


def test_the_result_has_every_model_on_the_whole_test_set(probe):
    out, result = probe
    content = json.loads((out / "result.json").read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert (content["n_train"], content["n_test"], content["folds"]) == (80, 40, None)
    names = ["probe", "probe, random weights", "k-mer logistic regression", "majority class"]
    assert [model["name"] for model in content["models"]] == names
    for model in content["models"]:
        assert sum(map(sum, model["confusion"])) == 40
        metrics = {metric["name"]: metric for metric in model["metrics"]}
        assert set(metrics) == {"accuracy", "macro_f1", "mcc", "auroc", "auprc"}
        hits = sum(row[i] for i, row in enumerate(model["confusion"]))
        assert metrics["accuracy"]["value"] == pytest.approx(hits / 40)
        assert len(model["roc"]["fpr"]) == len(model["roc"]["tpr"])
        assert len(model["pr"]["recall"]) == len(model["pr"]["precision"])
    assert content["models"][0]["metrics"][3]["value"] > 0.95
    assert content["models"][3]["metrics"][3]["value"] == 0.5


def test_the_stored_classifier_repeats_its_predictions(probe, split_csv):
    out, result = probe
    task = load_task(split_csv)
    classifier = Classifier.load(out)
    again = classifier.predict_proba(task.test.sequences)
    np.testing.assert_allclose(again, result.models[0].probabilities, rtol=1e-3, atol=1e-5)
    rows = read_table(out / "predictions.tsv", "\t")
    assert [float(row["p(gc)"]) for row in rows] == pytest.approx(again[:, 1], abs=1e-4)
    assert [row["label"] for row in rows] == [task.classes[label] for label in task.test.labels]


def test_the_run_folder_is_a_run(probe):
    out, _ = probe
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("model.safetensors", "head.safetensors", "config.json", "tokenizer.json", "run.json"),
        *("metrics.csv", "result.json", "predictions.tsv", "README.md", "leakage.json"),
    }
    leakage = json.loads((out / "leakage.json").read_text())["between"]
    pairs = [("valid", "train"), ("test", "train"), ("test", "valid")]
    assert [(each["part"], each["against"]) for each in leakage] == pairs
    record = json.loads((out / "run.json").read_text())
    assert record["command"] == "finetune"
    assert record["config"]["mode"] == "probe"
    assert "| k-mer logistic regression |" in (out / "README.md").read_text()
    load_run(out)


def test_full_fine_tuning_follows_from_the_seed_and_leaves_the_rest_alone(run, split_csv, tmp_path):
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    options = FinetuneOptions(mode="full", epochs=2, lr=5e-3, seed=3)
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    results = [
        finetune(run, split_csv, tmp_path / name, options=options).models[0] for name in ("a", "b")
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(results[0].probabilities, results[1].probabilities)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name])
    tuned = load_run(tmp_path / "a").model.state_dict()
    assert not torch.equal(tuned["embedding.weight"], before["embedding.weight"])
    task = load_task(split_csv)
    again = Classifier.load(tmp_path / "a").predict_proba(task.test.sequences)
    np.testing.assert_allclose(again, results[0].probabilities, rtol=1e-4, atol=1e-6)
    history = read_table(tmp_path / "a" / "metrics.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert float(history[1]["train_loss"]) < float(history[0]["train_loss"])


def test_the_weights_of_the_best_epoch_are_kept_and_training_stops_early(run, monkeypatch):
    seen = []

    def score(classifier, dev):
        seen.append({name: w.clone() for name, w in classifier.model.state_dict().items()})
        return 1.0, [0.1, 0.9, 0.8, 0.7, 0.6][len(seen) - 1]

    monkeypatch.setattr("dnassm.finetuning.full._score", score)
    options = FinetuneOptions(mode="full", epochs=5, patience=2, batch_size=4)
    learner = FullLearner("full", run.model, run.tokenizer, ("a", "b"), options)
    data = Examples(tuple(sequences(8)), (0, 1) * 4, ("",) * 8)
    fitted = learner.fit(data, data)
    assert len(seen) == 4
    for name, weight in fitted.classifier.model.state_dict().items():
        assert torch.equal(weight, seen[1][name])
    assert not torch.equal(seen[1]["embedding.weight"], seen[3]["embedding.weight"])


def test_full_fine_tuning_learns(run, split_csv, tmp_path):
    options = FinetuneOptions(mode="full", epochs=8, lr=5e-3, scratch=True)
    result = finetune(run, split_csv, tmp_path / "full", options=options)
    assert [model.name for model in result.models[:2]] == ["full", "full, random weights"]
    assert result.models[0].metrics["auroc"].value > 0.95
    assert result.models[1].metrics["auroc"].value > 0.95


def test_both_strands_give_one_answer(run, split_csv, tmp_path):
    options = FinetuneOptions(mode="full", epochs=1, strand="both")
    finetune(run, split_csv, tmp_path / "both", options=options)
    classifier = Classifier.load(tmp_path / "both")
    data = sequences(6)
    np.testing.assert_allclose(
        classifier.predict_proba(data),
        classifier.predict_proba([reverse(s) for s in data]),
        rtol=1e-4,
    )


def test_without_parts_every_sequence_is_tested_once_by_cross_validation(run, tmp_path):
    rows = rows_of_two_classes(40)
    rows.append((reverse(rows[0][0]), rows[0][1]))
    path = write(tmp_path / "x.csv", rows)
    result = finetune(run, path, tmp_path / "cv", options=FinetuneOptions(folds=4))
    assert (result.folds, result.n_test, result.n_train) == (4, 41, 41)
    assert result.duplicates.to_json() == {"exact": 0, "reverse_complement": 1}
    folds = [row["fold"] for row in read_table(tmp_path / "cv" / "predictions.tsv", "\t")]
    assert set(folds) == {"1", "2", "3", "4"}
    assert folds[0] == folds[40]
    leakage = json.loads((tmp_path / "cv" / "leakage.json").read_text())
    assert [each["part"] for each in leakage["between"]] == [f"fold {i}" for i in (1, 2, 3, 4)]
    assert sum(each["exact"] + each["reverse_complement"] for each in leakage["between"]) == 0
    assert Classifier.load(tmp_path / "cv").classes == ("at", "gc")


def test_three_classes_have_no_curves_but_every_metric(run, tmp_path):
    rows = rows_of_two_classes(30) + [(s, "n") for s in sequences(15, seed=7)]
    path = write(tmp_path / "x.csv", rows)
    result = finetune(run, path, tmp_path / "out", options=FinetuneOptions(folds=3))
    model = result.to_json()["models"][0]
    assert model["roc"] is None
    assert len(model["confusion"]) == 3
    assert all(metric["value"] is not None for metric in model["metrics"])


def test_random_labels_cannot_be_learnt(run, tmp_path):
    """Cross-validation on random labels stays near chance: nothing of the held-out labels leaks."""
    rng = random.Random(5)
    rows = [(s, rng.choice("xy")) for s in sequences(120, seed=3)]
    path = write(tmp_path / "x.csv", rows)
    result = finetune(run, path, tmp_path / "out")
    assert 0.3 < result.models[0].metrics["auroc"].value < 0.7


@pytest.mark.parametrize("mode", ["probe", "full"])
def test_a_tiny_table_is_enough(run, tmp_path, mode):
    rows = rows_of_two_classes(6)
    path = write(tmp_path / "x.csv", rows)
    options = FinetuneOptions(mode=mode, folds=2, epochs=1)
    assert finetune(run, path, tmp_path / "out", options=options).n_test == 6


def test_an_unseen_label_is_named_with_file_and_line(tmp_path):
    rows = [(*row, "train") for row in rows_of_two_classes(10)]
    rows.append((sequences(1, seed=8)[0], "gcc", "test"))
    path = write(tmp_path / "x.csv", rows, header="sequence,label,split")
    with pytest.raises(LabelError, match=r"x\.csv:12: label 'gcc' .*'at', 'gc'"):
        load_task(path)


def test_an_unseen_label_in_a_folder_is_named_with_its_file(tmp_path):
    write(tmp_path / "train.csv", rows_of_two_classes(10))
    write(tmp_path / "test.csv", [*rows_of_two_classes(2), (sequences(1)[0], "odd")])
    with pytest.raises(LabelError, match=r"test\.csv:4: label 'odd'"):
        load_task(tmp_path)


@pytest.mark.parametrize(
    ("rows", "header", "error", "words"),
    [
        ([("ACGT", "a"), ("ACCT", "a")], "sequence,label", LabelError, "at least 2 classes"),
        ([("ACGT", "a", "x")], "sequence,label,split", ConfigError, "a part 'train'.*got x"),
        (
            [("ACGT", "a", "train"), ("ACCT", "b", "dev")],
            "sequence,label,split",
            ConfigError,
            "--test-split",
        ),
    ],
)
def test_data_that_cannot_be_learnt_are_refused(tmp_path, rows, header, error, words):
    with pytest.raises(error, match=words):
        load_task(write(tmp_path / "x.csv", rows, header))


def test_cross_validation_needs_two_different_sequences_of_a_class(run, tmp_path):
    rows = rows_of_two_classes(10)
    lonely = sequences(1, seed=4)[0]
    path = write(tmp_path / "x.csv", [*rows, (lonely, "rare"), (reverse(lonely), "rare")])
    with pytest.raises(LabelError, match="class 'rare' has one sequence"):
        finetune(run, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folds_and_a_test_set_contradict_each_other(run, split_csv, tmp_path):
    with pytest.raises(ConfigError, match="--folds is for data without one"):
        finetune(run, split_csv, tmp_path / "out", options=FinetuneOptions(folds=3))


def test_a_run_is_not_replaced_without_force(run, split_csv, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ArtifactError, match="--force"):
        finetune(run, split_csv, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


@pytest.mark.parametrize(
    ("option", "words"),
    [({"mode": "lora"}, "'probe' or 'full'"), ({"lr": 0.0}, "above 0"), ({"epochs": 0}, "epochs")],
)
def test_a_wrong_option_is_named(option, words):
    with pytest.raises(ConfigError, match=words):
        FinetuneOptions(**option)


def test_the_rate_rises_then_falls_to_nothing():
    rates = [warmup_cosine(x) for x in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) == 10
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert min(rates[:100]) > 0


def test_a_thinned_curve_keeps_its_ends():
    curve = thin([float(i) for i in range(10_000)])
    assert len(curve) == 500
    assert (curve[0], curve[-1]) == (0.0, 9999.0)
