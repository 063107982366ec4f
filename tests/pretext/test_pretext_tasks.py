"""The pretext tasks, each against a slow reference, and what holds for all of them."""

import hashlib
import itertools
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from vissl.data.ssl_transforms.ssl_transforms_wrapper import DEFAULT_TRANSFORM_TYPES, SSLTransformsWrapper

from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.pretext.affine import affine_matrix, warp
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, draw_number, sample_generator
from pirl_plugin.pretext.crops import draw_crop_box, resized_crop
from pirl_plugin.pretext.cutout import cover
from pirl_plugin.pretext.figure import draw
from pirl_plugin.pretext.jigsaw import cut_patches
from pirl_plugin.pretext.rotation import rotate
from pirl_plugin.validation import ConfigError

OFF = dict.fromkeys(
    ("brightness", "contrast", "saturation", "hue", "random_photometric", "grayscale", "horizontal_flip"), 0
)
SMALL = {"image_crop_size": 32, "photometric": OFF}
PATCHES = {**SMALL, "patch_crop_size": 42, "patch_size": 12}
SINGLE = {**SMALL, "pretext_crop_size": 32}
TASKS = {  # name: settings, and those of |T| = 1
    "jigsaw_patch_transform": (PATCHES, {"num_permutations": 1}),
    "rotation_transform": (SINGLE, {"num_rotations": 1}),
    "rotation_jigsaw_transform": (PATCHES, {"num_rotations": 1, "num_permutations": 1}),
    "affine_transform": (SINGLE, {"num_transformations": 1}),
    "channel_shuffle_transform": (SINGLE, {"num_permutations": 1}),
    "cutout_transform": (SINGLE, {"num_transformations": 1}),
}


