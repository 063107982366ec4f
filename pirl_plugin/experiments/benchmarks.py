"""The benchmarks of `pirl benchmark`: the command for each, how to read its result, and the paper's figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pirl_plugin.network.trunks import STAGES
from pirl_plugin.registry import Registry

DETECTOR = "train-detector"


def last_test(folder: Path, rank: str) -> dict[str, float]:
    """The last epoch's test accuracies of VISSL's metrics.json, by layer."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    tests = [line["test_accuracy_list_meter"][rank] for line in lines if "test_accuracy_list_meter" in line]
    return {layer: float(value) for layer, value in tests[-1].items()}


def _with_best(values: dict[str, float]) -> dict[str, float]:
    return {**values, "best layer": max(values.values())}


def _linear(folder: Path) -> dict[str, float]:
    return _with_best(last_test(folder, "top_1"))


def _semi_supervised(folder: Path) -> dict[str, float]:
    return {f"top-{k}": next(iter(last_test(folder, f"top_{k}").values())) for k in (1, 5)}


def _svm(folder: Path) -> dict[str, float]:
    return _with_best({path.parent.name: 100 * float(np.mean(np.load(path))) for path in folder.glob("*/test_ap.npy")})


def _low_shot(folder: Path) -> dict[str, float]:
    by_layer = json.loads((folder / "low_shot.json").read_text()).values()
    return {f"{k}, best layer": max(layer[k]["mean"] for layer in by_layer) for k in next(iter(by_layer))}


def _nearest_neighbors(folder: Path) -> dict[str, float]:
    results = json.loads((folder / "nearest_neighbors.json").read_text())
    return {layer: 100 * value for layer, value in results.items()}


def _detection(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "bbox/AP" in line)
    return {metric: last[f"bbox/{metric}"] for metric in ("AP", "AP50", "AP75")}


@dataclass(frozen=True)
class Benchmark:
    """One evaluation; register your own by BENCHMARKS.register(name, Benchmark(...)).

    Attributes:
        title: title for the table.
        tool: the command of `pirl` that runs it.
        config: its config's name.
        read: folder of the finished run -> figures in per cent by metric.
        paper: the paper's figures for PIRL (800 epochs, N = 32,000) by metric, if any.
    """

    title: str
    tool: str
    config: str
    read: Callable[[Path], dict[str, float]]
    paper: Mapping[str, float] = field(default_factory=dict)


def _by_layer(*values: float) -> dict[str, float]:
    return {**dict(zip(STAGES, values, strict=True)), "best layer": max(values)}


def _launched(title: str, config: str, *rest: Any) -> Benchmark:
    return Benchmark(title, "train", f"benchmark/{config}", *rest)


_IMAGENET = _by_layer(6.2, 30.0, 40.1, 56.6, 63.6)
_PLACES = _by_layer(8.9, 29.0, 35.8, 45.3, 49.8)
_SVM, _LOW_SHOT, _KNN = "train-svm", "train-svm-low-shot", "nearest-neighbors"
BENCHMARKS: Registry[Benchmark] = Registry("benchmark")
for _name, _benchmark in {
    "linear_imagenet": _launched("ImageNet, linear, top-1", "linear/imagenet", _linear, _IMAGENET),
    "linear_imagenet_wide": _launched(
        "ImageNet, linear on PIRL-c2x, top-1", "linear/imagenet_wide", _linear, {"best layer": 67.4}
    ),
    "linear_places205": _launched("Places205, linear, top-1", "linear/places205", _linear, _PLACES),
    "linear_inaturalist18": _launched(
        "iNaturalist 2018, linear, top-1", "linear/inaturalist18", _linear, {"best layer": 34.1}
    ),
    "linear_small_images": _launched("small images, linear, top-1", "linear/small_images_cpu", _linear),
    "semi_supervised_1percent": _launched(
        "ImageNet, 1% of the labels", "semi_supervised/imagenet_1percent", _semi_supervised, {"top-5": 57.2}
    ),
    "semi_supervised_10percent": _launched(
        "ImageNet, 10% of the labels", "semi_supervised/imagenet_10percent", _semi_supervised, {"top-5": 83.8}
    ),
    "svm_voc07": Benchmark("VOC07, linear SVM, mAP", _SVM, "benchmark/svm/voc07", _svm, {"best layer": 81.1}),
    "low_shot_voc07": Benchmark("VOC07, low-shot SVM, mAP", _LOW_SHOT, "benchmark/svm/voc07_low_shot", _low_shot),
    "knn_imagenet": Benchmark(
        "ImageNet, weighted kNN, top-1", _KNN, "benchmark/nearest_neighbor/imagenet", _nearest_neighbors
    ),
    "knn_small_images": Benchmark(
        "small images, weighted kNN, top-1", _KNN, "benchmark/nearest_neighbor/small_images_cpu", _nearest_neighbors
    ),
    "detection_voc0712": Benchmark(
        "detection, VOC07+12", DETECTOR, "voc0712_pirl", _detection, {"AP": 54.0, "AP50": 80.7, "AP75": 59.7}
    ),
    "detection_voc07": Benchmark(
        "detection, VOC07", DETECTOR, "voc07_pirl", _detection, {"AP": 44.7, "AP50": 73.4, "AP75": 47.0}
    ),
}.items():
    BENCHMARKS.register(_name, _benchmark)
