"""The pooled head: padding never counts, and it is stored and read back whole."""

from __future__ import annotations

import pytest
import torch

from dnassm.errors import ArtifactError, ConfigError
from dnassm.heads import PooledHead


def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 6, 4, generator=generator)
    real = torch.arange(6)[None] < torch.tensor([6, 2, 1])[:, None]
    return hidden, real


@pytest.mark.parametrize("pools", [("mean",), ("mean", "last", "max")])
def test_logits_of_a_row_do_not_depend_on_the_padding_behind_it(pools):
    hidden, real = batch()
    head = PooledHead(4, ["a", "b"], pools=pools).eval()
    together = head(hidden, real)
    for row, length in enumerate((6, 2, 1)):
        alone = head(hidden[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(together[row], alone[0])


def test_no_gradient_flows_into_padding():
    hidden, real = batch()
    hidden.requires_grad_()
    PooledHead(4, ["a", "b"], pools=("mean", "last", "max")).eval()(hidden, real).sum().backward()
    assert (hidden.grad[~real] == 0).all()
    assert (hidden.grad[real] != 0).any(-1).all()


def test_a_head_is_read_back_as_it_was_written(tmp_path):
    head = PooledHead(4, ["a,b", "c\td", "é"], pools=("mean", "max"), layer=2, strand="both").eval()
    head.save(tmp_path)
    again = PooledHead.load(tmp_path)
    assert again.classes == head.classes
    assert (again.pools, again.layer, again.strand) == (("mean", "max"), 2, "both")
    torch.testing.assert_close(again(*batch()), head(*batch()), rtol=0, atol=0)


def test_a_folder_without_a_head_says_how_to_get_one(tmp_path):
    with pytest.raises(ArtifactError, match="dnassm finetune"):
        PooledHead.load(tmp_path)


def test_a_broken_head_is_one_line(tmp_path):
    (tmp_path / "head.safetensors").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="broken"):
        PooledHead.load(tmp_path)


def test_an_unknown_pooling_is_named():
    with pytest.raises(ConfigError, match="no pooling named 'avg'"):
        PooledHead(4, ["a", "b"], pools=("avg",))
