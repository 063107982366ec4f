"""PIRL on a small labelled data set on the device: the recipe of pretrain/pirl/jigsaw_cifar10_1gpu without a loader, in
pieces, each resuming where the last one ended.

    python benchmarks/cifar10.py cifar10/train cifar10/test --output cifar10_run [--epochs 200] [--minutes 9]

For 200 epochs of 50,000 photos in 17 minutes, 9,800 images per second are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from measuring import where_a_run_computes
from plain_pirl import PlainPIRL, Step
from torch import Tensor

from pirl_plugin.data.class_folders import check_same_classes, labelled_class_folders
from pirl_plugin.data.image_files import list_images
from pirl_plugin.data.images_in_memory import ImagesInMemory, read_images
from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.paths import unfinished
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.safe_loading import read_safely

# The same as the YAML config's; tests/end_to_end/test_gpu_report.py compares them.
TRANSFORM = {
    "image_crop_size": 32,
    "image_crop_scale": [0.2, 1.0],
    "patch_crop_size": 42,
    "patch_crop_scale": [0.6, 1.0],
    "patch_size": 12,
    "photometric": {"hue": 0.1, "random_photometric": 0.0},
    "augment_on": "device",
}
TEMPERATURE, WEIGHT_DECAY, RATE_OF_128, LAST_RATE = 0.1, 5e-4, 0.06, 1e-3  # the last one as a share of the first


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        epochs, batch: the learning rate follows the batch linearly, and a cosine over all steps.
        knn_every: epochs between two measurements.
    """

    epochs: int = 200
    batch: int = 128
    depth: int = 18
    width: float = 1.0
    bfloat16: bool = True
    compiled: bool = False
    knn_every: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [N, 3, H, W] on the device and their classes int64 [N]."""

    images: Tensor
    labels: np.ndarray


def read_labelled(folder: str | Path, device: torch.device) -> Labelled:
    """Read a folder with one folder per class, or `images` [N, H, W, 3] and `labels` [N] from an .npz file."""
    if str(folder).endswith(".npz"):
        with np.load(folder) as arrays:  # NumPy unpickles nothing unless asked
            images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
            return Labelled(images.to(device), arrays["labels"].astype(np.int64))
    files, labels = [], []
    for number, name in enumerate(labelled_class_folders(folder)):
        found = list_images(name)
        files += found
        labels += [number] * len(found)
    return Labelled(read_images(files).to(device), np.array(labels))


@torch.inference_mode()
def features(model: PlainPIRL, images: Tensor, transform: JigsawPatchTransform) -> np.ndarray:
    """The trunk's features of whole images: float32 [N, C]."""
    model.trunk.eval()
    found = []
    for part in images.split(500):
        views = transform.normalize(part.clone()).contiguous(memory_format=torch.channels_last)
        with torch.autocast(model.where.type, torch.bfloat16, enabled=model.how.bfloat16):
            (output,) = model.trunk(views)
        found.append(output.flatten(1).float())
    model.trunk.train()
    return torch.cat(found).cpu().numpy()


def knn(model: PlainPIRL, train: Labelled, test: Labelled, transform: JigsawPatchTransform) -> float:
    """Top-1 in percent of the weighted kNN on the trunk's features."""
    of_train, of_test = (features(model, each.images, transform) for each in (train, test))
    return 100 * weighted_knn(of_train, train.labels, of_test, test.labels, device=model.where)


