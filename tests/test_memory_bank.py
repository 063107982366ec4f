import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn.functional import normalize

from pirl_plugin.memory_bank import MEMORY_BANKS, MemoryBank, initial_rows
from pirl_plugin.negatives import draw_negatives
from pirl_plugin.validation import ConfigError


def update_in_a_plain_loop(rows, indices, embeddings, momentum):
    """One image at a time; an image that occurs twice is averaged once, with the mean of its embeddings."""
    rows = rows.clone()
    for index in sorted(set(indices.tolist())):
        if index < 0:
            continue
        mean = torch.stack([e for i, e in zip(indices.tolist(), embeddings, strict=True) if i == index]).mean(0)
        row = momentum * rows[index] + (1 - momentum) * mean
        rows[index] = row / row.norm()
    return rows


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    "indices",
    [[3, 0, 7], [5], [2, 2, 2, 2], [4, -1, 4, 9, -1, 1], [-1, -1], [-1, 0, 0], [0, -1, 3]],
)
def test_updates_equal_a_plain_loop(momentum, indices):
    bank = MemoryBank(10, dim=6, momentum=momentum)
    indices = torch.tensor(indices)
    embeddings = normalize(torch.randn(len(indices), 6, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = update_in_a_plain_loop(bank.rows, indices, embeddings, momentum)
    bank.update(indices, embeddings)
    torch.testing.assert_close(bank.rows, expected)


def test_the_first_update_can_fill_the_row_instead_of_averaging_it():
    bank = MemoryBank(10, dim=6, fill_first=True)
    first, second = normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    bank.update(torch.tensor([4, -1]), torch.stack([first, second]))
    torch.testing.assert_close(bank.rows[4], first)
    bank.update(torch.tensor([4]), second[None])
    torch.testing.assert_close(bank.rows[4], normalize((first + second) / 2, dim=0))
    assert bank.updated.nonzero().squeeze(1).tolist() == [4]


def test_rows_stay_of_unit_norm():
    bank = MemoryBank(20, dim=8)
    for step in range(30):
        generator = torch.Generator().manual_seed(step)
        indices = torch.randint(20, (6,), generator=generator)
        bank.update(indices, normalize(torch.randn(6, 8, generator=generator), dim=1))
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(20))


def test_first_rows_are_unit_vectors_spread_evenly_and_depend_on_seed_and_number_only():
    rows = initial_rows(0, 70_000, 16, seed=1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(70_000))
    assert rows.mean(0).abs().max() < 0.01
    for start, stop in ((65_000, 66_000), (0, 7), (8_190, 8_195), (3, 20_001)):
        assert torch.equal(initial_rows(start, stop, 16, seed=1), rows[start:stop])
    assert torch.equal(initial_rows(0, 5, 3, seed=1), initial_rows(0, 9, 3, seed=1)[:5])
    assert not torch.equal(initial_rows(0, 10, 16, seed=2), rows[:10])


def test_a_lookup_is_a_copy():
    bank = MemoryBank(5, dim=4)
    before = bank.lookup(torch.tensor([2]))
    bank.update(torch.tensor([2]), torch.ones(1, 4) / 2)
    assert not torch.equal(before, bank.lookup(torch.tensor([2])))


def test_a_bank_of_another_size_is_refused_on_loading():
    with pytest.raises(ConfigError, match="has 5 rows of 4 numbers, but this run has 6 images"):
        MemoryBank(6, dim=4).load_state_dict(MemoryBank(5, dim=4).state_dict())


def test_more_images_than_the_capacity_are_refused():
    with pytest.raises(ValueError, match="at most 2"):
        MemoryBank(6, dim=4, batch_capacity=2).update(torch.tensor([0, 1, 2]), torch.ones(3, 4))


def test_the_bank_is_in_the_registry():
    assert MEMORY_BANKS.get("memory_bank") is MemoryBank


@pytest.mark.parametrize(("key", "value"), [("momentum", 1.0), ("momentum", -0.1), ("num_rows", 1)])
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ConfigError):
        MemoryBank(**{"num_rows": 10, key: value})


def test_negatives_are_uniform_over_the_others_and_never_the_image_itself():
    indices = torch.tensor([0, 4, 9])
    drawn = draw_negatives(indices, 10, 90_000, torch.Generator().manual_seed(0))
    for own, row in zip(indices.tolist(), drawn, strict=True):
        counts = torch.bincount(row, minlength=10)
        assert counts[own] == 0
        others = [int(c) for i, c in enumerate(counts) if i != own]
        assert chisquare(others).pvalue > 1e-3


def test_negatives_are_drawn_for_ignored_images_too():
    drawn = draw_negatives(torch.tensor([-1]), 3, 50)
    assert drawn.min() >= 0 and drawn.max() <= 2


def test_draws_of_different_images_are_independent():
    drawn = draw_negatives(torch.tensor([0, 0]), 1000, 1000, torch.Generator().manual_seed(0))
    agreement = (drawn[0] == drawn[1]).float().mean()
    assert agreement < 10 / math.sqrt(1000) * 0.1
