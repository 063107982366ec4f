"""Chooses how to train on a folder of photos with this machine, and gives the reason for every choice.

The sizes, rates and counts are those that worked on several kinds of small data sets (docs/small_data_sets.md). They
are not the paper's: use its configs for ImageNet and similar data sets.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.experiments.schedules import SCHEDULE, WARM_UP, cosine, warmed_up_cosine
from pirl_plugin.launch.composition import quote
from pirl_plugin.launch.launcher import run as launch
from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_seed

CONFIG = "pretrain/pirl/jigsaw_small_images_cpu"
FEWEST_PHOTOS = 32
SAMPLE = 200  # photos whose size is examined
LARGEST_EXACT = 65_536  # images; up to this many, all others are the negatives
RATES = {"batch_norm": 0.015 / 32, "paper": 0.06 / 32}  # learning rate per image of the batch, by heads
HEADS = {
    "batch_norm": ("with batch normalisation", "without it, small data sets end worse than untrained"),
    "paper": ("as in the paper", "better for many photos of many kinds, if the loss ends lower"),
}
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = {"cpu": 1_000, "gpu": 20_000}, 12, {"cpu": 100, "gpu": 400}


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels of the view, of the canvas that is cut into 3 x 3, and of a patch; and the trunk's stem."""

    view: int
    canvas: int
    patch: int
    stem: str


# A patch is three eighths of the view or less, as in the paper (64 of 224).
GEOMETRIES = (Geometry(32, 42, 12, "small"), Geometry(64, 84, 24, "imagenet"), Geometry(96, 126, 36, "imagenet"),
              Geometry(224, 255, 64, "imagenet"))  # fmt: skip
LARGEST_VIEW = {"cpu": 96, "gpu": 224}


@dataclass(frozen=True)
class Photos:
    """The photos in a folder.

    Attributes:
        source: as given.
        count: number of images.
        side: the median of the shorter sides, in pixels.
    """

    source: Path
    count: int
    side: int

    @classmethod
    def of(cls, source: Path) -> Photos:
        """Count the images of a folder (or list), and read the sizes of up to SAMPLE of them.

        Raises:
            ConfigError: if there are too few, or none of the sample can be read.
        """
        files = list_images(source)
        if len(files) < FEWEST_PHOTOS:
            raise ConfigError(
                f"{source} has {len(files)} images; PIRL tells images apart and needs at least {FEWEST_PHOTOS}."
            )
        sides = []
        for place in np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).astype(int):
            try:
                sides.append(min(load_rgb(files[place]).size))
            except Exception:  # the run names and counts unreadable ones
                continue
        if not sides:
            raise ConfigError(f"None of {min(SAMPLE, len(files))} images of {source} that were tried can be read.")
        return cls(source, len(files), int(median(sides)))


@dataclass(frozen=True)
class Machine:
    """The machine that trains.

    Attributes:
        kind: cpu, or gpu if there is one.
        cores: number of cores that this process may use.
        gpus: number of GPUs.
        bfloat16: whether the GPUs have units for it.
    """

    kind: str
    cores: int
    gpus: int = 0
    bfloat16: bool = False

    @classmethod
    def here(cls) -> Machine:
        cores = len(os.sched_getaffinity(0))
        if not torch.cuda.is_available():
            return cls("cpu", cores)
        return cls("gpu", cores, torch.cuda.device_count(), torch.cuda.get_device_capability() >= (8, 0))


@dataclass(frozen=True)
class Choice:
    """One choice: its subject, what was chosen, and why."""

    about: str
    chosen: str
    why: str


@dataclass(frozen=True)
class Recipe:
    """A run of the ordinary launcher.

    Attributes:
        overrides: `config=...`, `config.KEY=value` ...
        choices: the reasons for them.
    """

    overrides: tuple[str, ...]
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        about, chosen = (max(len(getattr(one, key)) for one in self.choices) for key in ("about", "chosen"))
        return "\n".join(f"  {one.about:{about}}  {one.chosen:{chosen}}  {one.why}" for one in self.choices)


