"""Checks complete PASCAL VOC trees before Detectron2 reads them: it would fail during training, after the last
iteration, or not at all and count wrongly.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.validation import ConfigError, nearest

SIDES = ("xmin", "ymin", "xmax", "ymax")
# What Detectron2's VOC evaluator reads for every object besides its box.
OBJECT_TAGS = {"name": None, "pose": "Unspecified", "truncated": "0", "difficult": "0"}
ORIENTATION = 274  # EXIF's tag
SHOW_FROM = 1000  # images; with fewer the check shows no progress bar


def check_split(
    folder: str | Path, split: str, name: str, classes: Sequence[str] | None = None, tested: bool = False
) -> None:
    """Raise for a split of a VOC tree that Detectron2 cannot read, train on or evaluate.

    Args:
        folder: with Annotations, JPEGImages and ImageSets/Main.
        split: e.g. trainval.
        name: name of the data set, for the message.
        classes: names of the objects that the detector knows; None: any.
        tested: whether the split is used for evaluation, which needs integers and an object of each class.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    folder = Path(folder)
    if "{" in str(folder) or "}" in str(folder):
        raise ConfigError(f"The data set {name} lies in {folder}; Detectron2 cannot read below a folder with {{ or }}.")
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    images = split_names(listing, name)
    objects: Counter[str] = Counter()
    for image in tqdm(images, desc=f"Checking {name}", unit=" images", disable=len(images) < SHOW_FROM):
        photo, annotation = folder / "JPEGImages" / f"{image}.jpg", folder / "Annotations" / f"{image}.xml"
        for path in (photo, annotation):
            if not path.is_file():
                raise ConfigError(f"{listing} names {image!r}, but there is no {path}.")
        root = read_annotation(annotation)
        check_photo(photo, annotation, _whole(root, "size/width", annotation), _whole(root, "size/height", annotation))
        objects.update(_check_objects(root, annotation, classes, tested))
    missing = [one for one in classes or () if tested and not objects[one]]
    if missing:
        raise ConfigError(
            f"{listing} has no object (that is not marked difficult) of {', '.join(missing)}, which would count as an "
            f"average precision of 0: add images of them, or leave them out of the classes."
        )


def split_names(listing: Path, name: str) -> list[str]:
    """The images that a split names, one per line.

    Raises:
        ConfigError: for a line that Detectron2 reads as something else.
    """
    if not listing.is_file():
        raise ConfigError(f"The data set {name} needs {listing}, which does not exist.")
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{listing} is not in UTF-8: {error.reason} at byte {error.start}.") from error
    for number, line in enumerate(lines, start=1):
        image = line.strip()
        if not image or "#" in image or len(image.split()) > 1 or image.startswith("\ufeff"):
            raise ConfigError(
                f"Line {number} of {listing} is {line!r}; each must be the name of an image without its ending, "
                f"without blanks or #, and no line may be empty (pirl make-voc-tree makes such a tree)."
            )
    images = [line.strip() for line in lines]
    if len(images) < 2:
        raise ConfigError(f"{listing} names {len(images)} image(s); Detectron2 needs at least two (one per line).")
    twice = [image for image, count in Counter(images).items() if count > 1]
    if twice:
        raise ConfigError(f"{listing} names {twice[0]!r} more than once.")
    return images


def read_annotation(path: Path) -> ElementTree.Element:
    """The root element of an annotation.

    Raises:
        ConfigError: if it is not XML.
    """
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        hint = "; save it as UTF-8" if "invalid token" in str(error) else ""
        raise ConfigError(f"The annotation {printable(path)} is not XML: {error}{hint}.") from error


def shown_size(path: Path) -> tuple[int, int, bool]:
    """Width and height of a photo as Detectron2 reads it, and whether its EXIF data rotate it by 90 degrees.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            (width, height), turned = image.size, image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(-min(64, path.stat().st_size), os.SEEK_END)
            whole = start == b"\xff\xd8" and b"\xff\xd9" in file.read()
        if not whole:  # truncated, with data after its end, or not a JPEG: decode it to know
            load_rgb(path)
    except Exception as error:  # whatever a broken file makes PIL raise
        raise ConfigError(f"The photo {printable(path)} cannot be read: {type(error).__name__}: {error}.") from error
    return (height, width, True) if turned else (width, height, False)


def check_photo(photo: Path, annotation: Path, width: int, height: int) -> None:
    """Raise for a photo that cannot be read, or whose size differs from its annotation's.

    Raises:
        ConfigError: naming both files and both sizes.
    """
    wide, high, turned = shown_size(photo)
    if (wide, high) == (width, height):
        return
    hint = "it turns the photo as its EXIF orientation says: rotate it, or remove the tag" if turned else ""
    swapped = "width and height are swapped" if (high, wide) == (width, height) else "put the true size there"
    raise ConfigError(
        f"The annotation {printable(annotation)} says that the photo has {width} x {height} pixels, but Detectron2 "
        f"reads {printable(photo)} with {wide} x {high}: {hint or swapped}."
    )


def _check_objects(root: ElementTree.Element, path: Path, classes: Sequence[str] | None, tested: bool) -> list[str]:
    """Names of the objects that count in an evaluation."""
    counted = []
    for item in root.findall("object"):
        for tag in (*(OBJECT_TAGS if tested else ("name",)), *(f"bndbox/{side}" for side in SIDES)):
            if item.findtext(tag) is None:
                raise ConfigError(f"An object of the annotation {path} has no <{tag}>, which Detectron2 needs.")
        name = item.findtext("name") or ""
        if classes is not None and name not in classes:
            raise ConfigError(
                f"The annotation {path} has an object {name!r}, not one of the classes{nearest(name, classes)}: "
                f"{', '.join(classes)}."
            )
        box = [_number(item, f"bndbox/{side}", path, tested) for side in SIDES]
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ConfigError(f"An object of the annotation {path} has the box {box}; give xmin < xmax, ymin < ymax.")
        # Detectron2 reads these only when it evaluates, at the end, and not during training.
        flags = [_number(item, tag, path, whole=True) for tag in ("truncated", "difficult")] if tested else (0, 0)
        if not flags[1]:
            counted.append(name)
    return counted


def _number(item: ElementTree.Element, tag: str, path: Path, whole: bool) -> float:
    text = item.findtext(tag) or ""
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(
            f"An object of the annotation {path} has <{tag}> {text!r}; Detectron2 needs {kind} there (pirl "
            f"make-voc-tree rounds, and fills in)."
        ) from error


def _whole(root: ElementTree.Element, tag: str, path: Path) -> int:
    text = root.findtext(tag)
    if text is None:
        raise ConfigError(f"The annotation {path} has no <{tag}>.")
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"The annotation {path} has <{tag}> {text!r}; it must be a whole number.") from error
