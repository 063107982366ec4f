import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pirl_plugin.data.collator import IGNORED, pirl_collator
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.data.views import ImageViews
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.pretext.rotation import RotationTransform

SMALL = {"image_crop_size": 32, "patch_crop_size": 42, "patch_size": 12}


def test_an_items_views_are_the_transforms_of_its_file(photo_folder):
    views = ImageViews(photo_folder, RotationTransform(image_crop_size=32, pretext_crop_size=32, seed=5))
    views.set_epoch(2)
    assert views.files == list_images(photo_folder)
    again = RotationTransform(image_crop_size=32, pretext_crop_size=32, seed=5)
    again.epoch = 2
    sample = {"data": [load_rgb(views.files[7])], "data_idx": [7], "data_valid": [1]}
    expected, item = again(sample), views[7]
    assert set(item) == set(expected)
    torch.testing.assert_close(item["images"], expected["images"], rtol=0, atol=0.1)  # the decoders differ by levels
    views.set_epoch(3)
    assert not torch.equal(views[7]["images"], item["images"])


def test_workers_that_persist_see_each_epoch(photo_folder):
    views = ImageViews(list_images(photo_folder)[:4], JigsawPatchTransform(**SMALL, seed=0))
    loader = DataLoader(views, 4, num_workers=1, persistent_workers=True, collate_fn=pirl_collator)
    alone = ImageViews(views.files, JigsawPatchTransform(**SMALL, seed=0))
    for epoch in (0, 1, 1, 7):
        views.set_epoch(epoch)
        alone.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["images"][0], torch.stack([alone[place]["images"] for place in range(4)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_leave_out_what_cannot_be_read_and_name_each_image_by_its_place(photo_folder, tmp_path, workers):
    files = list_images(photo_folder)[:6]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    files.insert(2, str(tmp_path / "broken.jpg"))
    loader = DataLoader(
        ImageViews(files, JigsawPatchTransform(**SMALL)), 7, num_workers=workers, collate_fn=pirl_collator
    )
    (batch,) = loader
    assert batch["image_index"][0].tolist() == [0, 1, 3, 4, 5, 6]
    assert batch["images"][0].shape == (6, 3, 32, 32) and batch["pretext"][0].shape == (54, 3, 12, 12)
    assert np.array_equal(batch["data_valid"][0], [True, True, False, True, True, True, True])


def test_a_batch_of_which_nothing_can_be_read_has_no_image_that_counts(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (batch,) = DataLoader(ImageViews(tmp_path, JigsawPatchTransform(**SMALL)), 1, collate_fn=pirl_collator)
    assert batch["image_index"][0].tolist() == [IGNORED]
