"""A study's 1% and 10% of the labels by fine-tuning the whole network, as in the paper (Section 4.2, Table 3)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pirl_plugin.data.image_files import labelled_class_folders
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.experiments.benchmarking import last_line
from pirl_plugin.experiments.benchmarks import last_test
from pirl_plugin.experiments.finetune import finetuning
from pirl_plugin.experiments.recipe import Machine
from pirl_plugin.experiments.study_runs import Run, run_launcher
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.weights import Architecture

SHARES = {"finetuned_1percent": 0.01, "finetuned_10percent": 0.1}
BATCH = 32
FEWEST_EPOCHS, MOST_EPOCHS, STEPS = 20, 100, 300  # 20 epochs as in the paper; up to 100 if they are below 300 steps


def some_labels(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of a class-balanced random share of labelled images, at least one per class: int64 [n].

    Args:
        labels: integers [N].
        share: in (0, 1].
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = max(1, round(share * len(places)))
        chosen.append(generator.permutation(places)[:count])
    return np.sort(np.concatenate(chosen))


def lay_out_share(train: Path, target: Path, share: float, seed: int) -> int:
    """Make links to a share of each class of a folder, the same whenever and however often this is called.

    Returns:
        how many there are.
    """
    files, labels = labelled_images(train)
    classes = labelled_class_folders(train)
    chosen = some_labels(labels, share, seed)
    for place in chosen:
        link = target / classes[labels[place]].name / Path(files[place]).name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(Path(files[place]).resolve())
        except FileExistsError:  # another run has the same seed
            continue
    return len(chosen)


def finetune_run(run: Run, train: Path, test: Path) -> dict[str, float]:
    """Top-1 accuracies in [0, 1] on `test` after fine-tuning a run's network on shares of `train`, by SHARES.

    The labels are drawn, and the classifier begins, by the run's seed: methods are compared on the same. An accuracy
    is that of the last epoch; none is chosen on the test images.

    Raises:
        RuntimeError: with the last line of the log, if one failed.
    """
    config = compose(run.launcher_overrides(), check=False)
    resnet = config.MODEL.TRUNK.RESNETS
    network = Architecture(resnet.DEPTH, resnet.WIDTH_MULTIPLIER, resnet.get("STEM", "imagenet"))
    base = compose([f"config={run.base_config}"], check=False).DATA.TRAIN.TRANSFORMS
    wanted = Preprocessing.of_transforms(base, network.input_size)
    figures = {}
    for name, share in SHARES.items():
        labelled, folder = train.parent / f"{name}_seed{run.seed}", run.folder / name
        images = lay_out_share(train, labelled, share, run.seed)
        epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / math.ceil(images / BATCH))))
        start = None if run.method.config is None else run.checkpoint
        overrides = finetuning(network, wanted, start, labelled, test, folder, epochs, run.seed, Machine.here())
        overrides += [f"config.TEST_EVERY_NUM_EPOCH={epochs}", f"config.CHECKPOINT.CHECKPOINT_FREQUENCY={epochs}"]
        folder.mkdir(exist_ok=True)
        log = folder / "output.txt"
        if run_launcher(overrides, log):
            raise RuntimeError(f"fine-tuning failed: {last_line(log)} (see {log})")
        figures[name] = next(iter(last_test(folder, "top_1").values())) / 100
        for checkpoint in folder.glob("*.torch"):  # as large as the network's own, and not needed
            checkpoint.unlink()
    return figures
