"""Small sets of similar photos: features before and after training, with the paper's heads and with the recipe.

    python benchmarks/small_sets.py --cifar cifar10 --output small_sets [--sets digits tiny] [--seeds 0 1 2] [--jobs 2]

Sets are made from scikit-learn's digits, scikit-image's textures and a folder with CIFAR-10's photos,
cifar10/{train,test}/<class>/. Each is trained by the launcher twice: with heads as in the paper, a learning rate of
0.06 and 12 epochs (`paper's heads`), and by `pirl pretrain` (`recipe`); `--recipes` names others, each with one thing
changed. Held-out photos are evaluated like in `pirl evaluate`, compared with the untrained network, and once more with
BatchNorm's averages recomputed. A call resumes where the last one ended; the table is over seeds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import TextIO

import numpy as np
from measuring import machine, print_table
from PIL import Image, ImageOps

from pirl_plugin.evaluation.quick import NETWORKS, RECOMPUTED
from pirl_plugin.experiments.schedules import cosine

VEHICLES = ("airplane", "automobile", "ship", "truck")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD_OUT = 1000
PAPERS_HEADS = [
    "config.MODEL.HEAD.PARAMS=[[pirl_heads,{branch:image}],[pirl_heads,{branch:jigsaw}]]",
    *cosine(0.06),
    "config.OPTIMIZER.num_epochs=12",
]


def digits(folder: Path, cifar: Path | None, count: int, side: int = 32) -> None:
    """scikit-learn's handwritten digits, grey, enlarged from 8 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    for split, chosen in (("train", order[:count]), ("test", order[1200:])):
        for number in chosen:
            target = folder / split / str(data.target[number])
            target.mkdir(parents=True, exist_ok=True)
            pixels = (255 / 16 * data.images[number]).round().astype(np.uint8)
            Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).save(target / f"{number:04}.png")


