import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.objective.memory_bank import MEMORY_BANKS, MemoryBank, bank_rows, initial_rows
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


@pytest.mark.parametrize("dim", [3, 16])
def test_first_rows_are_unit_vectors_spread_evenly_and_depend_on_seed_and_number_only(dim):
    rows = initial_rows(70_000, dim, seed=1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(70_000))
    assert rows.mean(0).abs().max() < 0.015
    assert len(rows.unique(dim=0)) == len(rows)
    for first, step in ((0, 2), (1, 2), (2, 3), (5, 7), (63, 64), (100, 129), (3, 1000), (69_999, 70_000)):
        assert torch.equal(initial_rows(70_000, dim, 1, first, step), rows[first::step])
    for num_rows in (5, 64, 8191, 20_001):
        assert torch.equal(initial_rows(num_rows, dim, 1), rows[:num_rows])
    assert torch.equal(initial_rows(500, dim, 1, dtype=torch.bfloat16), rows[:500].bfloat16())
    assert not torch.equal(initial_rows(10, dim, seed=2), rows[:10])
    assert initial_rows(10, dim, seed=2**63 - 1).isfinite().all() and initial_rows(10, dim, 20240101).isfinite().all()


@pytest.mark.parametrize("indices", [[3, 0, 7], [4, -1, 4, 9, -1, 1]])
def test_a_bfloat16_bank_rounds_only_what_it_stores(indices):
    bank, indices = MemoryBank(10, dim=6, dtype="bfloat16"), torch.tensor(indices)
    embeddings = normalize(torch.randn(len(indices), 6, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = update_in_a_plain_loop(bank.lookup(torch.arange(10)), indices, embeddings, 0.5)
    bank.update(indices, embeddings)
    assert bank.rows.dtype == torch.bfloat16 and bank.lookup(indices.clamp(min=0)).dtype == torch.float32
    torch.testing.assert_close(bank.rows, expected.bfloat16(), rtol=0, atol=4e-3)
    before = bank.checksum()
    bank.rows[3, 2] = torch.nextafter(bank.rows[3, 2], torch.tensor(2.0, dtype=torch.bfloat16))
    assert bank.checksum() != before


def test_embeddings_that_are_not_finite_stay_out_of_the_bank():
    bank = MemoryBank(10, dim=4)
    before = bank.rows.clone()
    embeddings = torch.tensor([[0.5, 0.5, 0.5, 0.5], [torch.nan, 0, 0, 0], [torch.inf, 0, 0, 0]])
    bank.update(torch.tensor([1, 2, 3]), embeddings)
    assert bank.updated.nonzero().squeeze(1).tolist() == [1]
    assert torch.equal(bank.rows[2:], before[2:]) and bank.rows.isfinite().all()


def test_a_lookup_is_a_copy():
    bank = MemoryBank(5, dim=4)
    before = bank.lookup(torch.tensor([2]))
    bank.update(torch.tensor([2]), torch.ones(1, 4) / 2)
    assert not torch.equal(before, bank.lookup(torch.tensor([2])))


def test_a_bank_of_another_size_is_refused_on_loading():
    with pytest.raises(ConfigError, match="has 5 rows of 4 numbers, but this run has 6 images"):
        MemoryBank(6, dim=4).load_state_dict(MemoryBank(5, dim=4).state_dict())


def test_more_images_than_the_capacity_are_refused():
    with pytest.raises(ValueError, match="batch_capacity is 2"):
        MemoryBank(6, dim=4, batch_capacity=2).update(torch.tensor([0, 1, 2]), torch.ones(3, 4))


def test_the_bank_is_in_the_registry():
    assert MEMORY_BANKS["memory_bank"] is MemoryBank


@pytest.mark.parametrize(("key", "value"), [("momentum", 1.0), ("momentum", -0.1), ("num_rows", 1)])
def test_bad_settings_are_refused(key, value):
    with pytest.raises(ConfigError):
        MemoryBank(**{"num_rows": 10, key: value})


def test_the_bank_of_a_loss_that_was_saved_alone_is_found():
    bank = MemoryBank(9, 4)
    state = {f"memory_bank.{key}": value for key, value in bank.state_dict().items()}
    assert torch.equal(bank_rows(state, "loss.pth"), bank.rows)
    assert torch.equal(bank_rows({"loss": state}, "checkpoint.torch"), bank.rows)
