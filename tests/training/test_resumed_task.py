"""PIRL's task from a checkpoint: what it takes over, what it refuses, and where in an epoch it goes on."""

import logging
from pathlib import Path

import pytest
import torch

from pirl_plugin.validation import ConfigError
from prepared_task import BATCH, STEPS, prepared


def write_checkpoint(task, path: Path, epoch: int, steps: int) -> Path:
    """As VISSL writes it `steps` steps into an epoch, or at its end."""
    task.train, task.iteration, task.local_iteration_num = True, epoch * STEPS + steps, 0
    task.train_phase_idx = task.phase_idx = epoch
    task.recreate_data_iterator("train", epoch=epoch, compute_start_iter=False, train_phase_idx=epoch)
    task.epoch_began, task.unreadable_so_far = epoch * STEPS, (2, steps * BATCH)
    state, finished = task.get_classy_state(), epoch if steps == STEPS else epoch - 1
    state |= {"phase_idx": finished, "train_phase_idx": finished}
    content = {"phase_idx": finished, "train_phase_idx": finished, "iteration": task.iteration, "iteration_num": 0,
               "loss": task.base_loss.state_dict(), "classy_state_dict": state}  # fmt: skip
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def checkpoints(photo_folder, tmp_path_factory) -> dict[str, Path]:
    """Of the end of the second epoch, and of two steps into the third."""
    folder = tmp_path_factory.mktemp("run")
    task = prepared(photo_folder, folder)
    for parameter in task.base_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.optimizer.optimizer.step()
    return {"epoch": write_checkpoint(task, folder / "model_phase1.torch", 1, STEPS),
            "middle": write_checkpoint(task, folder / "model_iteration8.torch", 2, 2)}  # fmt: skip


@pytest.mark.parametrize(("of", "start", "iteration"), [("epoch", 0, 6), ("middle", 2, 8)])
def test_a_task_goes_on_at_the_step_after_its_checkpoint(checkpoints, photo_folder, tmp_path, of, start, iteration):
    task = prepared(photo_folder, tmp_path, checkpoint=checkpoints[of])
    assert (task.start_iter, task.iteration, task.epoch_began) == (start, iteration, 6)
    whole = prepared(photo_folder, tmp_path)
    whole.recreate_data_iterator("train", epoch=2, compute_start_iter=False, train_phase_idx=2)
    rest = list(task.dataloaders["train"].sampler)
    assert rest == list(whole.dataloaders["train"].sampler)[start * BATCH :] and len(rest) == (STEPS - start) * BATCH
    assert task.unreadable_before == (2, 48 if of == "epoch" else 32)
    assert set(task.checkpoint) == {"phase_idx", "train_phase_idx", "iteration", "iteration_num"}


def test_weights_momentum_and_bank_are_the_checkpoints_and_no_longer_in_its_file(checkpoints, photo_folder, tmp_path):
    task, saved = prepared(photo_folder, tmp_path, checkpoint=checkpoints["epoch"]), torch.load(checkpoints["epoch"])
    trunk = saved["classy_state_dict"]["base_model"]["model"]["trunk"]
    assert all(torch.equal(value, trunk[name]) for name, value in task.base_model.trunk.state_dict().items())
    assert torch.equal(task.base_loss.state_dict()["memory_bank.rows"], saved["loss"]["memory_bank.rows"])
    momenta = [state["momentum_buffer"] for state in task.optimizer.optimizer.state.values()]
    assert momenta and all(momentum.norm() > 0 for momentum in momenta)
    file = task.checkpoint_path
    before = Path(file).read_bytes()
    for momentum in momenta:
        momentum.zero_()
    assert Path(file).read_bytes() == before


