import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from pirl_plugin.pretext.crops import draw_crop_box, resized_crop
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform, cut_patches
from pirl_plugin.validation import ConfigError

OFF = {
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "hue": 0,
    "random_photometric": 0,
    "grayscale": 0,
    "horizontal_flip": 0,
}


def test_patches_are_cut_pixel_by_pixel_where_the_offsets_say():
    canvas = torch.arange(3 * 30 * 30).reshape(3, 30, 30)
    offsets = torch.randint(0, 5, (9, 2), generator=torch.Generator().manual_seed(0))
    patches = cut_patches(canvas, 3, 6, offsets)
    for n in range(9):
        for y in range(6):
            for x in range(6):
                down, right = offsets[n].tolist()
                assert torch.equal(patches[n, :, y, x], canvas[:, (n // 3) * 10 + down + y, (n % 3) * 10 + right + x])


@pytest.mark.parametrize("size", [24, 64, 150])
def test_a_crop_equals_torchvisions_crop_and_resize_of_pil_to_a_level(make_photo, size):
    photo = make_photo(1, 120, 90)
    box = (11, 7, 83, 70)
    theirs = tvf.resized_crop(photo, box[1], box[0], box[3] - box[1], box[2] - box[0], [size, size])
    for image in (photo, tvf.pil_to_tensor(photo)):
        difference = (resized_crop(image, box, size).int() - tvf.pil_to_tensor(theirs).int()).abs()
        assert difference.max() <= 1 and difference.float().mean() < 0.1


def test_crop_boxes_lie_inside_and_cover_the_stated_area():
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(3000):
        left, top, right, bottom = draw_crop_box(200, 150, (0.6, 1.0), generator=generator)
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 150
        areas.append((right - left) * (bottom - top) / 30000)
    assert min(areas) > 0.58 and max(areas) <= 1
    assert 0.7 < np.mean(areas) < 0.8


def test_a_crop_of_an_extreme_panorama_falls_back_to_the_centre():
    box = draw_crop_box(1000, 10, (0.9, 1.0), generator=torch.Generator().manual_seed(0))
    assert box == (493, 0, 506, 10) or box == (494, 0, 507, 10)


def _gradient(size: int = 255) -> Image.Image:
    """An image whose pixels say where they are: red the column, green the row."""
    axis = np.arange(size, dtype=np.uint8)
    return Image.fromarray(np.stack(np.broadcast_arrays(axis[None, :], axis[:, None], axis[:1]), -1))


def _place(patch: torch.Tensor, cell: int = 85) -> tuple[int, int, int]:
    """(cell number, down, right) of a 64x64 patch of `_gradient`."""
    right, down = int(patch[0, 0, 0]), int(patch[1, 0, 0])
    return (down // cell) * 3 + right // cell, down % cell, right % cell


def test_patches_come_in_the_permutations_order_with_every_offset_drawn():
    transform = JigsawPatchTransform(patch_crop_scale=[1.0, 1.0], num_permutations=50, photometric=OFF)
    generator = torch.Generator().manual_seed(0)
    photo, offsets, orders = _gradient(), set(), set()
    for _ in range(400):
        patches = transform.pretext_views(photo, generator)
        assert patches.shape == (9, 3, 64, 64)
        places = [_place(patch) for patch in patches]
        orders.add(tuple(place[0] for place in places))
        offsets.update(offset for place in places for offset in place[1:])
    allowed = {tuple(row) for row in transform_permutations(transform).tolist()}
    assert orders <= allowed and len(orders) > 45
    assert offsets == set(range(22))  # 85 - 64 = 21 is reached


def transform_permutations(transform):
    from pirl_plugin.pretext.permutations import permutation_set

    return permutation_set(9, transform.num_permutations, transform.permutation_seed)


def test_one_permutation_keeps_the_patches_in_place():
    transform = JigsawPatchTransform(patch_crop_scale=[1.0, 1.0], num_permutations=1)
    patches = transform.pretext_views(_gradient(), None)
    assert [_place(patch)[0] for patch in patches] == list(range(9))


def test_the_same_generator_state_gives_the_same_views(make_photo):
    transform = JigsawPatchTransform()
    photo = make_photo(3, 300, 200)
    first = transform.views(photo, torch.Generator().manual_seed(5))
    again = transform.views(photo, torch.Generator().manual_seed(5))
    other = transform.views(photo, torch.Generator().manual_seed(6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(32, 32, "RGB"), (3840, 2160, "RGB"), (40, 2000, "RGB"), (100, 80, "L"), (100, 80, "P"), (100, 80, "CMYK")],
)
def test_photos_of_all_sizes_and_kinds_become_views(tmp_path, make_photo, width, height, mode):
    from pirl_plugin.data.image_files import load_rgb

    path = tmp_path / ("photo.png" if mode == "P" else "photo.jpg")
    make_photo(1, width, height).convert(mode).save(path)
    image, patches = JigsawPatchTransform().views(load_rgb(path))
    assert image.shape == (3, 224, 224) and patches.shape == (9, 3, 64, 64)
    assert image.dtype == patches.dtype == torch.float32
    assert torch.isfinite(image).all() and torch.isfinite(patches).all()


def test_normalisation_is_undone_by_mean_and_std():
    transform = JigsawPatchTransform(
        image_crop_size=32, image_crop_scale=[1.0, 1.0], photometric=OFF, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]
    )
    image, _ = transform.views(Image.new("RGB", (64, 64), (255, 128, 0)))
    expected = (torch.tensor([1, 128 / 255, 0]) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(image[:, 5, 5], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_crop_size": 256}, "a grid of 3 x 3 does not divide"),
        ({"patch_size": 86}, "must fit the grid's cells of 85 x 85"),
        ({"num_permutations": math.factorial(9) + 1}, r"\(\|T\|\) is 362881; .* between 1 and 362880"),
        ({"num_permutations": 0}, "between 1 and 362880"),
        ({"grid_size": 2.5}, "grid_size is 2.5"),
        ({"grid_size": 17}, "grid_size is 17"),  # 255 pixels are 17 x 15
        ({"patch_crop_scale": [0.6, 1.2]}, "patch_crop_scale"),
        ({"image_crop_scale": [0.9, 0.2]}, "low <= high"),
        ({"mean": [0.5, 0.5]}, "three numbers"),
        ({"std": [0.0, 0.2, 0.2]}, "std"),
        ({"num_permutation": 5}, r"did you mean num_permutations\?"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        JigsawPatchTransform.from_config({"name": "jigsaw_patch_transform", **settings})
