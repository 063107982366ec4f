"""A batch's views made at once against the views made image by image."""

import numpy as np
import pytest
import torch

from pirl_plugin.pretext.batch_views import (
    DrawnViews,
    cut_patches_of_batch,
    draw_crop_boxes,
    draw_jigsaw_views,
    jigsaw_views,
    resized_crops,
)
from pirl_plugin.pretext.crops import draw_crop_box, resized_crop
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform, cut_patches
from pirl_plugin.pretext.rotation_jigsaw import RotationJigsawTransform
from pirl_plugin.validation import ConfigError


def photos(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def transform(cls=JigsawPatchTransform, **settings) -> JigsawPatchTransform:
    common = {"image_crop_size": 32, "patch_crop_size": 42, "patch_size": 12, "num_permutations": 100}
    return cls(**common | {"augment_on": "device", "normalize_on": "device"} | settings)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 90), (9, 200)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.6, 0.9)])
def test_boxes_are_distributed_as_those_drawn_one_by_one(height, width, scale):
    count = 20_000
    boxes = draw_crop_boxes(count, width, height, scale, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    single = np.array([draw_crop_box(width, height, scale, generator=generator) for _ in range(count)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    for columns in ([0], [1], [2], [3], [0, 2], [1, 3]):
        values, others = boxes[:, columns].sum(1), single[:, columns].sum(1)
        for power in (1, 2):
            mine, theirs = (values / width) ** power, (others / width) ** power
            error = np.sqrt((mine.var() + theirs.var()) / count) + 1e-9
            assert abs(mine.mean() - theirs.mean()) < 5 * error
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, single)]
    assert np.quantile(areas[0], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(areas[1], [0.1, 0.5, 0.9]), rel=0.03)


@pytest.mark.parametrize("size", [1, 8, 32, 42, 64])
def test_a_batch_is_cropped_as_image_by_image(size):
    images = photos(40, 36, 50)
    boxes = draw_crop_boxes(40, 50, 36, (0.05, 1.0), torch.Generator().manual_seed(2))
    boxes[0], boxes[1] = (0, 0, 50, 36), (49, 35, 50, 36)  # everything, and a single pixel
    at_once = resized_crops(images, torch.from_numpy(boxes), size)
    assert at_once.dtype == torch.uint8 and at_once.shape == (40, 3, size, size)
    for image, box, made in zip(images, boxes.tolist(), at_once, strict=True):
        difference = (made.int() - resized_crop(image, tuple(box), size).int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.4


@pytest.mark.parametrize(("grid", "patch"), [(3, 12), (2, 21), (3, 14)])
def test_patches_of_a_batch_are_those_of_each_canvas_in_its_order(grid, patch):
    canvases, places = photos(6, 42, 42), grid * grid
    offsets = torch.randint(42 // grid - patch + 1, (6, places, 2))
    order = torch.stack([torch.randperm(places) for _ in range(6)])
    made = cut_patches_of_batch(canvases, grid, patch, offsets, order)
    single = [cut_patches(c, grid, patch, o)[p] for c, o, p in zip(canvases, offsets, order, strict=True)]
    assert torch.equal(made, torch.cat(single))


def test_the_views_of_a_batch_are_those_of_each_image():
    task, images = transform(), photos(5)
    drawn = draw_jigsaw_views(task, 5, 32, 32, torch.Generator().manual_seed(4))
    views = jigsaw_views(task, images, drawn)
    assert views["images"].shape == (5, 3, 32, 32) and views["pretext"].shape == (45, 3, 12, 12)
    for number, image in enumerate(images):
        canvas = resized_crop(image, tuple(drawn.canvas_boxes[number].tolist()), 42)
        patches = cut_patches(canvas, 3, 12, torch.from_numpy(drawn.offsets[number]))[drawn.order[number]]
        plain = resized_crop(image, tuple(drawn.image_boxes[number].tolist()), 32).unsqueeze(0)
        single = task.finish({"images": plain, "pretext": patches}, drawn.parameters[number : number + 1])
        for key, own in (("images", slice(number, number + 1)), ("pretext", slice(9 * number, 9 * number + 9))):
            difference = (views[key][own] - single[key]).abs()
            # A level is 1 / 255 / std = 0.018; posterize, solarize and autocontrast can make more of one.
            assert difference.median() < 0.02 and (difference > 0.1).float().mean() < 0.1


def test_the_order_is_of_the_set_and_every_image_draws_its_own():
    task = transform(num_permutations=3)
    drawn = draw_jigsaw_views(task, 3000, 32, 32, torch.Generator().manual_seed(0))
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 3 and counts.min() > 850 and list(range(9)) in orders.tolist()
    assert set(np.unique(drawn.offsets)) == {0, 1, 2}
    assert len(np.unique(drawn.image_boxes, axis=0)) > 1000 and (drawn.image_boxes != drawn.canvas_boxes).any()


def test_a_transform_that_a_batch_cannot_do_is_refused():
    images, drawn = photos(2), draw_jigsaw_views(transform(), 2, 32, 32)
    assert isinstance(drawn, DrawnViews)
    with pytest.raises(ConfigError, match="augment_on is 'workers'"):
        jigsaw_views(transform(augment_on="workers"), images, drawn)
    with pytest.raises(ConfigError, match="no form for a whole batch"):
        jigsaw_views(transform(RotationJigsawTransform), images, drawn)


def test_ten_boxes_are_tried_before_the_central_one_is_taken():
    """Of 97% of the area, few boxes fit; the central one is the whole image, which no other box is."""
    width, height, scale = 200, 160, (0.97, 0.97)
    aspects = np.exp(np.random.default_rng(0).uniform(np.log(3 / 4), np.log(4 / 3), 1_000_000))
    area = scale[0] * width * height
    fits = (np.round(np.sqrt(area * aspects)) <= width) & (np.round(np.sqrt(area / aspects)) <= height)
    share = (1 - fits.mean()) ** 10
    generator = torch.Generator().manual_seed(0)
    singles = [draw_crop_box(width, height, scale, generator=generator) for _ in range(4000)]
    for boxes in (draw_crop_boxes(20_000, width, height, scale, generator), np.array(singles)):
        whole = (boxes == (0, 0, width, height)).all(1).mean()
        assert abs(whole - share) < 3.5 * np.sqrt(share * (1 - share) / len(boxes)), (whole, share)
