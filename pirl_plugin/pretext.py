"""What a pretext task is: a set T of image transformations, and how VISSL's loader applies one of them.

A task is a subclass of `PretextTransform` with one method, `pretext_views`, or of `SingleViewTransform` with one
method, `transform`, under the decorator `register_pretext`. The base class makes the plain view of the image, augments
all views photometrically, normalises them and puts them into VISSL's sample. docs/add_a_pretext_task.md shows how.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from classy_vision.dataset.transforms import register_transform
from classy_vision.dataset.transforms.classy_transform import ClassyTransform
from PIL import Image
from torch import Tensor
from vissl.data.ssl_transforms import ssl_transforms_wrapper

from pirl_plugin import photometric
from pirl_plugin.crops import draw_crop_box, resized_crop
from pirl_plugin.photometric import PhotometricSettings
from pirl_plugin.validation import (
    ConfigError,
    check_integer,
    check_interval,
    check_keys,
    check_number,
    keyword_arguments,
)

PRETEXT_TRANSFORMS: dict[str, type[PretextTransform]] = {}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def register_pretext(name: str) -> Callable[[type[PretextTransform]], type[PretextTransform]]:
    """Register a pretext task under `name`, which DATA.TRAIN.TRANSFORMS of a YAML config then uses."""

    def register(cls: type[PretextTransform]) -> type[PretextTransform]:
        register_transform(name)(cls)
        # VISSL hands these transforms the whole sample instead of the image alone.
        ssl_transforms_wrapper.DEFAULT_TRANSFORM_TYPES["TRANSFORMS_WITH_OVERWRITE_ENTIRE_BATCH"].append(name)
        cls.name = name
        PRETEXT_TRANSFORMS[name] = cls
        return cls

    return register


class PretextTransform(ClassyTransform):
    """One image in; one view of it and the views of its pretext transformation out.

    Subclasses set `branch` where it is not `view`, call this class's `__init__` and implement `num_views` and
    `pretext_views`.

    Args:
        image_crop_size: side of the image view, in pixels.
        image_crop_scale: share of the image's area that its crop covers, (low, high) in (0, 1].
        photometric: keys of PhotometricSettings; every view draws its own parameters.
        mean, std: per-channel normalisation of all views (levels in [0, 1]).
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
    ) -> None:
        self.image_crop_size = check_integer(image_crop_size, f"{self.name}.image_crop_size", 1)
        self.image_crop_scale = check_interval(image_crop_scale, f"{self.name}.image_crop_scale", 1e-6, 1.0)
        self.photometric = PhotometricSettings.from_config(photometric or {}, f"{self.name}.photometric")
        for key, values, low in (("mean", mean, 0.0), ("std", std, 1e-6)):
            if not isinstance(values, Sequence) or len(values) != 3:
                raise ConfigError(f"{self.name}.{key} is {values}; it must be three numbers, one a channel.")
            for value in values:
                check_number(value, f"{self.name}.{key}", low, 1.0)
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    @property
    @abstractmethod
    def num_views(self) -> int:
        """V, the number of pretext views of an image; 0 for none."""

    @abstractmethod
    def pretext_views(self, image: Image.Image, generator: torch.Generator | None) -> Tensor:
        """The views of t(image) for a random t in T: uint8 [V, 3, h, w], drawn from `generator`."""

    def image_view(self, image: Image.Image, generator: torch.Generator | None) -> Tensor:
        """A RandomResizedCrop of the image: uint8 [3, size, size]."""
        box = draw_crop_box(*image.size, self.image_crop_scale, generator=generator)
        return resized_crop(image, box, self.image_crop_size)

    def views(self, image: Image.Image, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The augmented, normalised views of an RGB image.

        Returns:
            image view float32 [3, S, S] and pretext views float32 [V, 3, h, w], in the task's order.
        """
        image_view = self.image_view(image, generator).unsqueeze(0)
        pretext_views = self.pretext_views(image, generator)
        if len(pretext_views) != self.num_views or pretext_views.dtype != torch.uint8:
            raise ValueError(
                f"{self.name} made {len(pretext_views)} views of {pretext_views.dtype}; pretext_views must return "
                f"uint8 [num_views, 3, h, w] with num_views {self.num_views}."
            )
        return self._augment(image_view, generator)[0], self._augment(pretext_views, generator)

    def _augment(self, views: Tensor, generator: torch.Generator | None) -> Tensor:
        parameters = photometric.draw(len(views), self.photometric, generator)
        return photometric.apply(views.float().div_(255), parameters).sub_(self.mean).div_(self.std)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """VISSL's sample with `data` (one RGB PIL image) replaced by `images` and `pretext`."""
        (image,) = sample.pop("data")
        sample["images"], pretext = self.views(image)
        if self.num_views:
            sample["pretext"] = pretext
        return sample

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PretextTransform:
        """Build from one entry of TRANSFORMS.

        Raises:
            ConfigError: for an unknown key or a value out of range.
        """
        settings = {key: value for key, value in config.items() if key not in ("name", "indices")}
        check_keys(settings, keyword_arguments(cls), cls.name)
        return cls(**settings)


class SingleViewTransform(PretextTransform):
    """A task whose t(image) is one view of the same kind as the plain one: a crop of its own, then `transform`.

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

    def pretext_views(self, image: Image.Image, generator: torch.Generator | None) -> Tensor:
        box = draw_crop_box(*image.size, self.pretext_crop_scale, generator=generator)
        view = resized_crop(image, box, self.pretext_crop_size)
        return self.transform(view, generator).unsqueeze(0)

    @abstractmethod
    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        """t(view) for a random t in T, drawn from `generator`: uint8 [3, S, S] -> the same."""


def draw_number(count: int, generator: torch.Generator | None) -> int:
    """Which of `count` transformations, uniformly: an int in [0, count)."""
    return int(torch.randint(count, (), generator=generator))
