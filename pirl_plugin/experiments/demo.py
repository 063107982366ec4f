"""`pirl demo`: pre-trains on real photos within a time budget, evaluates the result and plots it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.evaluation.measures import instance_retrieval, usual_neighbors
from pirl_plugin.evaluation.quick import compare_with_untrained, table
from pirl_plugin.experiments.demo_data import DemoData, make_bundled_data, make_own_data
from pirl_plugin.experiments.demo_picture import draw
from pirl_plugin.experiments.demo_training import pretrain, progress_line
from pirl_plugin.launch.composition import quote
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.features import embed
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.crops import draw_crop_box, resized_crop
from pirl_plugin.validation import ConfigError, check_integer, check_number, check_seed

CONFIG = "pretrain/pirl/jigsaw_small_images_cpu"
SIZE = 32  # pixels, side of the views for evaluation
BATCH = 32  # images per step, over all processes
FEWEST_EPOCHS, MOST_EPOCHS = 6, 30


def run(output: Path, source: Path | None, budget_minutes: float, num_images: int, seed: int) -> dict:
    """Run the demo; returns the figures, which are also written to `output`/results.json.

    Raises:
        ConfigError: for unusable data or a budget that is too small.
    """
    started = time.monotonic()
    check_number(budget_minutes, "--budget-minutes", 0.25)
    check_integer(num_images, "--images", 64)
    check_seed(seed, "--seed")
    output = output.resolve()
    work = fresh_work_folder(output, source)

    _say(1, "measuring this machine")
    processes = max(1, min(2, os.cpu_count() or 1))
    seconds = seconds_per_image(processes)
    affordable = int(budget_minutes * 60 / seconds)
    num_train = max(64, min(num_images, affordable // FEWEST_EPOCHS))
    print(f"      {1 / seconds:.0f} images/s expected with {processes} process(es)")

    _say(2, f"preparing images from {source or 'the photos of scikit-image and scikit-learn'}")
    if source is None:
        data = make_bundled_data(work / "data", num_train, num_train // 4, seed)
    else:
        data = make_own_data(source, work / "data", num_train, num_train // 4, seed, progress_line("copied"))
        for name in data.unreadable[:10]:
            print(f"      unreadable, left out: {name}")
        if data.unreadable:
            print(f"      {len(data.unreadable)} files could not be read and were left out")
    epochs = int(np.clip(affordable // len(data.train_files), 2, MOST_EPOCHS))
    print(f"      {len(data.train_files)} to train on, {len(data.test_files)} held out")

    _say(3, f"pre-training for {epochs} epochs (the first fills the bank), at most {1.2 * budget_minutes:.1f} minutes")
    overrides = [
        f"config={CONFIG}",
        f"config.DATA.TRAIN.DATA_PATHS=[{quote(data.train_folder)}]",
        f"config.SEED_VALUE={seed}",
        f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={BATCH // processes}",
        f"config.CHECKPOINT.DIR={quote(work / 'run')}",
    ]
    trained = pretrain(overrides, output, work / "run", processes, epochs, 60 * budget_minutes)

    _say(4, "evaluating against the same network untrained")
    config = compose(overrides)
    checkpoint_path = newest_checkpoint(work / "run")
    checkpoint = load_checkpoint(checkpoint_path)
    results, features = evaluate(config, checkpoint, data)
    results |= {"epochs": checkpoint["train_phase_idx"] + 1, "train_images": len(data.train_files), "seed": seed}
    results["minutes"] = round((time.monotonic() - started) / 60, 1)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    _say(5, "drawing")
    picture = draw(output / "demo.png", config, data, trained.losses, results, features)
    print(f"\n{table(results)}\n\nPicture: {picture}\nNumbers: {output / 'results.json'}")
    print(f"Network: {checkpoint_path}")
    print(f"Took {results['minutes']} minutes.")
    return results


def fresh_work_folder(output: Path, source: Path | None) -> Path:
    """`output`/pirl_demo, after deleting only what an earlier demo left there.

    Raises:
        ConfigError: if it holds anything that a demo did not write, or the user's photos.
    """
    work = output / "pirl_demo"
    marker = work / ".written_by_pirl_demo"
    if source is not None and source.resolve().is_relative_to(work):
        raise ConfigError(f"--data is {str(source)!r}, inside {work}, which the demo empties; choose another --output.")
    if work.exists() and any(work.iterdir()) and not marker.is_file():
        raise ConfigError(f"{work} was not made by a demo and would be emptied; choose another --output.")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    marker.touch()
    return work


def _say(step: int, text: str) -> None:
    print(f"[{step}/5] {text}", flush=True)


def seconds_per_image(processes: int) -> float:
    """Seconds per training image on this machine with `processes` single-threaded processes, measured on a batch."""
    config = compose([f"config={CONFIG}", "config.DATA.TRAIN.DATA_PATHS=[.]"], check=False)
    transform = PRETEXT_TRANSFORMS["jigsaw_patch_transform"].from_config(config.DATA.TRAIN.TRANSFORMS[0])
    trunk = build_trunk(config).train()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(3):
            start = time.monotonic()
            views = [transform.views(photo) for _ in range(32)]
            for batch in (torch.stack([v[0] for v in views]), torch.cat([v[1] for v in views])):
                trunk(batch, ["flatten"])[0].square().mean().backward()
            times.append(time.monotonic() - start)
    finally:
        torch.set_num_threads(threads)
    # Half as much again for the loss, the optimiser, start-up and the processes' waiting for each other.
    return 1.5 * min(times) / 32 / processes


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint that VISSL's `checkpoint.torch` points to.

    Raises:
        ConfigError: if there is none.
    """
    path = folder / "checkpoint.torch"
    if not path.exists():
        raise ConfigError(f"There is no checkpoint in {folder}: the time budget was too small for one epoch.")
    return path.resolve()


def _random_crops(files: list[Path], seed: int) -> list[Image.Image]:
    generator, crops = torch.Generator().manual_seed(seed), []
    for path in files:
        image = load_rgb(path)
        pixels = resized_crop(image, draw_crop_box(*image.size, (0.3, 0.7), generator=generator), SIZE)
        crops.append(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    return crops


def evaluate(config, checkpoint: dict, data: DemoData) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Accuracies of the trained and the untrained network; the trained one's train and test features."""
    progress = lambda name: progress_line(f"{name}: embedded")  # noqa: E731
    view = Preprocessing.of_transforms(config.DATA.TRAIN.TRANSFORMS, SIZE).view()
    compute = Compute(choose_device())
    if data.train_labels is not None and data.test_labels is not None:
        train, test = (data.train_files, data.train_labels), (data.test_files, data.test_labels)
        k = usual_neighbors(len(data.train_files), len(data.class_names))
        seed = config.SEED_VALUE
        return compare_with_untrained(config, checkpoint, train, test, view, k, seed, progress, compute=compute)
    results = {}
    for name, weights in (("untrained", None), ("PIRL", checkpoint)):
        trunk = build_trunk(config, weights, seed=config.SEED_VALUE)
        views = (_random_crops(data.test_files, seed) for seed in (1, 2))
        first, second = (embed(trunk, crops, view, compute=compute) for crops in views)
        results[name] = {"instance retrieval": instance_retrieval(first, second)}
    train_features = embed(trunk, data.train_files, view, progress=progress("PIRL"), compute=compute)
    return results, (train_features, embed(trunk, data.test_files, view, compute=compute))
