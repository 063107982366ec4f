"""PASCAL VOC trees: checked before Detectron2 reads them, or made from a folder of images and one of XML files."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from pirl_plugin.data.subsets import sample_images
from pirl_plugin.validation import ConfigError

# What Detectron2's VOC evaluator reads of every object beside its box.
OBJECT_TAGS = {"name": None, "pose": "Unspecified", "truncated": "0", "difficult": "0"}


def check_split(folder: str | Path, split: str, name: str) -> None:
    """Refuse a split of a VOC tree that Detectron2 cannot read.

    Args:
        folder: with Annotations, JPEGImages and ImageSets/Main.
        split: e.g. trainval.
        name: of the data set, for the message.

    Raises:
        ConfigError: naming the file and what it lacks.
    """
    listing = Path(folder, "ImageSets", "Main", f"{split}.txt")
    if not listing.is_file():
        raise ConfigError(f"The data set {name} needs {listing}, which is not there.")
    images = listing.read_text().split()
    if len(images) < 2:
        raise ConfigError(f"{listing} names {len(images)} image(s); Detectron2 needs at least two (one a line).")
    for image in images:
        for path in (Path(folder, "JPEGImages", f"{image}.jpg"), Path(folder, "Annotations", f"{image}.xml")):
            if not path.is_file():
                raise ConfigError(f"{listing} names {image!r}, but there is no {path}.")
        _check_annotation(Path(folder, "Annotations", f"{image}.xml"))


def _check_annotation(path: Path) -> None:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ConfigError(f"The annotation {path} is not XML: {error}.") from error
    for tag in ("size/height", "size/width"):
        if root.findtext(tag) is None:
            raise ConfigError(f"The annotation {path} has no <{tag}>.")
    for item in root.iter("object"):
        boxes = [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
        for tag in (*OBJECT_TAGS, *boxes):
            if item.findtext(tag) is None:
                raise ConfigError(f"An object of the annotation {path} has no <{tag}>, which Detectron2 needs.")


def make_tree(
    images: str | Path, annotations: str | Path, output: str | Path, test_share: float, seed: int = 0
) -> dict:
    """A VOC tree with the splits train and test from images and annotations of the same names.

    What an object lacks of pose, truncated and difficult is filled in; the images are linked.

    Args:
        images: .jpg files.
        annotations: .xml files with the same names.
        output: a folder that is not there yet.
        test_share: share of the images that go to the test split, in (0, 1).

    Returns:
        {"train": images, "test": images, "classes": names}.

    Raises:
        ConfigError: where the output is there already, or an image has no annotation.
    """
    images, annotations, output = Path(images), Path(annotations), Path(output)
    if output.exists():
        raise ConfigError(f"{output} is there already; give a folder that is not.")
    files = sorted(images.glob("*.jpg"))
    if len(files) < 4 or not 0 < test_share < 1:
        raise ConfigError(
            f"{images} has {len(files)} .jpg files, of which a share of {test_share} cannot be a test split."
        )
    classes, trees = set(), {}
    for file in files:
        path = annotations / f"{file.stem}.xml"
        if not path.is_file():
            raise ConfigError(f"The image {file} has no annotation {path}.")
        trees[file.stem] = ElementTree.parse(path)
        for item in trees[file.stem].getroot().iter("object"):
            for tag, value in OBJECT_TAGS.items():
                if value is not None and item.findtext(tag) is None:
                    ElementTree.SubElement(item, tag).text = value
            classes.add(item.findtext("name"))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (output / name).mkdir(parents=True)
    for file in files:
        os.symlink(file.resolve(), output / "JPEGImages" / file.name)
        trees[file.stem].write(output / "Annotations" / f"{file.stem}.xml")
    count = min(len(files) - 2, max(2, round(len(files) * test_share)))
    test = {Path(path).stem for path in sample_images(output / "JPEGImages", count, seed, progress=False)}
    splits = {"train": [f.stem for f in files if f.stem not in test], "test": [f.stem for f in files if f.stem in test]}
    for name, stems in splits.items():
        (output / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return {**{name: len(stems) for name, stems in splits.items()}, "classes": sorted(classes)}
