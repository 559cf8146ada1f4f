"""Artifacts that are hostile, empty, broken or far too large."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dnassm.errors import ArtifactError, FormatError
from dnassm.report import build_report

EVIL = '<script>alert("1")</script>'


def page(tmp_path: Path, *paths: Path) -> str:
    return build_report(paths, tmp_path / "report.html", force=True).read_text()


def test_names_from_files_never_become_markup(write, tmp_path):
    names = {
        EVIL: 90_000,
        "$x_{1}^2$": 50_000,
        'id="a" #1d2024 url(#x)': 40_000,
        "鳥\x07🧬": 30_000,
    }
    store = write.store(tmp_path / EVIL.replace("/", ""), names)
    run = write.classification(tmp_path / "classifier")
    result = json.loads((run / "result.json").read_text())
    result |= {"classes": [EVIL, "</script><b>"], "task": EVIL}
    result["models"][0]["name"] = "<img src=x onerror=alert(1)>"
    write.json(run / "result.json", result)
    variants = write.variants(tmp_path / "variants", effects=(EVIL, "</svg>"))
    text = page(tmp_path, store, run, variants)
    for raw in ("<script>alert", "<img", "</script><b>", "</svg></"):
        assert raw not in text
    assert "$x_{1}^2$" in text
    assert 'id="a" #1d2024 url(#x)' in text or "id=&#34;a&#34; #1d2024 url(#x)" in text
    assert text.count("</script>") == text.count('<script type="application/json"')


def test_of_200_contigs_twenty_are_drawn_and_all_are_in_the_json(write, tmp_path):
    contigs = {f"scaffold_{number}": 400_000 - 1500 * number for number in range(200)}
    text = page(tmp_path, write.store(tmp_path / "genome", contigs))
    assert "180 more contigs" in text
    assert "180 more are not drawn" in text
    assert text.count("scaffold_19<") > text.count("scaffold_20<") == 0
    assert '"scaffold_199"' in text


def test_a_million_blocks_do_not_make_a_large_page(write, tmp_path):
    train = [["chr1", start, start + 900] for start in range(0, 20_000_000, 1000)]
    splits = {"rule": "blocks", "gap": 50, "train": train, "valid": [], "test": []}
    text = page(tmp_path, write.store(tmp_path / "genome", {"chr1": 20_000_000}, splits))
    assert "finer than the picture" in text
    assert len(text) < 200_000


def test_a_store_without_contigs_and_one_of_only_n_are_shown(write, tmp_path):
    empty = write.store(tmp_path / "empty", {})
    nothing = write.store(tmp_path / "nothing", {"chr1": 1000})
    header = json.loads((nothing / "store.json").read_text())
    counts = dict.fromkeys("ACGT", 0) | {"N": 1000, "iupac": 0, "soft_masked": 0}
    header["contigs"][0]["counts"] = counts
    write.json(nothing / "store.json", header)
    text = page(tmp_path, empty, nothing)
    assert "holds no contig" in text
    assert "100\u00a0% are unknown (N)" in text
    assert "nan" not in text.lower().replace("dominan", "")


def test_a_run_without_any_measured_step_says_so(write, tmp_path):
    run = write.pretraining(tmp_path / "run", bits=None)
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for content in ("", header + "\n"):
        (run / "metrics.csv").write_text(content)
        text = page(tmp_path, run)
        assert "no loss curve to show" in text
        assert "not been measured" in text


def test_cells_that_are_empty_nan_or_cut_are_skipped(write, tmp_path):
    run = write.pretraining(tmp_path / "run", bits=None)
    lines = (run / "metrics.csv").read_text().splitlines()
    lines[5:8] = ["60,491520,1.2,nan,,1e-3,", "70,573440,1.4,inf,inf,,", "80,655360,1.6,2.0"]
    (run / "metrics.csv").write_text("\n".join([*lines, "2010,16465"]))
    text = page(tmp_path, run)
    assert "bits per base on held-out sequence; 2 bits is a coin" in text
    assert "nan" not in text.split("<main>")[0]


def test_a_metrics_file_with_other_columns_is_refused(write, tmp_path):
    run = write.pretraining(tmp_path / "run")
    (run / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(
        FormatError, match=r"metrics\.csv: expected the columns step.*got epoch, loss"
    ):
        page(tmp_path, run)


def test_a_safetensors_file_that_is_cut_is_refused(write, tmp_path):
    run = write.pretraining(tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"\x07")
    with pytest.raises(FormatError, match="safetensors header"):
        page(tmp_path, run)


def test_a_class_that_is_missing_from_the_test_set_leaves_dashes(write, tmp_path):
    run = write.classification(tmp_path / "classifier")
    result = json.loads((run / "result.json").read_text())
    for model in result["models"]:
        model["confusion"] = [[480, 0], [0, 0]]
        model["roc"] = model["pr"] = None
        for metric in model["metrics"]:
            if metric["name"] in ("auroc", "auprc"):
                metric |= {"value": None, "low": None, "high": None, "reason": "one class"}
    write.json(run / "result.json", result)
    text = page(tmp_path, run)
    assert "ROC curve" not in text
    assert "reaches MCC" in text
    assert "\u2013" in text


def test_twelve_classes_have_a_matrix_and_no_curves(write, tmp_path):
    run = write.classification(tmp_path / "classifier")
    result = json.loads((run / "result.json").read_text())
    result["classes"] = [f"family {number}" for number in range(12)]
    for model in result["models"]:
        model |= {"roc": None, "pr": None, "confusion": np.eye(12, dtype=int).tolist()}
    write.json(run / "result.json", result)
    text = page(tmp_path, run)
    assert "family 11" in text
    assert "ROC curve" not in text


@pytest.mark.parametrize("windows", [1, 2, 3, 40])
def test_few_windows_without_labels_are_shown_or_explained(write, tmp_path, windows):
    path = write.embeddings(tmp_path / "few.npy", windows=windows)
    text = page(tmp_path, path)
    assert ("needs three windows" in text) == (windows < 3)
    assert ("coloured by position" in text) == (windows >= 3)


def test_embeddings_that_are_all_equal_are_explained(write, tmp_path):
    path = write.embeddings(tmp_path / "same.npy", windows=10, labels=("a", "b"))
    np.save(path, np.ones((10, 8), dtype=np.float32))
    assert "three windows that differ" in page(tmp_path, path)


def test_vectors_with_nan_are_left_out_and_counted(write, tmp_path):
    path = write.embeddings(tmp_path / "nan.npy", windows=50, labels=("a", "b"))
    values = np.load(path)
    values[3, 2] = np.nan
    np.save(path, values)
    assert "1\u00a0vector with NaN or infinity left out" in page(tmp_path, path)


def test_ten_labels_share_eight_colours_and_six_thousand_windows_are_thinned(write, tmp_path):
    labels = tuple(f"label {number}" for number in range(10))
    path = write.embeddings(tmp_path / "many.npy", windows=6000, labels=labels)
    text = page(tmp_path, path)
    assert "others (" in text
    assert "shows 5,000 of them" in text
    assert len(text) < 1_000_000


def test_broken_embeddings_are_refused_with_their_name(write, tmp_path):
    path = write.embeddings(tmp_path / "x.npy", windows=5)
    np.save(path, np.zeros((4, 3), dtype=np.float32))
    with pytest.raises(FormatError, match=r"x\.bed: 5 lines beside 4 vectors"):
        page(tmp_path, path)
    np.save(path, np.zeros((5, 4, 3), dtype=np.float32))
    with pytest.raises(FormatError, match="shape"):
        page(tmp_path, path)
    np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"x\.npy: expected an array"):
        page(tmp_path, path)


def test_variants_without_effects_or_scores_are_shown(write, tmp_path):
    plain = write.variants(tmp_path / "plain", effects=())
    text = page(tmp_path, plain)
    assert "No variant has a known effect" in text
    record = json.loads((plain / "variants.json").read_text())
    record["variants"][0]["score"] = None
    write.json(plain / "variants.json", record)
    assert "1\u00a0variant without a score left out" in page(tmp_path, plain)
    write.json(plain / "variants.json", {"variants": [], "score_name": "llr"})
    assert "No variant was scored" in page(tmp_path, plain)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("store.json", "{}", "'contigs'"),
        ("store.json", "[1]", "JSON object"),
        ("store.json", '{"contigs": [3]}', "'counts'"),
        ("store.json", "{", "expected JSON"),
        ("result.json", '{"classes": ["a"], "models": [{}]}', "'name'"),
        ("result.json", '{"classes": "ab", "models": []}', "'classes' to be list, got 'ab'"),
        ("variants.json", '{"variants": [{"contig": "c", "position": "x"}]}', "'position'"),
    ],
)
def test_a_broken_artifact_is_one_line_that_names_file_and_field(tmp_path, name, content, words):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(content)
    with pytest.raises((FormatError, ArtifactError)) as caught:
        page(tmp_path, tmp_path / "a")
    assert name in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()
