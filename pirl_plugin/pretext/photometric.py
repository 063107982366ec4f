"""Photometric augmentation of many views at once, each with its own parameters.

The functions take float views [V, 3, H, W] in [0, 1] and one parameter per view [V], and return new views of
the same shape in [0, 1]; they work on any device. `draw` draws the parameters, `apply` applies them.

The operations are those of torchvision's ColorJitter and RandomGrayscale and of PIL's ImageOps and
ImageEnhance; the paper names colour jitter and "sharpness, equalize etc.", VISSL's PIRL uses colour jitter,
then (posterize, sharpness, solarize, autocontrast) with probability 0.66, then grey with probability 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pirl_plugin.validation import ConfigError, check_integer, check_keys, check_number

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale


def luma(views: Tensor) -> Tensor:
    """Grey level [V, 1, H, W] of views [V, 3, H, W]."""
    red, green, blue = views.unbind(-3)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(-3)


def _per_view(parameter: Tensor, views: Tensor) -> Tensor:
    return parameter.to(views).view(-1, 1, 1, 1)


def _blend(views: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(views), views, _per_view(factors, views)).clamp_(0, 1)


def adjust_brightness(views: Tensor, factors: Tensor) -> Tensor:
    """Multiply by factors [V] >= 0; 1 changes nothing."""
    return (views * _per_view(factors, views)).clamp_(0, 1)


def adjust_contrast(views: Tensor, factors: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards (< 1) each view's mean grey; factors [V] >= 0."""
    return _blend(views, luma(views).mean(dim=(-3, -2, -1), keepdim=True), factors)


def adjust_saturation(views: Tensor, factors: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards (< 1) each pixel's grey; factors [V] >= 0."""
    return _blend(views, luma(views), factors)


def adjust_hue(views: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue by shifts [V] in [-0.5, 0.5] of the full circle, keeping HSV's value and saturation."""
    red, green, blue = views.unbind(-3)
    value, chroma = views.amax(-3), views.amax(-3) - views.amin(-3)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * shifts.to(views).view(-1, 1, 1)
    # A channel is value - chroma * clip(min(k, 4 - k), 0, 1) with k its distance from the hue, in sectors.
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sector).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=-3).clamp_(0, 1)


def to_grayscale(views: Tensor) -> Tensor:
    """Grey views, still with three (equal) channels."""
    return luma(views).expand_as(views).contiguous()


