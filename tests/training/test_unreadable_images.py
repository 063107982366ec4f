"""The share of unreadable images that ends a run; whole runs with broken files are in test_faults.py."""

from types import SimpleNamespace

import pytest
import torch
from vissl.config import AttrDict

from pirl_plugin.data.image_files import list_images
from pirl_plugin.training.unreadable_images import UnreadableImagesHook
from pirl_plugin.validation import ConfigError


def task_with(unreadable: int, photo_folder) -> SimpleNamespace:
    """What the hook reads of a task after one batch of 8 images, of which the first are unreadable."""
    valid = torch.arange(8) >= unreadable
    sample = {"data_valid": [valid], "data_idx": [torch.arange(8)]}
    files = SimpleNamespace(get_image_paths=lambda: [list_images(photo_folder)], data_limit=-1)
    return SimpleNamespace(
        last_batch=SimpleNamespace(sample=sample), data_and_label_keys={"target": ["image_index"]}, device="cpu",
        datasets={"train": files}, config=AttrDict({"CHECKPOINT": {"CHECKPOINT_ITER_FREQUENCY": -1}}),
        train_phase_idx=0, num_train_phases=1,
    )  # fmt: skip


@pytest.mark.parametrize(("steps_done", "kept"), [(0, False), (3, True)])
def test_lists_of_an_earlier_run_are_kept_only_in_the_middle_of_their_epoch(steps_done, kept, tmp_path):
    for number in range(2):
        (tmp_path / f"unreadable_rank{number}.txt").write_text("a.jpg\n")
    UnreadableImagesHook(tmp_path).on_start(SimpleNamespace(start_iter=steps_done))
    assert len(list(tmp_path.iterdir())) == 2 * kept


@pytest.mark.parametrize(("share", "unreadable", "is_refused"), [(0.5, 4, False), (0.5, 5, True), (0.25, 3, True)])
def test_a_run_ends_above_the_largest_share_and_names_the_files(tmp_path, photo_folder, share, unreadable, is_refused):
    hook, task = UnreadableImagesHook(tmp_path, share), task_with(unreadable, photo_folder)
    hook.on_phase_start(task)
    hook.on_step(task)
    if is_refused:
        with pytest.raises(
            ConfigError, match=rf"{unreadable} of 8 images could not be read in this epoch.*{share} all"
        ):
            hook.on_phase_end(task)
    else:
        hook.on_phase_end(task)
    listed = (tmp_path / "unreadable_rank0.txt").read_text().splitlines()
    assert listed == [str(path) for path in list_images(photo_folder)[:unreadable]]