class Run:
    """A training that can be interrupted between any two epochs.

    Args:
        folder: for `run.pt`, from which a run with the same recipe resumes, and `history.json`.
    """

    def __init__(self, recipe: Recipe, train: Labelled, test: Labelled, folder: Path, device: torch.device) -> None:
        self.recipe, self.train, self.test, self.folder = recipe, train, test, folder
        self.transform = JigsawPatchTransform(**TRANSFORM, normalize_on="device")
        self.data = ImagesInMemory(train.images, self.transform, recipe.seed)
        torch.manual_seed(recipe.seed)
        loss = PIRLLoss(
            len(train.images),
            negatives="all",
            temperature=TEMPERATURE,
            memory_bank={"name": "memory_bank", "fill_first": True},
            batch_size_per_replica=recipe.batch,
            report_frequency=100,
            seed=recipe.seed,
        )
        step = Step(recipe.depth, recipe.width, "small", recipe.bfloat16, recipe.compiled)
        self.model = PlainPIRL(step, loss, device, RATE_OF_128 * recipe.batch / 128, WEIGHT_DECAY)
        self.epoch, self.history = 0, [{"epoch": 0, "knn": knn(self.model, train, test, self.transform)}]
        self.seconds = 0.0
        if (folder / "run.pt").exists():
            self._load()

    def _load(self) -> None:
        state = read_safely(self.folder / "run.pt")
        if state["recipe"] != asdict(self.recipe):
            raise SystemExit(f"{self.folder}/run.pt has another recipe, {state['recipe']}: give another --output.")
        self.model.load_state_dict(state["model"])
        self.model.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history, self.seconds = state["epoch"], state["history"], state["seconds"]

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = unfinished(self.folder / "run.pt")
        states = {"model": self.model.state_dict(), "optimizer": self.model.optimizer.state_dict()}
        own = {"epoch": self.epoch, "history": self.history, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        torch.save(states | own, path)
        path.rename(self.folder / "run.pt")
        (self.folder / "history.json").write_text(json.dumps({"recipe": asdict(self.recipe)} | self.result(), indent=2))

    def result(self) -> dict:
        """Epochs done, images per second of training, and the history."""
        trained = self.epoch * (len(self.data) // self.recipe.batch) * self.recipe.batch
        rate = trained / self.seconds if self.seconds else None
        return {"epochs_done": self.epoch, "images_per_second": rate, "history": self.history}

    def train_epoch(self) -> float:
        """Train one epoch and return its mean loss."""
        batches = len(self.data) // self.recipe.batch
        total = torch.zeros((), device=self.model.where)
        for number, (images, patches, index) in enumerate(self.data.batches(self.epoch, self.recipe.batch)):
            done = (self.epoch + number / batches) / self.recipe.epochs
            share = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
            for group in self.model.optimizer.param_groups:
                group["lr"] = group.setdefault("first_lr", group["lr"]) * share
            total += self.model.step(images, patches, index)
        return float(total) / batches  # the only wait of an epoch

    def go_on(self, minutes: float) -> bool:
        """Train until the recipe's end or for about `minutes`; returns whether the end was reached."""
        deadline = time.time() + 60 * minutes
        longest = 0.0
        while self.epoch < self.recipe.epochs and time.time() + longest < deadline:
            started = time.time()
            loss = self.train_epoch()
            self.epoch += 1
            self.seconds += time.time() - started
            line = {"epoch": self.epoch, "loss": loss}
            if self.epoch % self.recipe.knn_every == 0 or self.epoch == self.recipe.epochs:
                line["knn"] = knn(self.model, self.train, self.test, self.transform)
            self.history.append(line)
            longest = max(longest, time.time() - started)
            left = (self.recipe.epochs - self.epoch) * self.seconds / self.epoch / 60
            measured = f", kNN {line['knn']:.2f}" if "knn" in line else ""
            rate = self.result()["images_per_second"]
            print(
                f"epoch {self.epoch} of {self.recipe.epochs}: loss {loss:.3f}{measured}, {rate:,.0f} images/s, "
                f"{left:.1f} minutes left",
                flush=True,
            )
            self._save()
        return self.epoch == self.recipe.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="a folder with one folder per class, or an .npz of images and labels")
    parser.add_argument("test", help="the same, with other images")
    parser.add_argument("--output", type=Path, required=True, help="a folder; a run in it is resumed")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--width", type=float, default=Recipe.width)
    parser.add_argument("--knn-every", type=int, default=Recipe.knn_every)
    parser.add_argument("--compiled", action="store_true", help="torch.compile for the trunk")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time limit, checked after each epoch")
    options = parser.parse_args()
    device = where_a_run_computes()
    if not options.train.endswith(".npz"):
        check_same_classes(options.train, options.test)
    train, test = (read_labelled(each, device) for each in (options.train, options.test))
    recipe = Recipe(
        options.epochs, options.batch, width=options.width, compiled=options.compiled, knn_every=options.knn_every
    )
    run = Run(recipe, train, test, options.output, device)
    ended = run.go_on(options.minutes)
    print(f"{'Done' if ended else 'Not finished; the same command resumes'}: {options.output}/history.json")


if __name__ == "__main__":
    main()
