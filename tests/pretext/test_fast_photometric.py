"""The 8-bit augmentation of the loader's workers against PIL's and torchvision's on PIL images, which VISSL uses."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as tv

from pirl_plugin.pretext import fast_photometric, photometric
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.photometric import PhotometricSettings
from pirl_plugin.validation import ConfigError

ALL_OFF = {"color_jitter_probability": 0, "random_photometric": 0, "grayscale": 0, "horizontal_flip": 0}
ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def by_pil(pixels: np.ndarray, parameters: np.void) -> np.ndarray:
    """The slow, obvious reference: one PIL operation after the other."""
    image = Image.fromarray(pixels)
    if parameters["jitter"]:
        for number in parameters["order"]:
            image = ADJUST[number](image, float(parameters["factors"][number]))
    if parameters["photometric"]:
        image = ImageOps.posterize(image, int(parameters["bits"]))
        image = ImageEnhance.Sharpness(image).enhance(float(parameters["sharpness"]))
        image = ImageOps.autocontrast(ImageOps.solarize(image, int(parameters["thresholds"])))
    if parameters["grayscale"]:
        image = image.convert("L").convert("RGB")
    if parameters["blur"]:
        image = image.filter(ImageFilter.GaussianBlur(float(parameters["sigma"]) * image.width))
    if parameters["flip"]:
        image = ImageOps.mirror(image)
    return np.asarray(image)


def draw(count: int, settings: dict) -> np.ndarray:
    return photometric.draw(count, PhotometricSettings(**{**ALL_OFF, **settings}), torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def views(make_photo):
    """uint8 [96, 3, 48, 48] of smooth and of detailed photos, channels last."""
    photos = []
    for seed in range(96):
        pixels = np.asarray(make_photo(seed, 48, 48)).astype(int)
        noise = np.random.default_rng(seed).integers(-12, 13, pixels.shape) * (seed % 2)
        photos.append((pixels + noise).clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)


# Settings, and the mean and 99th percentile of the difference from PIL that they may have, in levels of 255. These
# photos are more colourful than real ones, on which hue is within 0.4 and all together within 0.9 on average.
CASES = {
    "brightness": ({"color_jitter_probability": 1, "contrast": 0, "saturation": 0, "hue": 0}, 0.6, 4),
    "contrast": ({"color_jitter_probability": 1, "brightness": 0, "saturation": 0, "hue": 0}, 0.6, 4),
    "saturation": ({"color_jitter_probability": 1, "brightness": 0, "contrast": 0, "hue": 0}, 0.6, 4),
    "hue": ({"color_jitter_probability": 1, "brightness": 0, "contrast": 0, "saturation": 0}, 1.1, 8),
    "all of the jitter": ({"color_jitter_probability": 1}, 1.1, 8),
    "posterize to autocontrast": ({"random_photometric": 1}, 1.0, 4),
    "grey": ({"grayscale": 1}, 0.1, 1),
    "flip": ({"horizontal_flip": 1}, 0, 0),
    "blur": ({"blur": 1, "blur_sigma_low": 0.01, "blur_sigma_high": 0.03}, 0.6, 3),
    "nothing": ({}, 0, 0),
    "VISSL's PIRL": ({"color_jitter_probability": 1, "random_photometric": 0.66, "grayscale": 0.2}, 2.2, 20),
}


@pytest.mark.parametrize("case", CASES)
def test_views_are_those_of_pil_within_the_stated_tolerance(views, case):
    settings, mean, high = CASES[case]
    drawn = photometric.draw(
        len(views), PhotometricSettings(**{**ALL_OFF, **settings}), torch.Generator().manual_seed(3)
    )
    got = fast_photometric.augment(views, drawn).permute(0, 2, 3, 1).numpy().astype(int)
    pixels = views.permute(0, 2, 3, 1).numpy()
    expected = np.stack([by_pil(view, one) for view, one in zip(pixels, drawn, strict=True)])
    difference = np.abs(got - expected)
    assert difference.mean() <= mean and np.percentile(difference, 99) <= high
    assert abs((got - expected).mean()) < 0.3  # and no drift to dark or light


@pytest.mark.parametrize("case", CASES)
def test_the_devices_float_operations_make_the_same_views_from_the_same_parameters(views, case):
    """Rounding nowhere, they drift from PIL by half a level an operation, and posterize and solarize jump."""
    settings, _, _ = CASES[case]
    drawn = photometric.draw(
        len(views), PhotometricSettings(**{**ALL_OFF, **settings}), torch.Generator().manual_seed(3)
    )
    fast = fast_photometric.augment(views, drawn).float()
    device = photometric.apply(views.float() / 255, drawn) * 255
    difference = (fast - device).abs()
    assert difference.mean() < 4.5 and difference.median() < 2
    # The same statistics of a view, as far as a network could tell.
    assert (fast.mean((1, 2, 3)) - device.mean((1, 2, 3))).abs().mean() < 4


def test_any_memory_format_gives_the_same_views(views):
    drawn = photometric.draw(len(views), PhotometricSettings(), torch.Generator().manual_seed(0))
    assert torch.equal(fast_photometric.augment(views, drawn), fast_photometric.augment(views.contiguous(), drawn))
    assert fast_photometric.augment(views, drawn).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 2, 5), (1, 3, 3, 3)])
def test_the_smallest_views_survive(shape):
    settings = PhotometricSettings(random_photometric=1, blur=1, blur_sigma_low=0.5, blur_sigma_high=0.5)
    views = torch.randint(256, shape, dtype=torch.uint8)
    assert fast_photometric.augment(views, photometric.draw(shape[0], settings)).shape == shape


def test_the_views_given_are_left_as_they_are(views):
    before = views.clone()
    fast_photometric.augment(views, photometric.draw(len(views), PhotometricSettings(random_photometric=1)))
    assert torch.equal(views, before)


def test_without_opencv_it_is_refused_and_the_pretext_task_goes_on_without(monkeypatch, make_photo, caplog):
    task = PRETEXT_TRANSFORMS["rotation_transform"](image_crop_size=32, pretext_crop_size=32)
    photo = make_photo(1)
    image, pretext = task.views(photo, torch.Generator().manual_seed(1))
    monkeypatch.setattr(fast_photometric, "cv2", None)
    with pytest.raises(ConfigError, match=r"OpenCV is not installed.*pip install opencv-python-headless"):
        fast_photometric.augment(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), photometric.draw(1, PhotometricSettings()))
    slow_image, slow_pretext = task.views(photo, torch.Generator().manual_seed(1))
    assert "several times slower" in caplog.text
    for fast, slow in ((image, slow_image), (pretext, slow_pretext)):
        assert fast.shape == slow.shape and (fast - slow).abs().mean() < 0.1


def test_the_defaults_are_those_of_vissls_pirl():
    # ImgPilColorDistortion's jitter, its RandomPhotometric at 0.66, SimCLR's blur of 0.1 to 2 pixels at 224, off.
    assert dataclasses.asdict(PhotometricSettings()) == {
        "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2, "color_jitter_probability": 1.0,
        "random_photometric": 0.66, "grayscale": 0.2, "blur": 0.0, "blur_sigma_low": pytest.approx(0.1 / 224),
        "blur_sigma_high": pytest.approx(2 / 224), "horizontal_flip": 0.5,
    }  # fmt: skip
