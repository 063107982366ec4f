"""`photometric.apply` on 8-bit views for loader workers: uses OpenCV and is about ten times faster on one core.

Every operation truncates to integer levels, as PIL does: the result differs on average by one level from PIL's and
torchvision's, which VISSL uses, and by up to three from `photometric.apply`, which never rounds.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pirl_plugin.pretext.photometric import PARAMETERS
from pirl_plugin.validation import ConfigError

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]
else:
    cv2.setNumThreads(0)  # the loader's workers run in parallel already

# An entry of PARAMETERS, as Python numbers.
_Parameters: Any = namedtuple("_Parameters", PARAMETERS.names or ())  # type: ignore[misc]

_LUMA = (0.299, 0.587, 0.114)
# Added before OpenCV rounds to the nearest level, so that it truncates; a thousandth less, for sums like 254.9999.
_CUT_OFF = -0.499


def available() -> bool:
    """Whether OpenCV is installed."""
    return cv2 is not None


def require() -> None:
    """Raise ConfigError if OpenCV is not installed."""
    if not available():
        raise ConfigError(
            "OpenCV is not installed, and loader workers need it to augment images: pip install opencv-python-headless"
        )


def _affine(own: float, luma: float = 0.0, offset: float = 0.0) -> np.ndarray:
    """The map x -> own x + luma * (grey of x) + offset of a pixel's three levels: [3, 4]."""
    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3] = np.multiply(_LUMA, luma)
    matrix[:, :3].flat[::4] += own
    matrix[:, 3] = offset + _CUT_OFF
    return matrix


def _turn_hue(view: np.ndarray, shift: float) -> np.ndarray:
    turned = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    # As in torchvision: integer steps of 1/255, and the circle wraps at 256.
    turned[..., 0] += np.uint8(int(shift * 255) % 256)
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB_FULL, turned)


def _jitter(view: np.ndarray, order: list[int], factors: list[float]) -> np.ndarray:
    for number in order:
        factor = factors[number]
        if factor == (0 if number == 3 else 1):
            continue
        if number == 0:
            view = cv2.transform(view, _affine(factor))
        elif number == 1:
            red, green, blue, _ = cv2.mean(view)
            grey = round(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)
            view = cv2.transform(view, _affine(factor, 0.0, (1 - factor) * grey))
        elif number == 2:
            view = cv2.transform(view, _affine(factor, 1 - factor))
        else:
            view = _turn_hue(view, factor)
    return view


def _sharpen(view: np.ndarray, factor: float) -> np.ndarray:
    if min(view.shape[:2]) < 3:
        return view
    # The smooth view has weight 5/13 for a pixel itself and 1/13 for each neighbour: 4/13 x + 9/13 mean of 3x3.
    mean = cv2.boxFilter(view, -1, (3, 3))
    sharp = cv2.addWeighted(view, factor + (1 - factor) * 4 / 13, mean, (1 - factor) * 9 / 13, _CUT_OFF)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        sharp[edge] = view[edge]
    return sharp


def _stretch(view: np.ndarray) -> np.ndarray:
    matrix = np.zeros((3, 4), np.float32)
    for channel, plane in enumerate(cv2.split(view)):
        low, high, _, _ = cv2.minMaxLoc(plane)
        scale = 255 / (high - low) if high > low else 1.0
        matrix[channel, channel] = scale
        matrix[channel, 3] = (-low * scale if high > low else 0.0) + _CUT_OFF
    return cv2.transform(view, matrix)


def augment_view(view: np.ndarray, parameters: Any) -> np.ndarray:
    """One view uint8 [h, w, 3] with its parameters, an entry of PARAMETERS: uint8 [h, w, 3]."""
    if parameters.flip:
        view = cv2.flip(view, 1)
    if parameters.jitter:
        view = _jitter(view, parameters.order, parameters.factors)
    if parameters.photometric:
        view = np.bitwise_and(view, np.uint8((255 << (8 - parameters.bits)) & 255))
        view = _sharpen(view, parameters.sharpness)
        if parameters.thresholds < 256:
            above = cv2.threshold(view, parameters.thresholds - 1, 255, cv2.THRESH_BINARY)[1]
            view = cv2.bitwise_xor(view, above)
        view = _stretch(view)
    if parameters.grayscale:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if parameters.blur:
        sigma = parameters.sigma * view.shape[1]
        side = 2 * min(int(np.ceil(4 * sigma)), (min(view.shape[:2]) - 1) // 2) + 1
        view = cv2.GaussianBlur(view, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    return view


def augment(views: Tensor, parameters: np.ndarray) -> Tensor:
    """Augment views, each with its own parameters.

    Args:
        views: uint8 [V, 3, h, w], fastest with channels last in memory.
        parameters: photometric.PARAMETERS [V].

    Returns:
        uint8 [V, 3, h, w], channels last in memory.

    Raises:
        ConfigError: if OpenCV is not installed.
    """
    require()
    count, _, height, width = views.shape
    pixels = views.permute(0, 2, 3, 1).contiguous().numpy()
    result = torch.empty(count, height, width, 3, dtype=torch.uint8)
    for view, row, target in zip(pixels, parameters.tolist(), result.numpy(), strict=True):
        target[:] = augment_view(view, _Parameters(*row))
    return result.permute(0, 3, 1, 2)
