"""What next and masked show and ask, and what the loss makes of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dnassm.config import ObjectiveConfig
from dnassm.data.batch import Batch
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.task import IGNORED, TASKS, token_loss

SINGLE = TOKENIZERS["single"]()
BASES = torch.tensor(sorted(SINGLE.bases.values()))
UNKNOWN = torch.tensor(SINGLE.ignore_ids)


def objective(name, **settings):
    return TASKS[name](ObjectiveConfig(name=name, **settings), SINGLE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(*shape: int) -> torch.Tensor:
    """Bases with one in eight position N or padding."""
    drawn = BASES[torch.randint(len(BASES), shape, generator=generator(1))]
    other = UNKNOWN[torch.randint(len(UNKNOWN), shape, generator=generator(2))]
    return torch.where(torch.rand(shape, generator=generator(3)) < 0.125, other, drawn)


def test_the_target_of_next_is_the_token_after():
    given = tokens(3, 64)
    inputs, targets, _ = objective("next").prepare(Batch(given), generator())
    assert torch.equal(inputs, given)
    assert (targets[:, -1] == IGNORED).all()
    counted = targets[:, :-1] != IGNORED
    assert torch.equal(targets[:, :-1][counted], given[:, 1:][counted])
    assert torch.equal(counted, torch.isin(given[:, 1:], BASES))


@pytest.mark.parametrize("prepare", ["prepare", "prepare_held_out"])
def test_masked_targets_are_the_bases_that_were_there_and_the_rest_is_untouched(prepare):
    given = tokens(8, 256)
    inputs, targets, _ = getattr(objective("masked"), prepare)(Batch(given), generator())
    chosen = targets != IGNORED
    assert torch.equal(targets[chosen], given[chosen])
    assert torch.equal(inputs[~chosen], given[~chosen])
    assert torch.isin(inputs[chosen], torch.cat([BASES, torch.tensor([SINGLE.mask_id])])).all()


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_masked_chooses_its_share_and_shows_it_80_10_10(ratio):
    given = BASES[torch.randint(len(BASES), (64, 2048), generator=generator(4))]
    inputs, targets, _ = objective("masked", mask_ratio=ratio).prepare(Batch(given), generator())
    chosen = targets != IGNORED
    n = int(chosen.sum())
    # Five standard deviations of a binomial share.
    assert abs(n / given.numel() - ratio) < 5 * math.sqrt(ratio * (1 - ratio) / given.numel())
    masked = inputs[chosen] == SINGLE.mask_id
    same = inputs[chosen] == given[chosen]
    # A random base is the old one in a quarter of its cases.
    for share, expected in ((masked, 0.8), (same, 0.125), (~masked & ~same, 0.075)):
        sigma = math.sqrt(expected * (1 - expected) / n)
        assert abs(float(share.float().mean()) - expected) < 5 * sigma


WORDS = {
    "side by side": TOKENIZERS["kmer"](k=3),
    "overlapping": TOKENIZERS["kmer"](k=3, overlap=True),
}


def sequences(tokenizer, rows: int, bases: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bases (B, L) with few N, as numbers 0..4, and their tokens."""
    numbers = torch.randint(4, (rows, bases), generator=generator(7))
    numbers[torch.rand(rows, bases, generator=generator(8)) < 0.01] = 4
    return numbers, torch.from_numpy(tokenizer.encode_codes(numbers.numpy().astype("u1")))


@pytest.mark.parametrize("kind", WORDS)
def test_a_random_word_is_one_of_the_words_that_a_sequence_has_inside(kind):
    tokenizer = WORDS[kind]
    _, given = sequences(tokenizer, 16, 3000)
    masked = TASKS["masked"](ObjectiveConfig(name="masked"), tokenizer)
    inputs, targets, _ = masked.prepare(Batch(given), generator())
    changed = (inputs != given) & (inputs != tokenizer.mask_id)
    assert changed.sum() > 100
    assert (targets[changed] != IGNORED).all()
    assert (inputs[changed] < 4**3).all()
    share = (targets != IGNORED).float().mean()
    # Of overlapping words some are chosen twice, and those with an N are left out.
    assert 0.12 < share < 0.155


