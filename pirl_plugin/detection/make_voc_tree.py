"""Makes a VOC tree for Detectron2 from a folder of images and a folder of XML annotations by annotation tools."""

from __future__ import annotations

import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.file_names import EXTENSIONS, is_hidden
from pirl_plugin.detection.voc_trees import OBJECT_TAGS, SIDES, check_split, read_annotation, shown_size
from pirl_plugin.validation import ConfigError, check_number, check_seed

CLASSES = "classes.txt"  # in a tree: the names of its objects, one per line


def make_tree(
    images: str | Path, annotations: str | Path, output: str | Path, test_share: float, seed: int = 0
) -> dict:
    """Make a VOC tree with the splits train and test from images and annotations of the same names.

    Fields that Detectron2 needs and annotations lack are filled in (pose, truncated, difficult, the photo's size),
    boxes are rounded to whole pixels, and blanks and # in names become _; images are linked. Both splits contain each
    class.

    Args:
        images: files of any of EXTENSIONS.
        annotations: .xml files with the same names.
        output: a folder that does not exist yet.
        test_share: share of the images that go to the test split, in (0, 1).
        seed: seed of the split.

    Returns:
        {"train": images, "test": images, "classes": names}.

    Raises:
        ConfigError: if the output exists already, an image has no annotation, an annotation cannot be used, or a
            class is in one image only.
    """
    images, annotations, output = Path(images), Path(annotations), Path(output)
    if output.exists():
        raise ConfigError(f"{output} exists already; give a folder that does not.")
    check_number(test_share, "--test-share", 0, 1, above=True)
    if test_share == 1:
        raise ConfigError("--test-share is 1, which leaves nothing to train on; it must be below 1.")
    check_seed(seed, "--seed")
    files = _images_in(images)
    trees = {}
    for name, file in files.items():
        path = annotations / f"{file.stem}.xml"
        if not path.is_file():
            raise ConfigError(f"The image {printable(file)} has no annotation {printable(path)}.")
        trees[name] = read_annotation(path)
        _complete(trees[name], path, file)
    counted = {name: _counted_classes(root) for name, root in trees.items()}
    classes = sorted({name for root in trees.values() for name in _names(root)})
    splits = stratified_split(counted, classes, test_share, seed)
    unfinished = output.with_name(f"{output.name}.{os.getpid()}.unfinished")
    try:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (unfinished / part).mkdir(parents=True)
        for name, file in files.items():
            os.symlink(file.resolve(), unfinished / "JPEGImages" / f"{name}.jpg")  # whatever its format: PIL checks
            ElementTree.ElementTree(trees[name]).write(unfinished / "Annotations" / f"{name}.xml", encoding="utf-8")
        for split, names in splits.items():
            listing = unfinished / "ImageSets" / "Main" / f"{split}.txt"
            listing.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        (unfinished / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        for split in splits:
            check_split(unfinished, split, str(output), classes, tested=split == "test")
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {**{split: len(names) for split, names in splits.items()}, "classes": classes}


def classes_of(folder: str | Path) -> list[str]:
    """The class names of a tree, which `make_tree` wrote.

    Raises:
        ConfigError: if there is no such file.
    """
    path = Path(folder, CLASSES)
    if not path.is_file():
        raise ConfigError(f"--data {folder} has no {CLASSES}: give --classes, the names of the objects, or that file.")
    return path.read_text(encoding="utf-8").splitlines()


def _images_in(folder: Path) -> dict[str, Path]:
    """Images by their names in the tree."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in EXTENSIONS and not is_hidden(path.name))
    if len(found) < 4:
        raise ConfigError(
            f"{folder} has {len(found)} images ({', '.join(EXTENSIONS)}); two splits of two images need at least four."
        )
    stems = Counter(path.stem for path in found)
    for path in found:
        if stems[path.stem] > 1:
            raise ConfigError(f"{folder} has several images named {printable(path.stem)}, with different endings.")
    named: dict[str, Path] = {}
    for path in found:
        name = re.sub(r"[\s#]+|[^ -~\u00a0-\U0010ffff]|[\udc80-\udcff]", "_", path.stem)
        while name in named or (name != path.stem and name in stems):
            name += "_"
        named[name] = path
    return named


def _complete(root: ElementTree.Element, path: Path, image: Path) -> None:
    """Complete an annotation so that Detectron2 can read it."""
    width, height, _ = shown_size(image)
    size = root.find("size")
    if size is None:
        size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height)):
        if (size.findtext(tag) or "0").strip() in ("", "0"):
            _set(size, tag, str(value))
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if not name or "/" in name:
            raise ConfigError(
                f"An object of the annotation {printable(path)} has the name {name!r}: give one without /."
            )
        _set(item, "name", name)
        _set(item, "pose", item.findtext("pose") or OBJECT_TAGS["pose"] or "")
        for tag in ("truncated", "difficult"):
            _set(item, tag, str(int(_is_set(item.findtext(tag) or "0"))))
        for side in SIDES:
            text = item.findtext(f"bndbox/{side}")
            try:
                rounded = round(float(text or ""))
            except (ValueError, OverflowError) as error:
                raise ConfigError(
                    f"An object of the annotation {printable(path)} has <bndbox/{side}> {text!r}; it must be a number."
                ) from error
            box = item.find("bndbox")
            assert box is not None
            _set(box, side, str(rounded))
        if not _has_area(item):
            raise ConfigError(
                f"An object of the annotation {printable(path)} has a box that is empty in whole pixels; it needs "
                f"xmin < xmax and ymin < ymax."
            )


def _has_area(item: ElementTree.Element) -> bool:
    left, top, right, bottom = (int(item.findtext(f"bndbox/{side}") or 0) for side in SIDES)
    return left < right and top < bottom


def _set(parent: ElementTree.Element, tag: str, text: str) -> None:
    child = parent.find(tag)
    if child is None:
        child = ElementTree.SubElement(parent, tag)
    child.text = text


def _is_set(text: str) -> bool:
    """A flag as tools write it: 0, 1, a share such as 0.06, true, or a word for "unspecified"."""
    try:
        return float(text) > 0
    except ValueError:
        return text.strip().lower() in ("true", "yes")


def _names(root: ElementTree.Element) -> list[str]:
    return [item.findtext("name") or "" for item in root.findall("object")]


def _counted_classes(root: ElementTree.Element) -> set[str]:
    """The classes of an image's objects that count in an evaluation."""
    return {item.findtext("name") or "" for item in root.findall("object") if item.findtext("difficult") == "0"}


def stratified_split(
    counted: Mapping[str, set[str]], classes: Sequence[str], test_share: float, seed: int
) -> dict[str, list[str]]:
    """{"train": images, "test": images}: about the same share of each class, and at least one image, in both.

    Args:
        counted: by image, the classes of its objects.

    Raises:
        ConfigError: if a class is in fewer than two images.
    """
    order = [sorted(counted)[place] for place in np.random.default_rng(seed).permutation(len(counted))]
    having = {one: [image for image in order if one in counted[image]] for one in classes}
    test: set[str] = set()
    left = {one: len(images) for one, images in having.items()}  # images per class that are still in train
    in_test = dict.fromkeys(classes, 0)

    def move(image: str) -> None:
        """Move an image to the test split, unless it is the last training image of a class."""
        if image in test or any(left[other] < 2 for other in counted[image]):
            return
        test.add(image)
        for other in counted[image]:
            left[other] -= 1
            in_test[other] += 1

    for one in sorted(classes, key=lambda one: len(having[one])):
        if len(having[one]) < 2:
            raise ConfigError(
                f"The class {one!r} has objects that are not difficult in {len(having[one])} image(s); it needs two, "
                f"one to train on and one to test on."
            )
        wanted = min(len(having[one]) - 1, max(1, round(test_share * len(having[one]))))
        for image in having[one]:
            if in_test[one] >= wanted:
                break
            move(image)
    count = min(len(order) - 2, max(2, round(len(order) * test_share)))
    for image in order:
        if len(test) < count:
            move(image)
    lacking = [one for one in classes if not in_test[one]]
    if lacking or len(order) - len(test) < 2:
        raise ConfigError(
            f"The images cannot be split so that each class is in both splits ({', '.join(lacking) or 'too few'}): the "
            f"same images hold several rare classes; add images."
        )
    return {"train": sorted(set(order) - test), "test": sorted(test)}
