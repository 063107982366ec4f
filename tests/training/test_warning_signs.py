"""Signs that features get worse are warned of, once each, and a training that goes well is left in peace."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.training.warning_signs import REMEDIES, WarningSigns, chance_loss


def rows(seed):
    return normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def said(history, epochs=None, chance=8.0):
    """(epoch, sentence) of (loss, rank) by epoch, the bank moving."""
    signs = WarningSigns(chance, epochs or len(history))
    return [
        (epoch, sentence)
        for epoch, (loss, rank) in enumerate(history, 1)
        for sentence in signs.after_epoch(epoch, loss, rank, rows(epoch))
    ]


@pytest.mark.parametrize("contrast", ["nce", "infonce"])
@pytest.mark.parametrize("negatives", ["all", "per_image"])
def test_chance_is_the_loss_of_embeddings_that_are_all_the_same(contrast, negatives):
    loss = PIRLLoss(50, contrast=contrast, negatives=negatives, num_negatives=20, embedding_dim=8)
    loss.memory_bank.rows[:] = 1
    same = torch.ones(4, 8)
    value = float(loss([same, same], torch.arange(4)))
    assert chance_loss(loss) == pytest.approx(value, rel=1e-5)
    count = 49 if negatives == "all" else 20
    nce = math.log(count + 1) - count * math.log(count / (count + 1))
    assert value == pytest.approx(nce if contrast == "nce" else math.log(count + 1), rel=1e-5)


def test_npid_has_a_constant_of_its_own_and_no_chance():
    assert chance_loss(PIRLLoss(50, contrast="npid", num_negatives=20)) is None


def test_what_went_wrong_on_small_sets_is_told_from_what_went_right():
    # Digits of 32 pixels, 12 epochs, as measured with and without batch normalisation of the heads.
    wrong = [(None, 38.0), (8.196, 14.4), (8.121, 6.1), (8.014, 3.3), (7.9, 2.0), (7.97, 1.5), (7.8, 1.4), (7.7, 1.3)]
    right = [(None, 38.9), (8.807, 48.8), (8.748, 45.5), (8.442, 38.8), (8.143, 31.5), (7.784, 25.4), (7.5, 20.1),
             (7.2, 17.7), (7.05, 16.8), (6.9, 16.1), (6.8, 16.1), (6.7, 16.1)]  # fmt: skip
    ((epoch, sentence),) = said(wrong, epochs=12, chance=8.09)
    assert epoch == 3 and "effective rank has fallen from 38.0 to 6.1" in sentence and sentence.endswith(REMEDIES)
    assert said(right, chance=8.09) == []


def test_a_loss_at_chance_is_warned_of_late_and_once():
    found = said([(7.99, 30.0)] * 12)
    assert [epoch for epoch, _ in found] == [8]
    assert "After 8 of 12 epochs the loss is 7.990, and if no image is told apart it is 8.000" in found[0][1]
    assert said([(7.7, 30.0)] * 12) == [] and said([(9.9, 30.0)] * 12, chance=None) == []


def test_a_bank_that_no_longer_moves_is_warned_of():
    signs, same = WarningSigns(8.0, 10), rows(0)
    assert list(signs.after_epoch(1, 7.0, 20.0, same)) == []
    (sentence,) = signs.after_epoch(2, 7.0, 20.0, same.clone())
    assert "hardly moved in epoch 2" in sentence
    assert list(signs.after_epoch(3, 7.0, 20.0, same)) == []  # once


@pytest.mark.parametrize(("epochs", "first"), [(3, 2), (4, 3), (9, 6), (10, 7)])
def test_two_thirds_of_the_epochs_are_waited_for(epochs, first):
    assert [epoch for epoch, _ in said([(8.0, 30.0)] * epochs)] == [first]