def test_overlapping_words_of_a_hidden_base_share_one_fate():
    tokenizer = WORDS["overlapping"]
    _, given = sequences(tokenizer, 8, 2000)
    masked = TASKS["masked"](ObjectiveConfig(name="masked", mask_ratio=0.02), tokenizer)
    inputs, targets, _ = masked.prepare(Batch(given), generator())
    runs = 0
    for row in range(8):
        counted = (targets[row] != IGNORED).tolist()
        starts = [t for t in range(1, 1990) if counted[t] and not counted[t - 1]]
        for start in starts:
            stop = next(t for t in range(start, 2000) if not counted[t])
            if stop - start != 3:
                continue  # cut short by an N, or several bases in a row
            hidden = inputs[row, start:stop] == tokenizer.mask_id
            assert hidden.all() or not hidden.any()
            runs += 1
    assert runs > 50


def test_a_measured_overlapping_word_cannot_be_spelt_from_its_neighbours():
    """What the visible words say of each hidden word is all of it but its first base."""
    tokenizer = WORDS["overlapping"]
    bases, given = sequences(tokenizer, 4, 400)
    masked = TASKS["masked"](ObjectiveConfig(name="masked"), tokenizer)
    inputs, targets, _ = masked.prepare_held_out(Batch(given), generator())
    told = 0
    for row in range(4):
        visible = {
            base
            for t in range(400)
            if inputs[row, t] != tokenizer.mask_id and given[row, t] not in tokenizer.ignore_ids
            for base in range(t, min(t + 3, 400))
        }
        for t in torch.nonzero(targets[row] != IGNORED).flatten().tolist():
            assert t not in visible
            if t < 398:
                word = "".join("ACGT"[base] for base in bases[row, t : t + 3].tolist())
                assert tokenizer.vocab[targets[row, t]] == word
                told += {t + 1, t + 2} <= visible  # but where an N hides them
    assert told > 40


def test_no_target_of_a_measurement_can_be_seen():
    inputs, targets, _ = objective("masked").prepare_held_out(Batch(tokens(8, 256)), generator())
    assert (inputs[targets != IGNORED] == SINGLE.mask_id).all()


def test_token_loss_is_the_mean_of_minus_log_p_by_hand():
    logits = torch.randn(2, 5, 8, generator=generator(), dtype=torch.float32)
    targets = torch.tensor([[0, 1, IGNORED, 3, 2], [IGNORED, 1, 1, IGNORED, 0]])
    by_hand = [
        -math.log(math.exp(logits[b, t, k]) / sum(math.exp(x) for x in logits[b, t]))
        for b in range(2)
        for t in range(5)
        if (k := int(targets[b, t])) != IGNORED
    ]
    assert float(token_loss(logits, targets)) == pytest.approx(sum(by_hand) / 7, rel=1e-6)


def test_positions_that_do_not_count_get_no_gradient():
    logits = torch.randn(2, 5, 8, generator=generator(), requires_grad=True)
    targets = torch.full((2, 5), IGNORED)
    targets[0, 1] = 2
    token_loss(logits, targets).backward()
    by_hand = logits.detach()[0, 1].softmax(-1) - F.one_hot(torch.tensor(2), 8)
    torch.testing.assert_close(logits.grad[0, 1], by_hand)
    logits.grad[0, 1] = 0
    assert (logits.grad == 0).all()


def test_a_weighted_loss_is_the_weighted_mean_by_hand():
    logits = torch.randn(2, 5, 8, generator=generator(), requires_grad=True)
    targets = torch.tensor([[0, 1, IGNORED, 3, 2], [IGNORED, 1, 1, IGNORED, 0]])
    weights = torch.rand(2, 5, generator=generator(6))
    counted = targets != IGNORED
    nats = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    by_hand = (weights * nats)[counted].sum() / weights[counted].sum()
    loss = token_loss(logits, targets, weights)
    torch.testing.assert_close(loss, by_hand)
    gradients = [
        torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, by_hand)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(token_loss(logits, targets, weights / 10), loss)
    ones = torch.ones_like(weights)
    torch.testing.assert_close(token_loss(logits, targets, ones), token_loss(logits, targets))


def test_targets_that_weigh_nothing_get_no_gradient():
    logits = torch.randn(2, 5, 8, generator=generator(), requires_grad=True)
    weights = torch.zeros(2, 5)
    token_loss(logits, torch.full((2, 5), 3), weights).backward()
    assert (logits.grad == 0).all()
    weights[1, 2] = 0.1
    loss = token_loss(logits, torch.full((2, 5), 3), weights)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[1, 2, 3])


def test_without_any_target_loss_and_gradient_are_zero():
    logits = torch.randn(2, 5, 8, generator=generator(), requires_grad=True)
    loss = token_loss(logits, torch.full((2, 5), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()
