"""The sentences: derived from the numbers, and honest about who wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnassm.data.leakage import leakage_of_sequences
from dnassm.errors import FormatError
from dnassm.report import formats
from dnassm.report.build import read_sections


def says(path: Path) -> str:
    (section,) = read_sections([path])
    return " ".join(section.says)


def test_a_model_that_beats_markov_is_said_to_win(write, tmp_path):
    text = says(write.pretraining(tmp_path / "run", bits=1.8931))
    assert "The model needs 1.893 bits per base" in text
    assert "the best Markov model (orders 0-11 interpolated) needs 1.934" in text
    assert "2 bits is a coin with four sides. The model wins by 0.041." in text


def test_a_model_that_loses_to_markov_is_said_to_lose(write, tmp_path):
    assert "The Markov model wins by 0.026" in says(write.pretraining(tmp_path / "run", bits=1.96))


def test_a_small_lead_is_written_with_the_digits_that_show_it(write, tmp_path):
    text = says(write.pretraining(tmp_path / "run", bits=1.9341))
    assert "needs 1.9341 bits" in text
    assert "needs 1.9342" in text


def test_overfitting_is_named(write, tmp_path):
    text = says(write.pretraining(tmp_path / "run", overfit=0.12))
    assert "began to learn the training sequence by heart" in text
    assert "by heart" not in says(write.pretraining(tmp_path / "fine"))


def test_without_an_evaluation_the_last_held_out_loss_is_told(write, tmp_path):
    text = says(write.pretraining(tmp_path / "run", bits=None))
    assert "No Markov model was measured" in text


def test_a_mixture_of_orders_is_no_point_of_the_curve_over_orders(write, tmp_path):
    run = write.pretraining(tmp_path / "run")
    write.json(run / "evaluation.json", write.evaluation(1.9))
    (section,) = read_sections([run])
    orders = next(block for block in section.blocks if block.name == "orders")
    assert "best at order 8 with 1.935" in orders.alt


def test_a_kmer_model_that_wins_is_said_to_win(write, tmp_path):
    text = says(write.classification(tmp_path / "c", ours=0.6, theirs=2.4))
    assert "The k-mer logistic regression wins, and the 95\u00a0% intervals do not overlap." in text


def test_a_lead_within_the_intervals_is_called_chance(write, tmp_path):
    text = says(write.classification(tmp_path / "c", ours=1.6, theirs=1.9))
    assert "is ahead, but the 95\u00a0% intervals overlap" in text


def test_random_weights_and_kmers_are_baselines(write, tmp_path):
    run = write.classification(tmp_path / "c", ours=1.0, theirs=0.9)
    result = json.loads((run / "result.json").read_text())
    result["models"][1]["name"] = "probe, random weights"
    write.json(run / "result.json", result)
    assert "The probe, random weights" in says(run)
    (section,) = read_sections([run])
    scores = next(block for block in section.blocks if block.name == "scores")
    assert scores.own == {0}


def test_leakage_between_training_and_test_is_told(write, tmp_path):
    clean = says(write.classification(tmp_path / "clean"))
    assert "No test sequence occurs in the training set" in clean
    leaky = says(write.classification(tmp_path / "leaky", leaks=1))
    assert "Leakage: 1\u00a0test sequence occurs in the training set" in leaky


def test_near_copies_are_told_and_tabulated_from_the_file_beside_the_result(write, tmp_path):
    run = write.classification(tmp_path / "near")
    train = ["ACGTTGCATTAGCCATAGGACTTAACCGGATT", "GGATCCATTTACGACCCTAGAAATTTCGCGAT"]
    leak = leakage_of_sequences({"train": train, "test": [train[0], train[1][::-1]]}).to_json()
    write.json(run / "leakage.json", leak)
    (section,) = read_sections([run])
    table = next(block for block in section.blocks if block.name == "leakage")
    assert [(row["part"], row["compared"], row["exact"]) for row in table.rows] == [("test", 2, 1)]
    if leak["missing"] is None:
        assert "1 of 2\u00a0held-out sequences (50.0\u00a0%) has at least 80\u00a0% of" in says(run)
    write.json(run / "leakage.json", leak | {"missing": "k-mer containment needs sourmash"})
    assert "Near copies between splits were not looked for: k-mer cont" in says(run)
    write.json(run / "leakage.json", leak | {"between": [{"part": "test"}]})
    with pytest.raises(FormatError, match=r"leakage\.json: expected a field 'against'"):
        read_sections([run])


def test_neighbours_with_the_same_label_are_told_beside_chance(write, tmp_path):
    text = says(write.embeddings(tmp_path / "x.npy", labels=("a", "b")))
    assert "the nearest other window has the same label, by chance it would for 50." in text


def test_variants_are_told_with_auroc_and_winner(write, tmp_path):
    text = says(write.variants(tmp_path / "v"))
    assert "tells motif-breaking from silent with AUROC 0.912 [0.874, 0.944]" in text
    assert "The model wins" in text


def test_the_best_cell_of_each_column_is_marked_and_ties_share_it(write, tmp_path):
    (section,) = read_sections([write.classification(tmp_path / "c", ours=1.5, theirs=1.75)])
    scores = next(block for block in section.blocks if block.name == "scores")
    tied = {row for row, key in scores.best if key == "auroc"}
    assert tied == {1, 2}


def test_numbers_are_written_for_people():
    space = "\u00a0"
    assert formats.bases(4_641_652) == f"4.64{space}Mb"
    assert formats.bases(999_999) == f"1.00{space}Mb"
    assert formats.bases(0) == f"0{space}bp"
    assert formats.amount(51_200_000) == f"51.2{space}million"
    assert formats.percent(0.5084) == f"50.8{space}%"
    assert formats.percent(0.0002) == f"0.02{space}%"
    assert formats.percent(0) == f"0{space}%"
    assert formats.duration(0.42) == f"0.4{space}s"
    assert formats.duration(200) == f"3{space}min{space}20{space}s"
    assert formats.duration(59.7) == f"1{space}min"
    assert formats.duration(3930) == f"1{space}h{space}6{space}min"
    assert formats.decimals(-0.0001, 2) == "0.00"
    assert formats.significant(-0.000012345) == "\u22121.23e\u22125"
    assert formats.cell_text("metric", {"value": None, "low": None, "high": None}) == "\u2013"


def test_a_constant_score_has_no_curve(write, tmp_path):
    (section,) = read_sections([write.classification(tmp_path / "c")])
    curves = [block for block in section.blocks if block.name in ("roc", "pr")]
    assert len(curves) == 2
    assert all("majority" not in label for curve in curves for _, label in curve.keys)


def test_a_loss_above_two_bits_is_called_worse_than_guessing(write, tmp_path):
    assert "worse than guessing" in says(write.pretraining(tmp_path / "r", steps=100, bits=None))
