"""Base classes of pretext tasks: a set T of image transformations, and how a data loader applies one of them.

A task is a subclass of `PretextTransform` with one method, `pretext_views`, or of `SingleViewTransform` with one
method, `transform`, with the decorator `register_pretext`. The base class makes the plain view of the image, augments
all views photometrically, normalises them and puts them into the loader's sample: see docs/add_a_pretext_task.md.

Views are 8-bit until they are normalised. `augment_on: device` leaves photometric augmentation, with parameters drawn
by the worker, to `pirl_train_step`; `normalize_on: device` leaves it the normalisation: a quarter of the bytes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pirl_plugin.pretext import fast_photometric, photometric
from pirl_plugin.pretext.crops import draw_crop_box, image_size, largest_reduction, resized_crop
from pirl_plugin.pretext.photometric import PhotometricSettings, on_device
from pirl_plugin.registry import Registry
from pirl_plugin.validation import (
    ConfigError,
    check_choice,
    check_integer,
    check_interval,
    check_keys,
    check_number,
    keyword_arguments,
)

PRETEXT_TRANSFORMS: Registry[type[PretextTransform]] = Registry("pretext transform")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


_WORDS = slice(24, 24 + 624 * 8)  # in PyTorch's generator state: 624 words, after seed and positions


def register_pretext(name: str) -> Callable[[type[PretextTransform]], type[PretextTransform]]:
    """Register a pretext task under `name`, which DATA.TRAIN.TRANSFORMS of a YAML config then uses."""

    def register(cls: type[PretextTransform]) -> type[PretextTransform]:
        cls.name = name
        return PRETEXT_TRANSFORMS.register(name, cls)

    return register


class PretextTransform(ABC):
    """Turns an image into one plain view and the views of its pretext transformation.

    Subclasses set `branch` if it is not `view`, call this class's `__init__` and implement `num_views` and
    `pretext_views`.

    Args:
        image_crop_size: side of the image view, in pixels.
        image_crop_scale: share of the image's area that its crop covers, (low, high) in (0, 1].
        photometric: keys of PhotometricSettings; every view draws its own parameters.
        mean, std: per-channel normalisation of all views (levels in [0, 1]).
        augment_on: `workers`, or `device`: photometric augmentation in the training step.
        normalize_on: `workers`, or `device` (the launcher fills in what the training step can do).
        seed: random choices for an image depend only on (seed, epoch, index of the image) (the launcher fills in
            SEED_VALUE if the task is `pirl_task`); None: draw from PyTorch's global generator.

    Attributes:
        epoch: set by the training task, or by you.
    """

    name: ClassVar[str]
    branch: ClassVar[str] = "view"  # which branch of pirl_heads reads the pretext views

    def __init__(
        self,
        image_crop_size: int = 224,
        image_crop_scale: Sequence[float] = (0.08, 1.0),
        photometric: Mapping[str, Any] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        augment_on: str = "workers",
        normalize_on: str = "workers",
        seed: int | None = None,
    ) -> None:
        self.seed = None if seed is None else check_integer(seed, f"{self.name}.seed", 0, 2**63 - 1)
        self.epoch = 0
        self.augment_on = check_choice(augment_on, ("workers", "device"), f"{self.name}.augment_on")
        self.normalize_on = check_choice(normalize_on, ("workers", "device"), f"{self.name}.normalize_on")
        if (augment_on, normalize_on) == ("device", "workers"):
            raise ConfigError(
                f"{self.name}.augment_on is 'device', which TRAINER.TRAIN_STEP_NAME must do: set it to pirl_train_step."
            )
        self.image_crop_size = check_integer(image_crop_size, f"{self.name}.image_crop_size", 1)
        self.image_crop_scale = check_interval(image_crop_scale, f"{self.name}.image_crop_scale", 1e-6, 1.0)
        self.photometric = PhotometricSettings.from_config(photometric or {}, f"{self.name}.photometric")
        for key, values, low in (("mean", mean, 0.0), ("std", std, 1e-6)):
            if not isinstance(values, Sequence) or len(values) != 3:
                raise ConfigError(f"{self.name}.{key} is {values}; it must be three numbers, one per channel.")
            for value in values:
                check_number(value, f"{self.name}.{key}", low, 1.0)
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    @property
    @abstractmethod
    def num_views(self) -> int:
        """V, the number of pretext views of an image; 0 for none."""

    @abstractmethod
    def pretext_views(self, image: Image.Image | Tensor, generator: torch.Generator | None) -> Tensor:
        """The views of t(image) for a random t in T, drawn from `generator`.

        Args:
            image: PIL, or uint8 [3, H, W].

        Returns:
            uint8 [V, 3, h, w], fastest with channels last in memory.
        """

    def pretext_reduction(self, width: int, height: int) -> float:
        """By what factor an image of width x height may be reduced before `pretext_views`; 1: not at all."""
        return 1.0

    def largest_reduction(self, width: int, height: int) -> float:
        """By what factor an image may be reduced when decoded without any view losing resolution."""
        own = largest_reduction(width, height, self.image_crop_scale, self.image_crop_size)
        return min(own, self.pretext_reduction(width, height))

    def image_view(self, image: Image.Image | Tensor, generator: torch.Generator | None) -> Tensor:
        """A RandomResizedCrop of the image: uint8 [3, size, size]."""
        box = draw_crop_box(*image_size(image), self.image_crop_scale, generator=generator)
        return resized_crop(image, box, self.image_crop_size)

    def crops(self, image: Image.Image | Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The views before photometric augmentation: uint8 [1, 3, S, S] and [V, 3, h, w].

        Raises:
            ConfigError: for an image that is not RGB.
        """
        self._check_rgb(image)
        image_view = self.image_view(image, generator).unsqueeze(0)
        pretext_views = self.pretext_views(image, generator)
        if len(pretext_views) != self.num_views or pretext_views.dtype != torch.uint8:
            raise ValueError(
                f"{self.name} made {len(pretext_views)} views of {pretext_views.dtype}; pretext_views must return "
                f"uint8 [num_views, 3, h, w] with num_views {self.num_views}."
            )
        return image_view, pretext_views

    def _check_rgb(self, image: Image.Image | Tensor) -> None:
        if isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
                raise ConfigError(
                    f"{self.name} was given a tensor {image.dtype} {list(image.shape)}; it takes uint8 [3, H, W]."
                )
        elif image.mode != "RGB":
            raise ConfigError(
                f"{self.name} was given an image of the mode {image.mode}; it takes RGB, as load_rgb or "
                f'image.convert("RGB") gives.'
            )

    def draw_photometric(self, generator: torch.Generator | None) -> np.ndarray:
        """Parameters of the image view, then of the pretext views: photometric.PARAMETERS [1 + V]."""
        return photometric.draw(1 + self.num_views, self.photometric, generator)

    def augment(self, views: Tensor, parameters: np.ndarray) -> Tensor:
        """Photometric augmentation of views uint8 [V, 3, h, w] on the CPU: uint8 of the same shape."""
        if fast_photometric.available():
            return fast_photometric.augment(views, parameters)
        _warn_once_of_opencv()
        return photometric.apply(views.float().div_(255), parameters).mul_(255).round_().to(torch.uint8)

    def normalize(self, views: Tensor) -> Tensor:
        """Views uint8 [..., 3, h, w], or float in [0, 1] (changed in place), on any device: (level - mean) / std."""
        if self.mean.device != views.device:  # once; workers also have their own copies
            self.mean, self.std = (on_device(value, views.device) for value in (self.mean, self.std))
        mean, std = self.mean, self.std
        levels = views.float().div_(255) if views.dtype == torch.uint8 else views
        return levels.sub_(mean).div_(std)

    def views(self, image: Image.Image | Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The augmented, normalised views of an RGB image, whatever `augment_on` and `normalize_on` are.

        Returns:
            image view float32 [3, S, S] and pretext views float32 [V, 3, h, w], in the task's order.
        """
        crops, parameters = self.crops(image, generator), self.draw_photometric(generator)
        image_view, pretext = self._on_each(self.augment, crops, parameters)
        return self.normalize(image_view)[0], self.normalize(pretext)

    def _on_each(
        self, augment: Callable[[Tensor, np.ndarray], Tensor], crops: tuple[Tensor, Tensor], parameters: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        return augment(crops[0], parameters[:1]), augment(crops[1], parameters[1:]) if self.num_views else crops[1]

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A sample of VISSL's loader with `data` (one RGB image) replaced by `images` and `pretext`.

        With augment_on `device` also `photometric`, the drawn parameters of the 1 + V views.
        """
        (image,) = sample.pop("data")
        generator = None if self.seed is None else sample_generator(self.seed, self.epoch, int(sample["data_idx"][0]))
        crops, parameters = self.crops(image, generator), self.draw_photometric(generator)
        if self.augment_on == "workers":
            crops = self._on_each(self.augment, crops, parameters)
        else:
            sample["photometric"] = parameters
        if self.normalize_on == "workers":
            crops = self.normalize(crops[0]), self.normalize(crops[1])
        sample["images"] = crops[0][0]
        if self.num_views:
            sample["pretext"] = crops[1]
        return sample

    def finish(self, inputs: dict[str, Tensor], parameters: np.ndarray | None) -> dict[str, Tensor]:
        """Do for a batch, on its device, what the workers left undone.

        Args:
            inputs: `images` uint8 [B, 3, S, S] and, if there are pretext views, `pretext` [B * V, 3, h, w].
            parameters: photometric.PARAMETERS [B, 1 + V] if augment_on is `device`.

        Returns:
            the views float32, augmented and normalised, without waiting for the device.
        """
        if self.normalize_on == "workers":
            return inputs
        finished = {}
        for key, views in inputs.items():
            if self.augment_on == "device":
                assert parameters is not None
                own = parameters[:, 0] if key == "images" else parameters[:, 1:].reshape(-1)
                views = photometric.apply(views.float().div_(255), own)
            finished[key] = self.normalize(views)
        return finished

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from one entry of TRANSFORMS.

        Raises:
            ConfigError: for an unknown key or a value out of range.
        """
        settings = {key: value for key, value in config.items() if key not in ("name", "indices")}
        check_keys(settings, keyword_arguments(cls), cls.name)
        return cls(**settings)


class SingleViewTransform(PretextTransform):
    """A task whose t(image) is a single view, like the plain one: its own crop, then `transform`.

    Args:
        pretext_crop_size: side of the square view, in pixels.
        pretext_crop_scale: share of the image's area that its crop covers, (low, high) in (0, 1].
        **common: arguments of PretextTransform.
    """

    def __init__(
        self, pretext_crop_size: int = 224, pretext_crop_scale: Sequence[float] = (0.08, 1.0), **common: Any
    ) -> None:
        super().__init__(**common)
        if isinstance(pretext_crop_size, Sequence):
            raise ConfigError(
                f"{self.name}.pretext_crop_size is {list(pretext_crop_size)}; the view must be square: give one number."
            )
        self.pretext_crop_size = check_integer(pretext_crop_size, f"{self.name}.pretext_crop_size", 1)
        self.pretext_crop_scale = check_interval(pretext_crop_scale, f"{self.name}.pretext_crop_scale", 1e-6, 1.0)

    @property
    def num_views(self) -> int:
        return 1

    def pretext_views(self, image: Image.Image | Tensor, generator: torch.Generator | None) -> Tensor:
        box = draw_crop_box(*image_size(image), self.pretext_crop_scale, generator=generator)
        view = resized_crop(image, box, self.pretext_crop_size)
        return self.transform(view, generator).unsqueeze(0)

    def pretext_reduction(self, width: int, height: int) -> float:
        return largest_reduction(width, height, self.pretext_crop_scale, self.pretext_crop_size)

    @abstractmethod
    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        """t(view) for a random t in T, drawn from `generator`: uint8 [3, S, S] -> the same."""


@functools.cache
def _warn_once_of_opencv() -> None:
    logging.warning(
        "OpenCV is not installed: images are augmented by PyTorch's operations, several times slower; pip install "
        "opencv-python-headless, or set augment_on to device."
    )


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator for image `index` in an epoch, independent of those for other images and epochs.

    `manual_seed` uses 32 bits, so that some of a million images would share a seed. So the states of two generators
    are combined by XOR; as a Mersenne Twister is linear, so are the numbers they would have drawn.
    """
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    first, second = struct.unpack("<2I", digest)
    second ^= first == second  # two equal states would cancel out
    generator, other = torch.Generator().manual_seed(first), torch.Generator().manual_seed(second)
    state = generator.get_state()
    state.numpy()[_WORDS] ^= other.get_state().numpy()[_WORDS]
    generator.set_state(state)
    return generator


def draw_number(count: int, generator: torch.Generator | None) -> int:
    """The index of one of `count` transformations, uniform: an int in [0, count)."""
    return int(torch.randint(count, (), generator=generator))
