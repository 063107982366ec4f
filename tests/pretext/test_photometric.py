import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as tv

from pirl_plugin.pretext import photometric
from pirl_plugin.pretext.photometric import PhotometricSettings
from pirl_plugin.validation import ConfigError


@pytest.fixture
def views():
    """Smooth 8-bit views, so that quantising operations see whole levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(20, 24), mode="bilinear")
    return (fine * 255).round() / 255


FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.4, 1.9, 0.6])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (photometric.adjust_brightness, tv.adjust_brightness),
        (photometric.adjust_contrast, tv.adjust_contrast),
        (photometric.adjust_saturation, tv.adjust_saturation),
        (photometric.adjust_sharpness, tv.adjust_sharpness),
    ],
)
def test_each_view_gets_its_own_factor_as_in_torchvision(views, ours, theirs):
    result = ours(views, FACTORS)
    for view, factor, got in zip(views, FACTORS.tolist(), result, strict=True):
        torch.testing.assert_close(got, theirs(view, factor), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigmas", [[0.1, 0.3, 1.0, 1.7, 2.6, 5.0], [0.2] * 6])
def test_each_view_is_blurred_with_its_own_sigma_as_in_torchvision(views, sigmas):
    result = photometric.gaussian_blur(views, np.array(sigmas, dtype=np.float32))
    for view, sigma, got in zip(views, sigmas, result, strict=True):
        size = 2 * min(math.ceil(4 * sigma), 9) + 1  # at most half of the 20 lines
        torch.testing.assert_close(got, tv.gaussian_blur(view, [size, size], [sigma, sigma]), atol=1e-5, rtol=0)


def test_hue_turns_as_in_torchvision(views):
    shifts = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.31, 0.5])
    result = photometric.adjust_hue(views, shifts)
    for view, shift, got in zip(views, shifts.tolist(), result, strict=True):
        torch.testing.assert_close(got, tv.adjust_hue(view, shift), atol=1e-4, rtol=0)


def test_hue_leaves_grey_views_alone():
    grey = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8)
    torch.testing.assert_close(photometric.adjust_hue(grey, torch.tensor([0.3, -0.4])), grey)


def _pil(view):
    return Image.fromarray((view * 255).round().byte().permute(1, 2, 0).numpy())


def _tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_posterize_matches_pil_exactly(views, bits):
    got = photometric.posterize(views, torch.full((6,), bits))
    for view, one in zip(views, got, strict=True):
        torch.testing.assert_close(one, _tensor(ImageOps.posterize(_pil(view), bits)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("threshold", [0, 100, 255, 256])
def test_solarize_matches_pil_exactly(views, threshold):
    got = photometric.solarize(views, torch.full((6,), threshold))
    for view, one in zip(views, got, strict=True):
        torch.testing.assert_close(one, _tensor(ImageOps.solarize(_pil(view), threshold)), atol=1e-6, rtol=0)


def test_autocontrast_and_sharpness_match_pil_to_one_level(views):
    stretched = photometric.autocontrast(views)
    sharp = photometric.adjust_sharpness(views, torch.full((6,), 1.7))
    for view, one, two in zip(views, stretched, sharp, strict=True):
        torch.testing.assert_close(one, _tensor(ImageOps.autocontrast(_pil(view))), atol=1.01 / 255, rtol=0)
        expected = _tensor(ImageEnhance.Sharpness(_pil(view)).enhance(1.7))
        torch.testing.assert_close(two, expected, atol=2.01 / 255, rtol=0)


def test_autocontrast_leaves_a_flat_channel():
    flat = torch.full((1, 3, 4, 4), 0.3)
    assert torch.equal(photometric.autocontrast(flat), flat)


def test_drawn_parameters_have_the_stated_distributions():
    settings = PhotometricSettings(brightness=0.4, hue=0.2, random_photometric=0.66, grayscale=0.2)
    drawn = photometric.draw(20_000, settings, torch.Generator().manual_seed(1))
    brightness, hue = drawn["factors"][:, 0], drawn["factors"][:, 3]
    assert brightness.min() >= 0.6 and brightness.max() <= 1.4
    assert abs(float(brightness.mean()) - 1) < 0.01
    assert hue.min() >= -0.2 and hue.max() <= 0.2
    assert abs(float(drawn["photometric"].mean()) - 0.66) < 0.015
    assert abs(float(drawn["grayscale"].mean()) - 0.2) < 0.015
    assert set(drawn["bits"].tolist()) == {4, 5, 6, 7, 8}
    assert (drawn["thresholds"].min(), drawn["thresholds"].max()) == (0, 256)
    orders = {tuple(order) for order in drawn["order"].tolist()}
    assert len(orders) == 24  # every order of the four jitters
    assert drawn["blur"].sum() == 0


def test_applying_to_all_views_at_once_equals_one_view_at_a_time(views):
    settings = PhotometricSettings(blur=0.5, blur_sigma_low=0.02, blur_sigma_high=0.08)
    drawn = photometric.draw(6, settings, torch.Generator().manual_seed(2))
    together = photometric.apply(views, drawn)
    for number in range(6):
        alone = photometric.apply(views[number : number + 1], drawn[number : number + 1])
        torch.testing.assert_close(together[number], alone[0], atol=1e-5, rtol=0)
    assert together.min() >= 0 and together.max() <= 1


def test_views_of_one_image_draw_different_parameters():
    drawn = photometric.draw(9, PhotometricSettings(), torch.Generator().manual_seed(0))
    assert len(set(drawn["factors"][:, 0].tolist())) == 9


def test_everything_switched_off_changes_nothing(views):
    off = dict.fromkeys(
        ("brightness", "contrast", "saturation", "hue", "random_photometric", "grayscale", "horizontal_flip"), 0
    )
    drawn = photometric.draw(6, PhotometricSettings(**off))
    torch.testing.assert_close(photometric.apply(views, drawn), views, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hue": 0.6}, r"hue is 0.6; it must be a number at least 0 and at most 0.5"),
        ({"grayscale": 2}, "grayscale is 2"),
        ({"brightnes": 0.4}, r"no key 'brightnes' \(did you mean brightness\?\)"),
        ({"blur_sigma_low": 0.5, "blur_sigma_high": 0.1}, "must not exceed"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        PhotometricSettings.from_config(config, "t.photometric")
