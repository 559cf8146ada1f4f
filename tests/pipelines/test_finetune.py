"""`dnassm finetune`: a table on stdout, JSON on request."""

from __future__ import annotations

import json
import random

import pytest
import torch
from click.testing import CliRunner

from dnassm.config import ModelConfig
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.model import DNAModel
from dnassm.pipelines.finetune import command


@pytest.fixture
def arguments(tmp_path):
    torch.manual_seed(0)
    DNAModel(ModelConfig(d_model=8, pattern="m")).save_pretrained(tmp_path / "run")
    TOKENIZERS["single"]().save(tmp_path / "run" / "tokenizer.json")
    rng = random.Random(0)
    rows = [
        ("".join(rng.choices(letters, k=40)), label)
        for letters, label in (("GGCCA", "gc"), ("AATTG", "at"))
        for _ in range(20)
    ]
    lines = ["sequence\tlabel", *("\t".join(row) for row in rows)]
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n")
    paths = (tmp_path / "run", "--data", tmp_path / "x.tsv", "--out", tmp_path / "out")
    return [str(path) for path in paths]


def test_the_table_shows_the_model_beside_its_baselines(arguments):
    result = CliRunner().invoke(command, [*arguments, "--folds", "2"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "accuracy", "macro_f1", "mcc", "auroc", "auprc"]
    names = ("probe", "k-mer logistic regression", "majority class")
    assert all(line.startswith(name) for line, name in zip(lines[1:], names, strict=True))
    assert "embed" in result.stderr


def test_json_is_the_result_file(arguments, tmp_path):
    options = ["--mode", "full", "--epochs", "1", "--folds", "2", "--scratch", "--json"]
    result = CliRunner().invoke(command, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "result.json").read_text())
