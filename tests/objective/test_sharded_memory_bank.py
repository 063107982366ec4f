"""One process at a time here; test_distributed.py runs the bank in several."""

import pytest
import torch
from scipy.stats import binom

from pirl_plugin.objective import sharded_memory_bank
from pirl_plugin.objective.memory_bank import MemoryBank, initial_rows
from pirl_plugin.objective.sharded_memory_bank import ShardedMemoryBank, most_held
from pirl_plugin.validation import ConfigError


@pytest.fixture
def bank_of(monkeypatch, tmp_path):
    """A function (rank, ranks, rows) -> that rank's bank."""

    def make(rank, ranks, num_rows=50, **settings):
        monkeypatch.setattr(sharded_memory_bank, "world_size", lambda: ranks)
        monkeypatch.setattr(sharded_memory_bank, "rank", lambda: rank)
        return ShardedMemoryBank(num_rows, dim=4, folder=str(tmp_path), **settings)

    return make


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_row_i_lives_on_rank_i_mod_w_and_starts_the_same_for_any_w(bank_of, ranks):
    rows = initial_rows(50, 4, seed=3)
    for rank in range(ranks):
        bank = bank_of(rank, ranks, seed=3)
        assert torch.equal(bank.rows[: bank.num_held], rows[rank::ranks])
        places = bank.places(torch.arange(50))
        assert torch.equal((places >= 0).nonzero().squeeze(1), torch.arange(rank, 50, ranks))
        assert torch.equal(places[rank::ranks], torch.arange(bank.num_held))


@pytest.mark.parametrize("shape", [(40,), (3, 200)])
def test_a_draw_is_held_by_exactly_one_rank_each(bank_of, shape):
    drawn = torch.randint(50, shape, generator=torch.Generator().manual_seed(0))
    together = []
    for rank in range(4):
        held = bank_of(rank, 4).held(drawn)
        together.append(torch.where(held >= 0, held * 4 + rank, -1))
    together = torch.cat(together, dim=-1).sort(dim=-1).values[..., -shape[-1] :]
    assert torch.equal(together, drawn.sort(dim=-1).values)


@pytest.mark.parametrize(("count", "holders"), [(32_000, 8), (32_000, 64), (4096, 2), (100, 64), (1, 2)])
def test_the_room_for_a_ranks_part_of_a_draw_is_never_too_small(count, holders):
    room = most_held(count, holders)
    assert binom.sf(room, count, 1 / holders) < 1e-18
    assert room <= count and room < count / holders + 10 * (count / holders) ** 0.5 + 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [5, 2**16])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 2), (2, 4), (4, 2), (3, 4), (4, 6), (4, 1), (7, 3)])
def test_a_checkpoint_can_be_loaded_with_another_number_of_ranks(bank_of, before, after, block, dtype, monkeypatch):
    monkeypatch.setattr(sharded_memory_bank, "READ_AT_ONCE", max(block, after))
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    updated = torch.rand(50, generator=torch.Generator().manual_seed(0)) > 0.5
    for rank in range(before):
        bank = bank_of(rank, before, dtype=dtype)
        bank.rows[: bank.num_held], bank.updated[: bank.num_held] = rows[rank::before], updated[rank::before]
        bank.save_shard("model_phase3")
        state = bank.state_dict()
    for rank in range(after):
        bank = bank_of(rank, after, dtype=dtype)
        bank.load_state_dict(state)
        assert torch.equal(bank.rows[: bank.num_held], rows[rank::after])
        assert torch.equal(bank.updated[: bank.num_held], updated[rank::after])


def test_the_bank_of_a_memory_bank_checkpoint_can_be_loaded(bank_of):
    whole = MemoryBank(50, dim=4, seed=9)
    whole.updated[7] = True
    state = whole.state_dict()
    for rank in range(3):
        bank = bank_of(rank, 3)
        bank.load_state_dict(dict(state))
        assert torch.equal(bank.rows[: bank.num_held], whole.rows[rank::3])
        assert torch.equal(bank.updated[: bank.num_held], whole.updated[rank::3])


def test_shards_are_kept_as_long_as_their_checkpoint(bank_of, tmp_path):
    checkpoints = ["model_phase1.torch", "model_iteration7.torch", "model_final_checkpoint_phase2.torch"]
    for name in checkpoints:
        (tmp_path / name).touch()
    (tmp_path / "other_bank0of1.safetensors").touch()
    for name in ("phase0", "phase1", "iteration7", "phase2", "phase3"):
        bank = bank_of(0, 1)
        bank.save_shard(f"model_{name}")
    bank.delete_orphans()
    kept = [f"model_{name}_bank0of1.safetensors" for name in ("phase1", "iteration7", "phase2", "phase3")]
    assert {path.name for path in tmp_path.iterdir()} == {*checkpoints, *kept, "other_bank0of1.safetensors"}


def test_a_memory_bank_says_that_it_cannot_take_shards(bank_of):
    bank = bank_of(0, 1)
    bank.save_shard("model_phase0")
    with pytest.raises(ConfigError, match="name to sharded_memory_bank"):
        MemoryBank(50, dim=4).load_state_dict(bank.state_dict())


@pytest.mark.parametrize("damage", ["missing", "truncated", "of another size"])
def test_shards_that_cannot_serve_are_refused(bank_of, tmp_path, damage):
    bank = bank_of(0, 1)
    bank.save_shard("model_phase0")
    state, path = bank.state_dict(), tmp_path / bank.shards[0]
    message = "model_phase0_bank0of1.safetensors, a shard of the checkpoint's memory bank, cannot be read"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        other = bank_of(0, 1, num_rows=60)
        other.save_shard("model_phase0")
        message = "it should have 50 rows"
    with pytest.raises(ConfigError, match=message):
        bank_of(0, 1).load_state_dict(state)


def test_a_bank_of_another_size_is_refused_on_loading(bank_of):
    bank = bank_of(0, 1)
    bank.save_shard("model_phase0")
    with pytest.raises(ConfigError, match="has 50 rows of 4 numbers, but this run has 51 images"):
        bank_of(0, 1, num_rows=51).load_state_dict(bank.state_dict())
    with pytest.raises(ConfigError, match="names no shard files"):
        bank_of(0, 1).load_state_dict(bank_of(0, 1).state_dict())


def test_with_fill_first_a_row_is_filled_once_its_image_was_seen_and_its_values_are_those_of_its_holder(bank_of):
    bank = bank_of(0, 1, num_rows=6, fill_first=True)
    assert not bank.is_filled(torch.arange(6)).any()
    bank.update(torch.tensor([0, 4]), torch.eye(4)[:2])
    assert bank.is_filled(torch.arange(6)).tolist() == [True, False, False, False, True, False]
    assert torch.equal(bank.lookup(torch.tensor([[0, 4], [4, 1]])), bank.rows[torch.tensor([[0, 4], [4, 1]])])
    assert bank_of(0, 1, num_rows=6).is_filled(torch.arange(6)).all()