def make(name, **settings):
    return PRETEXT_TRANSFORMS[name].from_config({"name": name, **TASKS[name][0], **settings})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_tasks_are_here():
    assert set(TASKS) == {name for name, task in PRETEXT_TRANSFORMS.items() if task.__module__.startswith("pirl")} - {
        "image_view_transform"
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_views_and_another_gives_others(name, make_photo):
    task, photo = make(name), make_photo(1, 80, 60)
    first, again, other = (task.views(photo, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("name", TASKS)
def test_a_set_of_one_is_the_identity(name, make_photo):
    settings, one = TASKS[name]
    task, photo = make(name, **one), make_photo(1, 80, 60)
    patches = "patch_size" in settings
    scale, size = ((0.6, 1.0), 42) if patches else ((0.08, 1.0), 32)
    rng = generator(5)
    crop = resized_crop(photo, draw_crop_box(*photo.size, scale, generator=rng), size)
    if patches:
        if name == "rotation_jigsaw_transform":
            draw_number(1, rng)
        crop = cut_patches(crop, 3, 12, torch.randint(3, (9, 2), generator=rng))
    assert torch.equal(task.pretext_views(photo, generator(5)), crop if patches else crop.unsqueeze(0))


@pytest.mark.parametrize("name", TASKS)
def test_the_loader_gets_views_that_the_tasks_head_reads(name, make_photo):
    task = make(name)
    wrapper = SSLTransformsWrapper([], transform_types=DEFAULT_TRANSFORM_TYPES, **{"name": name, **TASKS[name][0]})
    sample = wrapper({"data": [make_photo(1, 80, 60)], "data_idx": [4], "data_valid": [1]})
    assert sample["images"].shape == (3, 32, 32) and len(sample["pretext"]) == task.num_views
    head = PIRLHead(task.branch, in_channels=sample["pretext"][0].numel(), embedding_dim=8)
    assert head(sample["pretext"]).shape == (1, 8)


def test_without_a_task_there_is_the_image_view_alone(make_photo):
    task = PRETEXT_TRANSFORMS["image_view_transform"](image_crop_size=32)
    sample = task({"data": [make_photo(1, 80, 60)]})
    assert set(sample) == {"images"} and sample["images"].shape == (3, 32, 32)


@pytest.mark.parametrize("turns", range(4))
def test_rotations_move_every_pixel_as_pil_does(turns):
    view = torch.randint(256, (3, 7, 7), dtype=torch.uint8, generator=generator())
    expected = Image.fromarray(view.permute(1, 2, 0).numpy()).rotate(90 * turns)
    assert np.array_equal(rotate(view, turns).permute(1, 2, 0).numpy(), np.asarray(expected))
    for y in range(7):
        for x in range(7):
            to = [(y, x), (6 - x, y), (6 - y, 6 - x), (x, 6 - y)][turns]
            assert torch.equal(rotate(view, turns)[:, to[0], to[1]], view[:, y, x])


def test_a_view_that_is_not_square_is_not_rotated():
    with pytest.raises(ValueError, match=r"needs a square view; this one is \(4, 5\)"):
        rotate(torch.zeros(3, 4, 5), 1)
    with pytest.raises(ConfigError, match="must be square: give one number"):
        make("rotation_transform", pretext_crop_size=[224, 192])


def test_all_rotations_are_drawn_equally_often(make_photo):
    task = make("rotation_transform", pretext_crop_scale=[1.0, 1.0])
    square = make_photo(1, 32, 32)
    whole = [task.pretext_views(square, generator(seed))[0] for seed in range(800)]
    plain = resized_crop(square, (0, 0, 32, 32), 32)
    counts = [sum(torch.equal(view, rotate(plain, k)) for view in whole) for k in range(4)]
    assert sum(counts) > 700 and chisquare(counts).pvalue > 1e-3  # a few crops are not the whole image


def test_rotation_jigsaw_turns_first_and_cuts_then(make_photo):
    task, photo = make("rotation_jigsaw_transform"), make_photo(1, 80, 60)
    for seed in range(8):
        rng = generator(seed)
        canvas = resized_crop(photo, draw_crop_box(80, 60, (0.6, 1.0), generator=rng), 42)
        canvas = rotate(canvas, int(torch.randint(4, (), generator=rng)))
        patches = cut_patches(canvas, 3, 12, torch.randint(3, (9, 2), generator=rng))
        assert torch.equal(task.pretext_views(photo, generator(seed)), patches[task.draw_permutation(rng)])


@pytest.mark.parametrize(
    ("angle", "scale", "shear", "move"),
    [(0, 1, 0, (0, 0)), (30, 1, 0, (0, 0)), (-45, 1.3, 10, (0.1, -0.2)), (90, 1, 0, (0, 0)), (10, 0.6, -20, (0, 0.3))],
)
def test_a_warp_equals_a_slow_loop_over_pixels(angle, scale, shear, move):
    size = 12
    view = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator())
    warped = warp(view, affine_matrix(angle, scale, shear, move))
    turn, tangent, centre = math.radians(angle), math.tan(math.radians(shear)), (size - 1) / 2

    def mirrored(place):
        place = (place + 0.5) % (2 * size)
        return min(max((place if place < size else 2 * size - place) - 0.5, 0), size - 1)

    for row in range(size):
        for column in range(size):
            # Undo, one after the other, what is done to a pixel: moved, turned, scaled, sheared.
            x, y = column - centre - move[0] * size, row - centre - move[1] * size
            x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
            x, y = x / scale, y / scale
            x -= tangent * y
            x, y = mirrored(x + centre), mirrored(y + centre)
            left, top = min(int(x), size - 2), min(int(y), size - 2)
            across, down = x - left, y - top
            square = view[:, top : top + 2, left : left + 2].double()
            lines = square[..., 0] * (1 - across) + square[..., 1] * across
            expected = lines[:, 0] * (1 - down) + lines[:, 1] * down
            assert (warped[:, row, column] - expected).abs().max() <= 0.51


def test_a_turn_is_counter_clockwise_as_in_the_rotation_task():
    view = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=generator())
    assert torch.equal(warp(view, affine_matrix(90, 1, 0, (0, 0))), rotate(view, 1))


def test_a_set_of_affine_maps_is_seeded_and_starts_with_the_identity():
    tasks = [
        make("affine_transform", num_transformations=size, set_seed=seed) for size, seed in ((5, 1), (9, 1), (5, 2))
    ]
    assert torch.equal(tasks[0].maps, tasks[1].maps[:5]) and not torch.equal(tasks[0].maps[1:], tasks[2].maps[1:])
    assert torch.equal(tasks[0].maps[0], torch.eye(2, 3))


def test_channels_are_shuffled_and_pixels_stay():
    view = torch.randint(256, (3, 4, 4), dtype=torch.uint8, generator=generator())
    task, seen = make("channel_shuffle_transform"), set()
    for seed in range(60):
        shuffled = task.transform(view, generator(seed))
        order = tuple(next(c for c in range(3) if torch.equal(view[c], channel)) for channel in shuffled)
        assert sorted(order) == [0, 1, 2]
        seen.add(order)
    assert len(seen) == 6


@pytest.mark.parametrize("grid_size", [1, 3, 5])
def test_a_cell_is_covered_pixel_by_pixel(grid_size):
    view = torch.randint(256, (3, 11, 11), dtype=torch.uint8, generator=generator())
    mean = view.double().mean((1, 2)).round()
    times = torch.zeros(11, 11)
    for cell in range(grid_size**2):
        covered = cover(view, cell, grid_size)
        for y in range(11):
            for x in range(11):
                inside = (
                    11 * (cell // grid_size) // grid_size <= y < 11 * (cell // grid_size + 1) // grid_size
                    and 11 * (cell % grid_size) // grid_size <= x < 11 * (cell % grid_size + 1) // grid_size
                )
                assert torch.equal(covered[:, y, x].double(), mean if inside else view[:, y, x].double())
                times[y, x] += inside
    assert (times == 1).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rotation_transform", {"num_rotations": 5}, "between 1 and 4"),
        ("rotation_transform", {"num_rotation": 4}, "did you mean num_rotations"),
        ("channel_shuffle_transform", {"num_permutations": 7}, "between 1 and 6"),
        ("cutout_transform", {"grid_size": 2, "num_transformations": 6}, "between 1 and 5"),
        ("cutout_transform", {"grid_size": 40}, "at most pretext_crop_size, 32"),
        ("affine_transform", {"degrees": 0, "shear": 0, "translation": 0, "scale": [1, 1]}, "only the identity"),
        ("affine_transform", {"scale": [0, 1]}, "scale"),
        ("rotation_transform", {"std": 0.2}, "must be three numbers"),
        ("rotation_transform", {"std": [0.2, 0.2, 1.1]}, "rotation_transform.std is 1.1"),
        ("rotation_transform", {"std": [0.2, 0, 0.2]}, "rotation_transform.std is 0"),
        ("rotation_transform", {"mean": [0, 1, 116]}, "rotation_transform.mean is 116"),
        ("rotation_jigsaw_transform", {"patch_crop_size": 43}, "does not divide"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


@pytest.mark.parametrize("name", TASKS)
def test_images_that_are_not_rgb_are_refused_by_every_task(name, make_photo):
    task, photo = make(name, seed=0), make_photo(1)
    for mode in ("RGBA", "L", "P", "CMYK", "I;16"):
        image = Image.new(mode, (40, 40)) if mode == "I;16" else photo.convert(mode)
        with pytest.raises(ConfigError, match=f"{name} was given an image of the mode {mode}; it takes RGB"):
            task({"data": [image], "data_idx": [0], "data_valid": [1]})
    for tensor in (torch.zeros(4, 40, 40, dtype=torch.uint8), torch.zeros(3, 40, 40), torch.zeros(40, 40)):
        with pytest.raises(ConfigError, match=f"{name} was given a tensor .*; it takes uint8"):
            task.views(tensor)


def test_a_task_that_breaks_its_word_is_told(make_photo):
    class Broken(PRETEXT_TRANSFORMS["rotation_transform"]):
        def pretext_views(self, image, generator):
            return super().pretext_views(image, generator).float() / 255

    with pytest.raises(ValueError, match=r"made 1 views of torch.float32; pretext_views must return uint8"):
        Broken().views(make_photo(1))


def test_a_picture_of_all_tasks_is_drawn(tmp_path, make_photo):
    drawn = draw(make_photo(1, 120, 90), tmp_path / "x.png", columns=2, dpi=40)
    assert set(TASKS) <= set(drawn)
    width, height = Image.open(tmp_path / "x.png").size
    assert height > 20 * len(drawn) and width > 100
    for wrong in ({"dpi": 9}, {"dpi": 1001}, {"columns": 0}, {"columns": 51}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))} is"):
            draw(make_photo(1), tmp_path / "y.png", **wrong)
    with pytest.raises(ConfigError, match="image_view_transform has no pretext views"):
        draw(make_photo(1), tmp_path / "y.png", ["image_view_transform"])
    with pytest.raises(ConfigError, match="did you mean rotation_transform"):
        draw(make_photo(1), tmp_path / "y.png", ["rotation_transfrm"])


def test_what_an_image_gets_depends_on_64_bits_of_its_seed_epoch_and_index():
    """Each half of the digest makes a stream of its own, and the numbers drawn are the two added bit by bit."""

    def draw(generator: torch.Generator) -> torch.Tensor:
        return torch.empty(2000, dtype=torch.int64).random_(0, 2**24, generator=generator)

    digest = hashlib.blake2b(struct.pack("<3q", 3, 1, 7), digest_size=8).digest()
    first, second = (draw(torch.Generator().manual_seed(half)) for half in struct.unpack("<2I", digest))
    assert torch.equal(draw(sample_generator(3, 1, 7)), first ^ second)
    streams = [draw(sample_generator(*key)) for key in ((3, 1, 7), (4, 1, 7), (3, 2, 7), (3, 1, 8))]
    assert all((a != b).float().mean() > 0.99 for a, b in itertools.combinations(streams, 2))
    assert torch.equal(streams[0], draw(sample_generator(3, 1, 7)))


def test_crops_are_anywhere_in_the_image_with_the_same_chance():
    generator = torch.Generator().manual_seed(0)
    boxes = [draw_crop_box(200, 160, (0.2, 0.3), generator=generator) for _ in range(2000)]
    for low, high, side in ((0, 2, 200), (1, 3, 160)):
        free = [box[low] / (side - (box[high] - box[low])) for box in boxes if side > box[high] - box[low]]
        counts = np.histogram(free, bins=8, range=(0, 1))[0]
        assert chisquare(counts).pvalue > 1e-3
    shares = [(right - left) * (bottom - top) / (200 * 160) for left, top, right, bottom in boxes]
    assert (
        min(shares) > 0.195 and max(shares) < 0.305 and chisquare(np.histogram(shares, 5, (0.2, 0.3))[0]).pvalue > 1e-3
    )


def test_crops_of_one_pixel_are_drawn_like_others():
    generator = torch.Generator().manual_seed(0)
    boxes = {draw_crop_box(1, 20, (0.04, 0.06), generator=generator) for _ in range(300)}
    assert all((left, right, bottom - top) == (0, 1, 1) for left, top, right, bottom in boxes) and len(boxes) == 20
