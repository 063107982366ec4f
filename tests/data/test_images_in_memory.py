"""Images that lie decoded on the device: their epochs, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.data.images_in_memory import ImagesInMemory, read_images
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.validation import ConfigError

TRANSFORM = {"image_crop_size": 32, "patch_crop_size": 42, "patch_size": 12, "num_permutations": 50}


def in_memory(seed: int = 0, count: int = 50) -> ImagesInMemory:
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return ImagesInMemory(images, JigsawPatchTransform(**TRANSFORM, augment_on="device", normalize_on="device"), seed)


def test_an_epoch_shows_each_image_once_and_the_next_in_another_order():
    data = in_memory()
    first, second = ([index for _, _, index in data.batches(epoch, 8)] for epoch in (0, 1))
    assert [len(index) for index in first] == [8] * 6
    assert len(torch.cat(first).unique()) == 48
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_the_views_are_of_the_images_that_the_index_names():
    """Black and white photos stay as dark and as light as they are when nothing but crops is done."""
    plain = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "random_photometric", "grayscale"), 0.0)
    task = JigsawPatchTransform(**TRANSFORM, augment_on="device", normalize_on="device", photometric=plain)
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    images += (torch.arange(20) * 12).to(torch.uint8).view(-1, 1, 1, 1)
    for views, patches, index in ImagesInMemory(images, task).batches(0, 5):
        levels = task.normalize((index * 12).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1))
        assert torch.allclose(views, levels.expand_as(views), atol=1e-4)
        assert torch.allclose(patches.unflatten(0, (5, 9)), levels.unsqueeze(1).expand(-1, 9, -1, 12, 12), atol=1e-4)


def test_an_epoch_depends_on_seed_and_number_alone_and_goes_on_where_it_was_left():
    whole, again, other = (list(in_memory(seed).batches(3, 8)) for seed in (0, 0, 1))
    rest = list(in_memory().batches(3, 8, start=4))
    assert len(rest) == 2
    for one, same in zip([*whole, *whole[4:]], [*again, *rest], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(whole[0][2], other[0][2])


def test_images_are_read_as_they_are_and_odd_ones_are_refused_by_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    assert torch.equal(read_images(files), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    Image.fromarray(pixels[0, :10]).save(files[1])
    with pytest.raises(ConfigError, match=r"1\.png has 30 x 10 pixels and the first image 30 x 20"):
        read_images(files)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"2\.png cannot be read"):
        read_images([files[0], files[2]])
    with pytest.raises(ConfigError, match="no image"):
        read_images([])
    with pytest.raises(ConfigError, match="must be uint8"):
        ImagesInMemory(torch.zeros(4, 3, 8, 8), JigsawPatchTransform(**TRANSFORM))