def test_a_schedule_by_epochs_has_the_rate_with_which_the_epoch_began(checkpoints, photo_folder, tmp_path):
    by_epochs = "config.OPTIMIZER.param_schedulers.lr.update_interval=epoch"
    task = prepared(photo_folder, tmp_path, by_epochs, checkpoint=checkpoints["middle"])
    task.phase_idx = task.train_phase_idx = 2
    rates = []
    for where in (6 / 12, 8 / 12):
        task.optimizer.on_epoch(where)
        rates.append(task.optimizer.options_view.lr)
    task.learning_rate_of_the_epoch()
    assert task.optimizer.options_view.lr == rates[0] != rates[1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=24"], "mid-epoch of a run whose global batch was 16; here it is 24"),
        (["config.SEED_VALUE=6"], "mid-epoch of a run whose SEED_VALUE was 5; here it is 6"),
    ],
)
def test_the_middle_of_an_epoch_needs_its_batches_and_its_end_does_not(
    checkpoints, photo_folder, tmp_path, overrides, sentence
):
    with pytest.raises(ConfigError, match=sentence):
        prepared(photo_folder, tmp_path, *overrides, checkpoint=checkpoints["middle"])
    assert prepared(photo_folder, tmp_path, *overrides, checkpoint=checkpoints["epoch"]).start_iter == 0


def test_a_run_with_all_its_epochs_done_is_refused_and_other_settings_are_named(
    checkpoints, photo_folder, tmp_path, caplog
):
    with pytest.raises(ConfigError, match=r"num_epochs is 2, but 2 epochs of the checkpoint .*model_phase1.torch are"):
        prepared(photo_folder, tmp_path, "config.OPTIMIZER.num_epochs=2", checkpoint=checkpoints["epoch"])
    caplog.set_level(logging.WARNING)
    prepared(photo_folder, tmp_path, checkpoint=checkpoints["epoch"])
    assert "another setting" not in caplog.text
    prepared(photo_folder, tmp_path, "config.LOSS.pirl_loss.temperature=0.2", checkpoint=checkpoints["epoch"])
    assert "LOSS.pirl_loss.temperature is 0.2; the checkpoint's run had 0.1" in caplog.text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("config.MODEL.TRUNK.RESNETS.DEPTH=34", r"MODEL.TRUNK.RESNETS.DEPTH is 34; the checkpoint's run had 18"),
        ("config.MODEL.HEAD.PARAMS.0.1.batch_norm=False", r"MODEL.HEAD.PARAMS.* is .*"),
    ],
)
def test_another_network_is_refused_by_name(checkpoints, photo_folder, tmp_path, override, told):
    with pytest.raises(ConfigError, match=rf"model_phase1.torch is of another network \({told}\), and a run resumes"):
        prepared(photo_folder, tmp_path, override, checkpoint=checkpoints["epoch"])


def test_other_images_are_refused_unless_they_are_accepted(checkpoints, photo_folder, tmp_path, make_photo):
    others = tmp_path / "others"
    for file in sorted(photo_folder.rglob("*.jpg")):
        (others / file.parent.name).mkdir(parents=True, exist_ok=True)
        (others / file.parent.name / f"renamed_{file.name}").symlink_to(file)
    with pytest.raises(ConfigError, match="has other images: their names of the images was"):
        prepared(others, tmp_path, checkpoint=checkpoints["epoch"])
    accepted = "config.CHECKPOINT.RESUME_WITH_OTHER_IMAGES=True"
    assert prepared(others, tmp_path, accepted, checkpoint=checkpoints["epoch"]).start_iter == 0


def test_a_checkpoint_says_what_images_its_network_wants_and_where_it_stopped(checkpoints):
    (epoch, middle) = (torch.load(checkpoints[of])["classy_state_dict"]["pirl_plugin"] for of in ("epoch", "middle"))
    assert (epoch["epoch"], epoch["steps of the epoch"]) == (1, 3)
    assert (middle["epoch"], middle["steps of the epoch"], middle["unreadable"]) == (2, 2, [2, 32])
    assert (middle["global batch"], middle["SEED_VALUE"], middle["number of images"]) == (16, 5, 48)
    assert middle["images"]["size"] == 32 and middle["files"]["number of images"] == "48"
