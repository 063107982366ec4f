"""Samples per second of one loader worker on JPEG files, compared with VISSL's own PIRL pipeline on the same files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import alternate, machine, median_ms, print_table, write_json
from PIL import Image
from vissl.data import build_dataset, get_collator

from pirl_plugin.data.collator import pirl_collator
from pirl_plugin.data.image_files import list_images, load_pixels
from pirl_plugin.experiments.demo_data import bundled_photos
from pirl_plugin.host import mends
from pirl_plugin.launch.launcher import compose
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS

TRANSFORM = "config.DATA.TRAIN.TRANSFORMS.0"
VARIANTS = {
    "VISSL": ["config=pretrain/pirl/pirl_jigsaw_4node_resnet50"],
    "augmented by the worker": ["config=pretrain/pirl/jigsaw_8node"],
    "augmented and normalised by the worker": [
        "config=pretrain/pirl/jigsaw_8node",
        "config.TRAINER.TRAIN_STEP_NAME=standard_train_step",
    ],
    "augmented on the device": ["config=pretrain/pirl/jigsaw_8node", f"+{TRANSFORM}.augment_on=device"],
}


def make_photos(folder: Path, count: int, width: int = 500, height: int = 375) -> None:
    """Write `count` JPEGs cut from the photos of scikit-image and scikit-learn, with camera noise, quality 92."""
    sources = [photo for photo in bundled_photos().values() if min(photo.size) >= 300]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        photo = sources[number % len(sources)]
        scale = rng.uniform(0.85, 1.0) * min(photo.width / width, photo.height / height)
        left, top = rng.uniform(0, photo.width - width * scale), rng.uniform(0, photo.height - height * scale)
        box = (left, top, left + width * scale, top + height * scale)
        cut = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS, box)).astype(float)
        noisy = (cut + rng.normal(0, 3, cut.shape)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:03d}.jpg", quality=92, subsampling=2)


def reader(overrides: list[str], photos: Path, batch: int) -> Callable[[], object]:
    """A function that makes the next batch like a worker of VISSL's loader: read, decode, transform, collate."""
    config = compose([*overrides, f"config.DATA.TRAIN.DATA_PATHS=[{photos}]"], check=False)
    mends.register_data_paths(config)
    dataset = build_dataset(config, "TRAIN")
    collate = get_collator(config.DATA.TRAIN.COLLATE_FUNCTION, config.DATA.TRAIN.COLLATE_FUNCTION_PARAMS)
    place = 0

    def read() -> object:
        nonlocal place
        numbers = [(place + offset) % len(dataset) for offset in range(batch)]
        place += batch
        return collate([dataset[number] for number in numbers])

    return read


def breakdown(photos: Path, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per batch of each stage of the plugin's pipeline, in the worker's order."""
    task, files = PRETEXT_TRANSFORMS["jigsaw_patch_transform"](normalize_on="device"), list_images(photos)[:batch]
    images = [load_pixels(file) for file in files]
    crops = [task.crops(image) for image in images]
    drawn = [task.draw_photometric(None) for _ in images]
    samples = [{"images": a[0], "pretext": b, "data_idx": [0], "data_valid": [1]} for a, b in crops]

    def augment() -> None:
        for (image, pretext), parameters in zip(crops, drawn, strict=True):
            task.augment(image, parameters[:1])
            task.augment(pretext, parameters[1:])

    stages = {
        "read and decode": lambda: [load_pixels(file) for file in files],
        "crop, cut, permute": lambda: [task.crops(image) for image in images],
        "draw photometric parameters": lambda: [task.draw_photometric(None) for _ in images],
        "photometric augmentation": augment,
        "collate": lambda: pirl_collator(samples),
    }
    return alternate(stages, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/input_pipeline.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder, "photos", "all"), options.photos)
        bytes_a_photo = np.mean([path.stat().st_size for path in Path(folder).rglob("*.jpg")])
        readers = {
            name: reader(overrides, Path(folder, "photos"), options.batch) for name, overrides in VARIANTS.items()
        }
        seconds = alternate(readers, options.repeats)
        stages = breakdown(Path(folder, "photos"), options.batch, options.repeats)
    vissl = median_ms(seconds["VISSL"]) / options.batch
    rows = [["one core", "ms a sample", "samples/s", "faster"]]
    for name, values in seconds.items():
        one = median_ms(values) / options.batch
        rows.append([name, f"{one:.2f}", f"{1000 / one:.0f}", f"{vissl / one:.1f}x"])
    print_table(f"500x375 JPEGs of {bytes_a_photo / 1024:.0f} KiB, 224 + 9x64, read to collated; medians", rows)
    rows = [["stage", "ms a sample"], *([name, f"{median_ms(v) / options.batch:.2f}"] for name, v in stages.items())]
    print_table("Where a worker's time goes", rows)
    settings = {"photos": options.photos, "batch": options.batch, "bytes_a_photo": float(bytes_a_photo)}
    write_json(options.output, {"settings": settings, "batch_seconds": seconds, "stage_seconds": stages})


if __name__ == "__main__":
    main()