def override_value(path: Path) -> str:
    """A path as an override's value, quoted if necessary."""
    return str(path) if re.fullmatch(r"[A-Za-z0-9_./-]+", str(path)) else quote(path)


def geometry_for(side: int, kind: str) -> Geometry:
    """The largest sizes that need no more pixels than the photos have, or hardly more."""
    fitting = [one for one in GEOMETRIES if one.view <= 1.25 * side and one.view <= LARGEST_VIEW[kind]]
    return fitting[-1] if fitting else GEOMETRIES[0]


def epochs_for(count: int, batch: int, kind: str) -> int:
    """As many as it takes for STEPS steps: small data sets lacked steps, not epochs."""
    steps_an_epoch = max(1, count // batch)
    return int(np.clip(-(-STEPS[kind] // steps_an_epoch), FEWEST_EPOCHS, MOST_EPOCHS[kind]))


def recipe_for(
    photos: Photos,
    machine: Machine,
    output: Path,
    epochs: int | None = None,
    seed: int = 0,
    heads: str = "batch_norm",
    warm_up: bool = True,
) -> Recipe:
    """The run for some photos on a machine.

    Args:
        output: the checkpoint folder.
        epochs: None for the number from `epochs_for`.
        heads: `batch_norm`, or `paper` for the paper's, which are better where the loss ends lower with them.
        warm_up: let the learning rate rise at first (not with the paper's heads, with which it was not tried).
    """
    gpu = machine.kind == "gpu"
    sizes = geometry_for(photos.side, machine.kind)
    per_gpu = 128 if gpu else 32
    processes = max(1, min(machine.gpus, photos.count // (4 * per_gpu))) if gpu else 1
    per_gpu = min(per_gpu, max(8, photos.count // (4 * processes)))
    batch = per_gpu * processes
    count = epochs or epochs_for(photos.count, batch, machine.kind)
    rate = RATES[check_choice(heads, RATES, "--heads")] * batch
    warm_up &= heads == "batch_norm"
    exact = photos.count <= LARGEST_EXACT
    wide = gpu and sizes.view > 96 and photos.count >= 20_000
    width, depth = (1.0, 50 if wide else 18) if gpu else (0.25, 18)
    workers = max(2, min(14, machine.cores // processes - 1)) if gpu else min(4, machine.cores // 2) // 2 * 2
    precision = "bfloat16" if gpu and machine.bfloat16 else "float32"

    transform, trunk = "config.DATA.TRAIN.TRANSFORMS.0", "config.MODEL.TRUNK.RESNETS"
    loss = "config.LOSS.pirl_loss"
    overrides = [
        f"config={CONFIG}",
        f"config.DATA.TRAIN.DATA_PATHS=[{override_value(photos.source)}]",
        f"config.CHECKPOINT.DIR={override_value(output)}",
        f"config.SEED_VALUE={seed}",
        f"{transform}.image_crop_size={sizes.view}",
        f"{transform}.patch_crop_size={sizes.canvas}",
        f"{transform}.patch_size={sizes.patch}",
        f"{trunk}.STEM={sizes.stem}",
        f"{trunk}.DEPTH={depth}",
        f"{trunk}.WIDTH_MULTIPLIER={width:g}",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={per_gpu}",
        f"config.DATA.NUM_DATALOADER_WORKERS={workers}",
        f"config.OPTIMIZER.num_epochs={count}",
        *(warmed_up_cosine(rate) if warm_up else cosine(rate)),
        f"{loss}.negatives={'all' if exact else 'per_image'}",
    ]
    if not exact:
        overrides.append(f"{loss}.num_negatives=32000")
    if heads == "paper":
        overrides.append("config.MODEL.HEAD.PARAMS=[[pirl_heads,{branch:image}],[pirl_heads,{branch:jigsaw}]]")
    if gpu:
        overrides += [
            "config.MACHINE.DEVICE=gpu",
            "config.DISTRIBUTED.BACKEND=nccl",
            f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
            f"config.TRAINER.PIRL_TRAIN_STEP.precision={precision}",
        ]
    used = f"{processes} GPU{'s' * (processes > 1)}, {precision}" if gpu else f"{machine.cores} CPU cores, {precision}"
    largest = f"a {machine.kind.upper()} takes up to {LARGEST_VIEW[machine.kind]} here"
    rise = f"a rise for {WARM_UP:.0%} of the steps, then " if warm_up else ""
    tried = "at least four steps per epoch" if per_gpu < (128 if gpu else 32) else "as the recipe was tried"
    choices = (
        Choice("photos", f"{photos.count:,}", f"of about {photos.side} pixels, in {photos.source}"),
        Choice("machine", used, f"{workers or 'no'} extra processes read images"),
        Choice("views", f"{sizes.view} pixels, patches of {sizes.patch}", f"photos have {photos.side}; {largest}"),
        Choice("network", f"ResNet-{depth}, {width:g} wide", f"{sizes.stem} stem"),
        Choice("heads", *HEADS[heads]),
        Choice("batch", f"{batch}", "not yet tried on a GPU" if gpu else tried),
        Choice("epochs", f"{count}", "as asked" if epochs else f"{count * (photos.count // batch):,} steps in all"),
        Choice(
            "learning rate",
            f"{rate:g}",
            f"{32 * RATES[heads]:g} for a batch of 32, in proportion; {rise}a cosine to 1%",
        ),
        Choice(
            "negatives",
            "all other images" if exact else "32,000 per image",
            "exact, and cheap for so few" if exact else "all of them would cost more than the network",
        ),
    )
    return Recipe(tuple(overrides), choices)


def pretrain(
    source: Path,
    output: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    others: tuple[str, ...] = (),
    dry_run: bool = False,
    heads: str = "batch_norm",
) -> None:
    """Print the recipe for a folder of photos, and run it with the ordinary launcher.

    Args:
        output: the checkpoint folder; None for runs/<name of the folder>.
        others: overrides that take precedence over the recipe's; with any of the learning rate's schedule, there is no
            warm-up.
        dry_run: only print the recipe.
        heads: as `recipe_for`.

    Raises:
        ConfigError: for errors that the user can fix.
    """
    if epochs is not None:
        check_integer(epochs, "--epochs", 2)
    check_seed(seed, "--seed")
    photos = Photos.of(source.absolute())
    folder = (output or Path("runs") / name_of(source)).absolute()
    own_schedule = any(one.lstrip("+~").startswith((f"{SCHEDULE}.", f"{SCHEDULE}=")) for one in others)
    recipe = recipe_for(photos, Machine.here(), folder, epochs, seed, heads, warm_up=not own_schedule)
    launch_with(recipe.overrides, others, dry_run, f"{recipe}\n\n")


def name_of(source: Path) -> str:
    """The name of a folder, or of a file without its last ending."""
    whole = Path(os.path.normpath(source.absolute()))
    return (whole.name if whole.is_dir() else whole.stem) or "photos"


def launch_with(overrides: Sequence[str], others: Sequence[str], dry_run: bool, before: str = "") -> None:
    """Print the launcher's command, and run it.

    Args:
        overrides: its arguments.
        others: overrides that replace those of the same key.
        dry_run: only print it.
        before: text to print above the command.

    Raises:
        ConfigError: for what the user can put right.
    """
    replaced = {override.lstrip("+~").partition("=")[0] for override in others}
    if replaced & {SCHEDULE, f"{SCHEDULE}.name"}:  # these rates are of another schedule
        replaced |= {f"{SCHEDULE}.start_value", f"{SCHEDULE}.end_value"}
    overrides = [one for one in overrides if one.partition("=")[0] not in replaced] + list(others)
    print(f"{before}pirl train {shlex.join(overrides)}\n", flush=True)
    if not dry_run:
        launch(overrides)