def photos(folder: Path, cifar: Path | None, classes: tuple[str, ...], count: int, grey: bool = False) -> None:
    """Some classes of CIFAR-10, `count` photos to train on."""
    if cifar is None:
        sys.exit("Error: --cifar is missing; give a folder with train/<class> and test/<class>.")
    for split, most in (("train", count), ("test", HELD_OUT)):
        for name in classes:
            files = sorted((cifar / split / name).iterdir())
            order = np.random.default_rng(0).permutation(len(files))[: most // len(classes)]
            target = folder / split / name
            target.mkdir(parents=True)
            for number in order:
                if grey:
                    ImageOps.grayscale(Image.open(files[number])).save(target / f"{files[number].stem}.png")
                else:
                    shutil.copy(files[number], target)


def textures(folder: Path, cifar: Path | None, count: int) -> None:
    """Tiles of 64 pixels of three grey photos that come with scikit-image; held-out ones of other parts of them."""
    import skimage.data

    rng = np.random.default_rng(0)
    for name in ("brick", "grass", "gravel"):
        photo = Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("L")
        width, height = photo.size
        for split, most, first, last in (("train", count, 0.0, 0.65), ("test", HELD_OUT, 0.7, 1.0)):
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(most // 3):
                left = int(rng.integers(first * width, last * width - 64))
                top = int(rng.integers(0, height - 64))
                photo.crop((left, top, left + 64, top + 64)).save(target / f"{number:04}.png")


SETS: dict[str, tuple[str, Callable[[Path, Path | None], None]]] = {
    "digits": ("1,200 digits, grey", lambda folder, cifar: digits(folder, cifar, 1200)),
    "few digits": ("300 digits, grey", lambda folder, cifar: digits(folder, cifar, 300)),
    "large digits": ("600 digits of 96 px, grey", lambda folder, cifar: digits(folder, cifar, 600, side=96)),
    "tiny": ("300 photos of 10 classes", lambda folder, cifar: photos(folder, cifar, CLASSES, 300)),
    "grey vehicles": ("600 vehicles, grey, 4 classes", lambda f, c: photos(f, c, VEHICLES, 600, grey=True)),
    "cats and dogs": ("1,500 cats and dogs", lambda folder, cifar: photos(folder, cifar, ("cat", "dog"), 1500)),
    "cars": ("1,500 cars and trucks", lambda folder, cifar: photos(folder, cifar, ("automobile", "truck"), 1500)),
    "textures": ("300 tiles of 64 px, three grey textures", lambda folder, cifar: textures(folder, cifar, 300)),
    "mixed": ("2,000 photos of 10 classes", lambda folder, cifar: photos(folder, cifar, CLASSES, 2000)),
}
LOSS, OPTIMIZER, TRANSFORM = "config.LOSS.pirl_loss", "config.OPTIMIZER", "config.DATA.TRAIN.TRANSFORMS.0"
# The first two are the comparison; the others change one setting of the first, to rule out causes.
RECIPES: dict[str, list[str]] = {
    "paper's heads": PAPERS_HEADS,
    "recipe": [],
    "rate 0.004": [*PAPERS_HEADS, *cosine(0.004)],
    "48 epochs": [*PAPERS_HEADS, f"{OPTIMIZER}.num_epochs=48"],
    "temperature 0.5": [*PAPERS_HEADS, f"{LOSS}.temperature=0.5"],
    "64 negatives": [*PAPERS_HEADS, f"{LOSS}.negatives=per_image", f"{LOSS}.num_negatives=64"],
    "infonce": [*PAPERS_HEADS, f"{LOSS}.contrast=infonce"],
    "fill_first off": [*PAPERS_HEADS, f"{LOSS}.memory_bank.fill_first=False"],
    "momentum 0.9": [*PAPERS_HEADS, f"{LOSS}.memory_bank.momentum=0.9"],
    "larger crops": [*PAPERS_HEADS, f"{TRANSFORM}.image_crop_scale=[0.6,1.0]"],
    "no weight decay": [*PAPERS_HEADS, f"{OPTIMIZER}.weight_decay=0"],
    "batch 128": [*PAPERS_HEADS, "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=128", f"{OPTIMIZER}.num_epochs=48"],
    "paper's heads at the recipe's rate": [*PAPERS_HEADS, *cosine(0.015)],
    "recipe's heads at 0.06, 12 epochs": PAPERS_HEADS[1:],
    "recipe, no warm-up": cosine(0.015),
    "small_images config": [*cosine(0.015), f"{OPTIMIZER}.num_epochs=12"],  # the config's own schedule and epochs
}  # fmt: skip


def measure(output: Path, name: str, recipe: str, seed: int) -> dict:
    """Train and evaluate, also with BatchNorm's averages recomputed on the training photos.

    Returns:
        the NETWORKS of `pirl evaluate --json`, and `effective_rank`. An existing result is reused.
    """
    folder = output / name.replace(" ", "_")
    run = folder / f"{''.join(c if c.isalnum() or c == '.' else '_' for c in recipe.replace(chr(39), ''))}_{seed}"
    json_file, train = Path(f"{run}.json"), folder / "train"
    if not json_file.exists():
        started = time.time()

        def pirl(log: TextIO, *arguments: object) -> None:
            command = [sys.executable, "-m", "pirl_plugin.commands", *map(str, arguments)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)

        with open(f"{run}.log", "w") as log:
            others = ["--set", *RECIPES[recipe]] if RECIPES[recipe] else []
            pirl(log, "pretrain", train, "--output", run, "--seed", seed, *others)
            measured = ["--train", train, "--test", folder / "test", "--recompute-batchnorm", "--json", json_file]
            pirl(log, "evaluate", run / "checkpoint.torch", *measured)
        minutes, results = (time.time() - started) / 60, json.loads(json_file.read_text())
        found = " -> ".join(str(results[network]) for network in NETWORKS)
        print(f"{name}, {recipe}, seed {seed}, {minutes:.1f} minutes: {found}", flush=True)
        for checkpoint in run.glob("*.torch"):
            checkpoint.unlink()
    with open(run / "monitor.csv", newline="") as file:
        rank = [row["effective_rank"] for row in csv.DictReader(file)][-1]
    return json.loads(json_file.read_text()) | {"effective_rank": float(rank)}


def mean_of(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def accuracies(of_seeds: list[dict[str, float]]) -> str:
    """kNN / linear, over seeds."""
    return " / ".join(mean_of([one[key] for one in of_seeds]) for key in of_seeds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES)[:2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core")
    options = parser.parse_args()
    for name in options.sets:
        folder = options.output.absolute() / name.replace(" ", "_")
        if not (folder / "test").is_dir():
            SETS[name][1](folder, options.cifar)
    tasks = [(name, recipe, seed) for seed in options.seeds for name in options.sets for recipe in options.recipes]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(tasks, pool.map(lambda task: measure(options.output.absolute(), *task), tasks), strict=True))
    rows = [["", "untrained", *(cell for recipe in options.recipes for cell in (recipe, "recomputed"))]]
    for name in options.sets:
        seeds = {recipe: [found[name, recipe, seed] for seed in options.seeds] for recipe in options.recipes}
        cells = [accuracies([one["untrained"] for one in seeds[options.recipes[0]]])]
        for of_recipe in seeds.values():
            rank = mean([one["effective_rank"] for one in of_recipe])
            cells.append(f"{accuracies([one['PIRL'] for one in of_recipe])} / {rank:.1f}")
            cells.append(accuracies([one[RECOMPUTED] for one in of_recipe]))
        rows.append([SETS[name][0], *cells])
    title = f"kNN / linear of held-out photos, % / effective rank; averages recomputed, {len(options.seeds)} seed(s)"
    if len(rows) < len(rows[0]):
        rows = [list(column) for column in zip(*rows, strict=True)]
    print_table(f"{title}, {machine()['processor']}", rows)
    table = {f"{name}, {recipe}, seed {seed}": results for (name, recipe, seed), results in found.items()}
    (options.output / "results.json").write_text(json.dumps({"machine": machine(), "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
