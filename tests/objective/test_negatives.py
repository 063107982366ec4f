import math

import pytest
import torch
from scipy.stats import chisquare

from pirl_plugin.objective.counter_generator import GAMMA, keys, mix
from pirl_plugin.objective.negatives import draw, draw_negatives, draw_shared_negatives


def test_negatives_are_uniform_over_the_others_and_never_the_image_itself():
    indices = torch.tensor([0, 4, 9])
    drawn = draw_negatives(indices, 10, 90_000)
    for own, row in zip(indices.tolist(), drawn, strict=True):
        counts = torch.bincount(row, minlength=10)
        assert counts[own] == 0
        others = [int(c) for i, c in enumerate(counts) if i != own]
        assert chisquare(others).pvalue > 1e-3


def test_each_other_image_is_drawn_equally_often_over_many_steps():
    drawn = torch.stack([draw_negatives(torch.tensor([3]), 1000, 50, seed=1, step=step)[0] for step in range(4000)])
    counts = torch.bincount(drawn.view(-1), minlength=1000)
    assert counts[3] == 0
    assert chisquare(counts[torch.arange(1000) != 3]).pvalue > 1e-3


@pytest.mark.parametrize("pairs", ["of one draw", "of neighbouring images", "of neighbouring steps"])
def test_draws_are_independent(pairs):
    if pairs == "of one draw":
        first, second = draw(keys(torch.tensor([5]), 0, 0), 200_000, 20).view(2, -1)
    elif pairs == "of neighbouring images":
        drawn = draw(keys(torch.arange(20_001), 0, 0), 5, 20)
        first, second = drawn[1:].reshape(-1), drawn[:-1].reshape(-1)
    else:
        drawn = torch.stack([draw_shared_negatives(20, 5, 0, step) for step in range(20_001)])
        first, second = drawn[1:].reshape(-1), drawn[:-1].reshape(-1)
    assert chisquare(torch.bincount(first * 20 + second, minlength=400)).pvalue > 1e-3


def test_a_shared_draw_is_uniform():
    counts = torch.bincount(draw_shared_negatives(1000, 500_000), minlength=1000)
    assert chisquare(counts).pvalue > 1e-3


def test_draws_depend_on_seed_step_and_image_alone():
    indices = torch.tensor([7, 2, 5])
    drawn = draw_negatives(indices, 50, 20, seed=1, step=2)
    assert torch.equal(draw_negatives(indices[1:], 50, 20, seed=1, step=2), drawn[1:])
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}):
        assert not torch.equal(draw_negatives(indices, 50, 20, **other), drawn)
    assert (draw_negatives(torch.tensor([0, 1]), 1000, 1000).diff(dim=0) == 0).float().mean() < 0.01 / math.sqrt(10)


def test_negatives_are_drawn_for_ignored_images_too():
    drawn = draw_negatives(torch.tensor([-1]), 3, 50)
    assert drawn.min() >= 0 and drawn.max() <= 2


def test_the_generator_is_splitmix64():
    """Its published first numbers for the seed 1234567."""
    numbers = mix(torch.tensor([1234567]) + torch.arange(1, 4) * GAMMA)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423 - 2**64]
    assert numbers.tolist() == expected


def test_the_largest_random_number_stays_below_the_size():
    for size in (2, 3, 10, 1_281_166, 2**31 - 1, 100_000_000):
        assert int(torch.tensor([2**53 - 1]).double().mul_(2.0**-53 * size).long()) == size - 1