def posterize(views: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` [V] (integer, 1 to 8) highest bits of each 8-bit level, as PIL.ImageOps.posterize."""
    step = 2 ** (8 - _per_view(bits, views))
    return (views * 255).round_().div_(step).floor_().mul_(step).div_(255)


def solarize(views: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the 8-bit levels at or above thresholds [V] in [0, 256], as PIL.ImageOps.solarize."""
    return torch.where(views * 255 >= _per_view(thresholds, views), 1 - views, views)


def adjust_sharpness(views: Tensor, factors: Tensor) -> Tensor:
    """Blend with a smoothed view (factor 0: smooth, 1: unchanged, 2: sharp); the border stays as it is."""
    if min(views.shape[-2:]) < 3:
        return views
    # PIL's kernel: a 3x3 neighbourhood whose centre counts five times. Not a convolution, for which cuDNN would
    # search for an algorithm again for every number of views.
    inner = views[..., 1:-1, 1:-1]
    smooth = views.clone()
    smooth[..., 1:-1, 1:-1] = (9 * avg_pool2d(views, 3, stride=1) + 4 * inner) / 13
    return _blend(views, smooth, factors)


def autocontrast(views: Tensor) -> Tensor:
    """Stretch each channel of each view to [0, 1]; a flat channel stays as it is."""
    low, high = views.amin((-2, -1), keepdim=True), views.amax((-2, -1), keepdim=True)
    flat = high <= low
    scale = torch.where(flat, torch.ones_like(high), high - low)
    return torch.where(flat, views, ((views - low) / scale).clamp_(0, 1))


def gaussian_blur(views: Tensor, sigmas: np.ndarray) -> Tensor:
    """Blur each view with its own standard deviation `sigmas` float [V] > 0, in pixels (reflected border).

    A kernel reaches 4 sigma, at most half the view's shorter side.
    """
    largest = (min(views.shape[-2:]) - 1) // 2
    reach = np.minimum(np.ceil(4 * sigmas), largest).astype(np.int32)
    widest = int(reach.max())
    own_reach, own_sigmas = (on_device(torch.from_numpy(values), views.device) for values in (reach, sigmas))
    blurred = views
    for axis in (-1, -2):
        weights = _blur_matrices(views.shape[axis], widest, own_reach, own_sigmas)
        weights = weights.to(views.dtype).unsqueeze(1)
        blurred = blurred @ weights.mT if axis == -1 else weights @ blurred
    return blurred


def _blur_matrices(size: int, reach: int, own_reach: Tensor, sigmas: Tensor) -> Tensor:
    """The matrices that blur a line of pixels of each view: float32 [V, size, size], reflected at the ends.

    Args:
        reach: of the widest kernel, in pixels.
        own_reach, sigmas: of each view's kernel [V].
    """
    offsets = torch.arange(-reach, reach + 1, device=sigmas.device)
    kernels = (-0.5 * (offsets / sigmas.float().unsqueeze(1)) ** 2).exp()
    kernels = kernels.masked_fill(offsets.abs() > own_reach.unsqueeze(1), 0)
    kernels = kernels / kernels.sum(1, keepdim=True)
    places = torch.arange(size, device=sigmas.device)
    read = (places.unsqueeze(1) + offsets).abs()
    read = torch.minimum(read, 2 * (size - 1) - read)
    # Selects the pixel of each offset by a matrix product, whose order of summation is always the same.
    chosen = (read.unsqueeze(-1) == places).float().transpose(0, 1)
    return (kernels @ chosen.flatten(1)).view(-1, size, size)


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the CPU to a device without waiting for it, through pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@dataclass(frozen=True)
class PhotometricSettings:
    """How strongly and how often views are augmented; the defaults are those of VISSL's PIRL.

    Attributes:
        brightness, contrast, saturation: colour jitter, factors uniform in [max(0, 1 - x), 1 + x].
        hue: colour jitter, shift uniform in [-hue, hue] of the circle; in [0, 0.5].
        color_jitter_probability: probability that a view is jittered at all.
        random_photometric: probability of (posterize, sharpness, solarize, autocontrast) for a view.
        grayscale: probability of a grey view.
        blur: probability of a Gaussian blur.
        blur_sigma_low, blur_sigma_high: its standard deviation, as shares of the view's width.
        horizontal_flip: probability of a mirrored view.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    color_jitter_probability: float = 1.0
    random_photometric: float = 0.66
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma_low: float = 0.1 / 224
    blur_sigma_high: float = 2.0 / 224
    horizontal_flip: float = 0.5

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> PhotometricSettings:
        """Settings from a mapping of the attributes above; those left out keep their defaults.

        Raises:
            ConfigError: for an unknown key or a value out of range.
        """
        check_keys(config, [field.name for field in fields(cls)], where)
        highest = {"hue": 0.5, "brightness": float("inf"), "contrast": float("inf"), "saturation": float("inf")}
        values = {key: check_number(value, f"{where}.{key}", 0, highest.get(key, 1.0)) for key, value in config.items()}
        settings = cls(**values)
        if settings.blur_sigma_low > settings.blur_sigma_high:
            raise ConfigError(
                f"{where}.blur_sigma_low is {settings.blur_sigma_low}; it must not exceed blur_sigma_high, "
                f"{settings.blur_sigma_high}."
            )
        return settings


# The parameters that `draw` draws for a view.
PARAMETERS = np.dtype(
    [
        ("order", np.uint8, 4),  # the order of brightness (0), contrast (1), saturation (2), hue (3)
        ("factors", np.float32, 4),  # of these; for hue the shift
        ("jitter", np.bool_),
        ("photometric", np.bool_),
        ("bits", np.uint8),  # 4 to 8
        ("sharpness", np.float32),  # 0.1 to 1.9
        ("thresholds", np.int16),  # 0 to 256
        ("grayscale", np.bool_),
        ("blur", np.bool_),
        ("sigma", np.float32),  # share of the view's width
        ("flip", np.bool_),
    ]
)


def draw(num_views: int, settings: PhotometricSettings, generator: torch.Generator | None = None) -> np.ndarray:
    """Draw the parameters of `num_views` views, independently of each other.

    Args:
        generator: a CPU generator; None: PyTorch's global one.

    Returns:
        PARAMETERS [num_views].
    """
    check_integer(num_views, "num_views", 0)
    # One call for all: a dozen small ones would cost half a millisecond per image.
    uniform = torch.rand(num_views, 17, generator=generator, dtype=torch.float64).numpy()
    strength = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    low, high = middle - strength, middle + strength
    low[:3] = low[:3].clip(0)
    drawn = np.empty(num_views, PARAMETERS)
    drawn["order"] = uniform[:, :4].argsort(axis=1)
    drawn["factors"] = low + (high - low) * uniform[:, 4:8]
    drawn["jitter"] = uniform[:, 8] < settings.color_jitter_probability
    drawn["photometric"] = uniform[:, 9] < settings.random_photometric
    drawn["bits"] = 4 + np.floor(5 * uniform[:, 10])
    drawn["sharpness"] = 0.1 + 1.8 * uniform[:, 11]
    drawn["thresholds"] = np.floor(257 * uniform[:, 12])
    drawn["grayscale"] = uniform[:, 13] < settings.grayscale
    drawn["blur"] = uniform[:, 14] < settings.blur
    drawn["sigma"] = settings.blur_sigma_low + (settings.blur_sigma_high - settings.blur_sigma_low) * uniform[:, 15]
    drawn["flip"] = uniform[:, 16] < settings.horizontal_flip
    return drawn


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def apply(views: Tensor, parameters: np.ndarray) -> Tensor:
    """Apply drawn parameters, PARAMETERS [V], to views float [V, 3, H, W] in [0, 1], on any device.

    Returns:
        new views of the same shape, without waiting for the device.
    """
    views = views.clone()

    def sent(values: np.ndarray) -> Tensor:
        return on_device(torch.from_numpy(np.ascontiguousarray(values)), views.device)

    def chosen(which: np.ndarray) -> Tensor | None:
        places = np.flatnonzero(which)
        return sent(places) if len(places) else None

    columns = {name: sent(parameters[name]) for name in ("bits", "sharpness", "factors")}
    columns["thresholds"] = sent(parameters["thresholds"].astype(np.int64))
    for step in range(4):
        for number, adjust in enumerate(_JITTER):
            selected = chosen((parameters["order"][:, step] == number) & parameters["jitter"])
            if selected is not None:
                views[selected] = adjust(views[selected], columns["factors"][selected, number])
    selected = chosen(parameters["photometric"])
    if selected is not None:
        changed = posterize(views[selected], columns["bits"][selected])
        changed = adjust_sharpness(changed, columns["sharpness"][selected])
        changed = solarize(changed, columns["thresholds"][selected])
        views[selected] = autocontrast(changed)
    selected = chosen(parameters["grayscale"])
    if selected is not None:
        views[selected] = to_grayscale(views[selected])
    selected = chosen(parameters["blur"])
    if selected is not None:
        sigmas = parameters["sigma"][parameters["blur"]] * views.shape[-1]  # on the host, like the kernels' sizes
        views[selected] = gaussian_blur(views[selected], sigmas)
    selected = chosen(parameters["flip"])
    if selected is not None:
        views[selected] = views[selected].flip(-1)
    return views
