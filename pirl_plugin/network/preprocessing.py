"""The preprocessing a network expects: the size, the normalisation and the resizing that it was trained with.

A mismatch changes no shape, so it would go unnoticed. A run records its preprocessing in its checkpoints, an export in
its file or the .json beside it; everything that embeds images reads it from there and prints it with its result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from torch import Tensor

from pirl_plugin.network.checkpoints import config_in
from pirl_plugin.network.features import center_view, resized_side
from pirl_plugin.pretext.base import IMAGENET_MEAN, IMAGENET_STD
from pirl_plugin.validation import ConfigError, check_integer, check_number

Levels = tuple[float, float, float]
SIZES = (8, 4096)  # pixels of a view; below, a ResNet has no map left


@dataclass(frozen=True)
class Preprocessing:
    """The plain view of an image that a network was trained on.

    Attributes:
        size: side of the view, in pixels.
        mean, std: of RGB levels in [0, 1].
        known: whether the network's file records it; if not, ImageNet's is assumed.
    """

    size: int
    mean: Levels = IMAGENET_MEAN
    std: Levels = IMAGENET_STD
    known: bool = False

    @property
    def resize(self) -> int:
        """The shorter side before the centre crop, in pixels."""
        return resized_side(self.size)

    def sized(self, size: int | None) -> Preprocessing:
        """The same with views of `size` pixels; unchanged for None.

        Raises:
            ConfigError: for a size that is no whole number in SIZES.
        """
        return self if size is None else replace(self, size=check_integer(size, "--size", *SIZES))

    def view(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> float32 [3, size, size]."""
        return center_view(self.size, self.mean, self.std)

    def record(self) -> dict[str, Any]:
        """What a checkpoint or an export stores of it; `from_record` reads it."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_record(cls, record: Any, source: str) -> Preprocessing:
        """The inverse of `record`.

        Raises:
            ConfigError: naming `source`, if it is not such a record.
        """
        try:
            mean, std = ([float(value) for value in record[key]] for key in ("mean", "std"))
            size = check_integer(record["size"], "size", 1)
            for low, values in ((0.0, mean), (1e-6, std)):
                if len(values) != 3:
                    raise ValueError("three numbers are needed, one per channel")
                for value in values:
                    check_number(value, "a level", low, 1.0)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{source} says that its network expects the images {record!r}: {error}.") from error
        return cls(size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), known=True)

    @classmethod
    def of_transforms(cls, transforms: Sequence[Mapping[str, Any]], usual_size: int) -> Preprocessing:
        """From DATA.TRAIN.TRANSFORMS of a config: a pretext transform, or transforms of VISSL with a Normalize.

        Args:
            usual_size: used if the transforms cut patches or give no size.
        """
        for entry in transforms:
            if "image_crop_size" in entry:
                levels = {"mean": entry.get("mean", IMAGENET_MEAN), "std": entry.get("std", IMAGENET_STD)}
                return cls.from_record({"size": entry["image_crop_size"], **levels}, str(entry.get("name")))
        by_name = {entry.get("name"): entry for entry in transforms}
        if "Normalize" not in by_name:
            return cls(usual_size)
        crop = by_name.get("RandomResizedCrop") or by_name.get("CenterCrop") or {}
        patches = any("Patches" in str(name) for name in by_name)
        size = crop["size"] if not patches and isinstance(crop.get("size"), int) else usual_size
        normalise = by_name["Normalize"]
        return cls.from_record({"size": size, "mean": normalise["mean"], "std": normalise["std"]}, "Normalize")

    def __str__(self) -> str:
        levels = ", ".join(f"{value:.3g}" for value in (*self.mean, *self.std))
        origin = "as in its training" if self.known else "unknown: ImageNet's are assumed"
        return f"images of {self.size} pixels (shorter side to {self.resize}), mean and std {levels} ({origin})"


def usual_size(config: Mapping[str, Any]) -> int:
    """Image size in pixels of a run's network whose file does not say: the usual size for its stem."""
    return 32 if config["MODEL"]["TRUNK"].get("RESNETS", {}).get("STEM") == "small" else 224


def preprocessing_of(path: str | Path, content: Any, usual_size: int) -> Preprocessing:
    """The preprocessing that the network in a file expects.

    Args:
        path: the file; an export's .json or a run's train_config.yaml beside it is read as well.
        content: what the file holds.
        usual_size: pixels, for a file that does not say.

    Raises:
        ConfigError: for a record that cannot be right.
    """
    path = Path(path)
    run = content.get("classy_state_dict") if isinstance(content, Mapping) else None
    state = run.get("pirl_plugin") if isinstance(run, Mapping) else None
    if isinstance(state, Mapping) and "images" in state:
        return Preprocessing.from_record(state["images"], str(path))
    notes = notes_of(path)
    if notes is not None and "images" in notes:
        if notes["images"] is None:
            return Preprocessing(usual_size)
        return Preprocessing.from_record(notes["images"], f"{path} (or the .json beside it)")
    config = config_in(path.resolve().parent) if isinstance(run, Mapping) else None
    if config is not None:
        data = config.get("DATA", {}).get("TRAIN", {})
        return Preprocessing.of_transforms(data.get("TRANSFORMS") or [], usual_size)
    return Preprocessing(usual_size)


def notes_of(path: str | Path) -> dict[str, Any] | None:
    """An export's notes on its file, from a .safetensors file itself or the .json beside it."""
    for text in (_header(Path(path)), _beside(Path(path))):
        notes = _json(text)
        if isinstance(notes, dict):
            return notes
    return None


def _header(path: Path) -> str | None:
    """The notes that an export writes into the header of a .safetensors file."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(str(path), framework="pt") as file:
        return (file.metadata() or {}).get("pirl_plugin")


def _beside(path: Path) -> str | None:
    notes = path.with_name(path.name + ".json")
    return notes.read_text(encoding="utf-8", errors="replace") if notes.is_file() else None


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None  # written by another program
