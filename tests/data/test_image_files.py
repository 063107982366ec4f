import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from pirl_plugin.data.class_folders import class_folders
from pirl_plugin.data.collator import IGNORED, pirl_collator
from pirl_plugin.data.image_files import ImageFiles, list_images, load_pixels, load_rgb
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.crops import draw_crop_box, resized_crop
from pirl_plugin.validation import ConfigError


def test_a_folder_of_any_depth_is_listed_in_order_of_names(tmp_path, make_photo):
    for name in ("b/z/2.png", "a.JPG", "b/1.jpeg", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            make_photo(1).save(tmp_path / name, format="PNG")
    names = [str(f).removeprefix(f"{tmp_path}/") for f in list_images(tmp_path)]
    assert names == ["a.JPG", "b/1.jpeg", "b/z/2.png"]


@pytest.mark.parametrize("kind", ["txt", "npy"])
def test_a_list_of_files_is_read_relative_to_itself(tmp_path, kind):
    paths = ["x/1.jpg", "/absolute/2.jpg"]
    if kind == "txt":
        (tmp_path / "list.txt").write_text("\n".join(paths) + "\n\n")
    else:
        np.save(tmp_path / "list.npy", np.array(paths))
    assert list_images(tmp_path / f"list.{kind}") == [f"{tmp_path}/x/1.jpg", "/absolute/2.jpg"]


def test_no_images_and_no_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(ConfigError, match="There is no data at"):
        list_images(tmp_path / "missing")


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path, make_photo):
    (tmp_path / "a").mkdir()
    make_photo(1).save(tmp_path / "a" / "x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert list_images(tmp_path) == [f"{tmp_path}/a/x.jpg"]


def test_a_list_that_is_no_text_is_refused(tmp_path):
    np.save(tmp_path / "list.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    for kind in ("npy", "txt"):
        with pytest.raises(ConfigError, match="cannot be read as text"):
            list_images(tmp_path / f"list.{kind}")


def test_fewer_images_than_one_batch_are_refused(photo_folder):
    config = {"DATA": {"TRAIN": {"DROP_LAST": True, "BATCHSIZE_PER_REPLICA": 64}}}
    with pytest.raises(ConfigError, match="holds 48 images, fewer than one batch"):
        ImageFiles(config, "image_files", str(photo_folder), "TRAIN", "x")


def test_labels_are_the_first_folder_below(photo_folder, tmp_path, make_photo):
    config = {"DATA": {"TRAIN": {"DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 64}}}
    source = ImageFiles(config, "image_files", str(photo_folder), "TRAIN", "x")
    assert source.get_labels() == [number for number in range(4) for _ in range(12)]
    make_photo(1).save(tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match="outside class folders"):
        ImageFiles(config, "image_files", str(tmp_path), "TRAIN", "x").get_labels()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("P", 0, None),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_kind_of_file_becomes_rgb(tmp_path, mode, color, expected):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (8, 8), color).save(path)
    image = load_rgb(path)
    assert image.mode == "RGB" and image.size == (8, 8)
    if expected is not None:
        assert image.getpixel((3, 3)) == expected


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    image = np.asarray(load_rgb(tmp_path / "x.png"))
    assert image[0, 0, 0] == 0 and image[-1, -1, 0] == 255 and 100 < image[4, 0, 0] < 160
    Image.fromarray((levels / 65535).astype(np.float32)).save(tmp_path / "x.tif")
    np.testing.assert_allclose(np.asarray(load_rgb(tmp_path / "x.tif")), image, atol=1)


def test_unreadable_files_are_marked_and_named(tmp_path, make_photo, caplog):
    make_photo(1).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.jpg").write_text("no image")
    config = {"DATA": {"TRAIN": {"DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 8}}}
    source = ImageFiles(config, "image_files", str(tmp_path), "TRAIN", "x")
    assert [source[i][1] for i in range(4)] == [True, False, False, False]
    assert all(name in caplog.text for name in ("b.jpg", "c.jpg", "d.jpg"))


@pytest.mark.parametrize("read", [load_rgb, load_pixels])
def test_a_named_pipe_is_unreadable_at_once(read, tmp_path):
    os.mkfifo(tmp_path / "a.jpg")  # opened as usual, it would wait for someone to write to it
    with pytest.raises(UnidentifiedImageError):
        read(tmp_path / "a.jpg")


def sample(index, valid, value):
    return {
        "images": torch.full((3, 4, 4), float(value)),
        "pretext": torch.full((9, 3, 2, 2), float(value)),
        "data_idx": [index],
        "data_valid": [1 if valid else -1],
        "label": [77],
    }


def test_the_batch_holds_only_what_was_read_with_its_index_in_the_data_set():
    batch = pirl_collator([sample(5, True, 0), sample(3, False, 1), sample(8, True, 2)])
    (images,), (pretext,), (index,) = batch["images"], batch["pretext"], batch["image_index"]
    assert index.tolist() == [5, 8]  # not the class label 77
    assert images[:, 0, 0, 0].tolist() == [0, 2]
    assert pretext[:, 0, 0, 0].tolist() == [0.0] * 9 + [2.0] * 9
    assert batch["data_idx"][0].tolist() == [5, 3, 8]
    assert batch["data_valid"][0].tolist() == [True, False, True]


def test_a_batch_of_which_nothing_was_read_is_kept_but_ignored():
    batch = pirl_collator([sample(5, False, 0), sample(3, False, 1)])
    assert batch["image_index"][0].tolist() == [IGNORED, IGNORED]
    assert len(batch["images"][0]) == 2


def test_a_batch_of_one_keeps_its_dimensions():
    batch = pirl_collator([sample(5, True, 0)])
    assert batch["image_index"][0].shape == (1,) and batch["images"][0].shape == (1, 3, 4, 4)


def test_usual_jpegs_are_decoded_to_the_levels_of_pil_and_others_by_it(tmp_path, make_photo):
    photo = make_photo(3, 90, 61)
    for name, image, settings in (
        ("colour.jpg", photo, {"quality": 90}),
        ("grey.jpg", photo.convert("L"), {"quality": 90}),
        ("progressive.jpg", photo, {"quality": 90, "progressive": True}),
        ("cmyk.jpg", photo.convert("CMYK"), {"quality": 90}),
        ("png.jpg", photo, {"format": "PNG"}),
    ):
        image.save(tmp_path / name, **settings)
        pixels = load_pixels(tmp_path / name)
        assert pixels.dtype == torch.uint8 and pixels.permute(1, 2, 0).is_contiguous()
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(load_rgb(tmp_path / name)))


def test_a_broken_jpeg_is_broken_for_the_fast_decoder_too(tmp_path, make_photo):
    make_photo(3, 90, 61).save(tmp_path / "x.jpg", quality=90)
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        load_pixels(tmp_path / "x.jpg")


def test_large_photos_are_decoded_smaller_where_no_view_loses_a_pixel(tmp_path, make_photo):
    photo = make_photo(3, 2400, 1600)
    photo.save(tmp_path / "x.jpg", quality=95)
    task = PRETEXT_TRANSFORMS["jigsaw_patch_transform"]()
    pixels = load_pixels(tmp_path / "x.jpg", task.largest_reduction)
    assert pixels.shape == (3, 800, 1200)  # the smallest crop has 8% of the area: 453 x 679, at half size 226
    small = PRETEXT_TRANSFORMS["jigsaw_patch_transform"](image_crop_size=32, patch_crop_size=63, patch_size=16)
    assert load_pixels(tmp_path / "x.jpg", small.largest_reduction).shape == (3, 200, 300)
    assert load_pixels(tmp_path / "x.jpg").shape == (3, 1600, 2400)
    make_photo(3, 500, 375).save(tmp_path / "y.jpg", quality=95)
    assert load_pixels(tmp_path / "y.jpg", task.largest_reduction).shape == (3, 375, 500)
    # The same view, whether the photo was decoded whole or at half size.
    whole = resized_crop(load_pixels(tmp_path / "x.jpg"), (400, 300, 1400, 1200), 224)
    half = resized_crop(pixels, (200, 150, 700, 600), 224)
    assert (whole.int() - half.int()).abs().float().mean() < 1


@pytest.mark.parametrize("name", sorted(PRETEXT_TRANSFORMS))
def test_no_crop_of_a_reduced_photo_is_smaller_than_its_view(name):
    task = PRETEXT_TRANSFORMS[name]()
    generator = torch.Generator().manual_seed(0)
    for width, height in ((3000, 2000), (900, 2700), (640, 640)):
        reduction = max(1.0, task.largest_reduction(width, height))
        size = round(width / reduction), round(height / reduction)
        for _ in range(200):
            left, top, right, bottom = draw_crop_box(*size, task.image_crop_scale, generator=generator)
            assert reduction == 1 or min(right - left, bottom - top) >= task.image_crop_size - 1


def test_hidden_folders_and_files_of_other_programs_are_no_images_and_no_classes(tmp_path, make_photo):
    for name in (
        "a/1.jpg",
        "b/2.jpg",
        ".ipynb_checkpoints/3.jpg",
        "b/@eaDir/2.jpg/4.jpg",
        "__MACOSX/5.jpg",
        "a/._1.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_photo(1, 20, 20).save(tmp_path / name)
    assert [os.path.relpath(file, tmp_path) for file in list_images(tmp_path)] == ["a/1.jpg", "b/2.jpg"]
    assert [path.name for path in class_folders(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_a_float_image_with_a_level_that_is_no_number_is_unreadable(tmp_path, level):
    levels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "good.tif")
    assert np.asarray(load_rgb(tmp_path / "good.tif")).max() == 255
    levels[3, 4] = level
    Image.fromarray(levels).save(tmp_path / "bad.tif")
    with pytest.raises(ValueError, match="not numbers"):
        load_rgb(tmp_path / "bad.tif")


def test_levels_below_zero_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "x.tif")
    levels = np.asarray(load_rgb(tmp_path / "x.tif"))[..., 0].reshape(-1)
    assert levels[0] == 0 and levels[-1] == 255 and np.unique(levels).size > 250


def test_levels_above_zero_keep_their_distance_from_black(tmp_path):
    Image.fromarray(np.linspace(0.6, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "x.tif")
    levels = np.asarray(load_rgb(tmp_path / "x.tif"))[..., 0].reshape(-1)
    assert levels[0] == 153 and levels[-1] == 255


@pytest.mark.parametrize("transforms", [[{"name": "jigsaw_patch_transform"}], [{"name": "ToTensor"}]])
def test_in_place_of_a_broken_file_comes_grey_of_the_kind_that_is_expected(tmp_path, make_photo, transforms):
    make_photo(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    data = {"TRANSFORMS": transforms, "DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 2}
    images = ImageFiles({"DATA": {"TRAIN": data}}, "image_files", str(tmp_path), "TRAIN", "image_files")
    (good, read), (grey, unread) = images[0], images[1]
    assert read and not unread and type(good) is type(grey)
    pixels = grey.permute(1, 2, 0).numpy() if isinstance(grey, torch.Tensor) else np.asarray(grey)
    assert pixels.shape == (64, 64, 3) and (pixels == 128).all()


def labels_of(path) -> list[int]:
    config = {"DATA": {"TRAIN": {"DROP_LAST": False, "BATCHSIZE_PER_REPLICA": 64}}}
    return ImageFiles(config, "image_files", str(path), "TRAIN", "x").get_labels()


@pytest.mark.parametrize("written", ["../photos/{}", "photos/{}", "{folder}/photos/{}"])
@pytest.mark.parametrize("kind", ["txt", "npy"])
def test_classes_of_a_list_are_the_folders_below_that_of_all_its_images(written, kind, tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "photos")
    files = list_images(photo_folder)[::-1]  # in an order of its own
    lines = [written.format(os.path.relpath(file, photo_folder), folder=tmp_path) for file in files]
    path = tmp_path / ("lists" if ".." in written else "") / f"train.{kind}"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines)) if kind == "txt" else np.save(path, np.array(lines))
    assert labels_of(path) == [number for number in (3, 2, 1, 0) for _ in range(12)]
    lines = lines[:12]
    path.write_text("\n".join(lines)) if kind == "txt" else np.save(path, np.array(lines))
    with pytest.raises(ConfigError, match="outside class folders"):
        labels_of(path)


def test_an_empty_class_has_a_number_and_one_class_is_too_few(tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "photos" / "0").mkdir()
    assert labels_of(tmp_path / "photos") == [number for number in (1, 2, 3, 4) for _ in range(12)]
    only = sorted(photo_folder.iterdir())[1]
    shutil.copytree(only, tmp_path / "one" / only.name)
    with pytest.raises(ConfigError, match=f"images of one class only, '{only.name}'; labels need at least two"):
        labels_of(tmp_path / "one")
