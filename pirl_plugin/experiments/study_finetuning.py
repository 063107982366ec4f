"""A study's 1% and 10% of the labels by fine-tuning the whole network, as in the paper (Section 4.2, Table 3)."""

from __future__ import annotations

import math
from pathlib import Path

from pirl_plugin.experiments.benchmarking import last_line
from pirl_plugin.experiments.benchmarks import last_test
from pirl_plugin.experiments.finetune import finetuning
from pirl_plugin.experiments.recipe import Machine
from pirl_plugin.experiments.study_images import lay_out_share
from pirl_plugin.experiments.study_runs import Run, run_launcher
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.weights import Architecture

SHARES = {"finetuned_1percent": 0.01, "finetuned_10percent": 0.1}
BATCH = 32
FEWEST_EPOCHS, MOST_EPOCHS, STEPS = 20, 100, 300  # 20 epochs as in the paper; up to 100 if they are below 300 steps


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
