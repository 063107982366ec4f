"""Summarises a finished run in a few lines: the result, the file that holds it, and what to do with it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vissl.utils.checkpoint import get_checkpoint_folder, has_final_checkpoint, is_training_finished

from pirl_plugin.evaluation.beside_untrained import knn_beside_untrained
from pirl_plugin.host.loss_settings import pirl_loss_class
from pirl_plugin.host.readable_batches import count_listed
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.training.monitor import MonitorSettings
from pirl_plugin.training.warning_signs import REMEDIES


def closing(config: Any, engine_name: str, minutes: float | None) -> list[str]:
    """The result of a finished run, one line per subject, like `run_summary.summarise` at its start.

    Args:
        config: the run's config.
        engine_name: `train` or `extract_features`.
        minutes: how long it took; None if it was done before.
    """
    folder = Path(get_checkpoint_folder(config))
    lines = {} if minutes is None else {"took": f"{minutes:.1f} minutes"}
    if engine_name != "train":
        lines["features"] = str(config.EXTRACT_FEATURES.OUTPUT_DIR or folder)
    elif pirl_loss_class(config) is not None:
        lines |= _pretraining(config, folder)
    else:
        lines |= _evaluation(folder)
    unreadable = _unreadable(folder)
    if unreadable:
        lines["not read"] = unreadable
    width = max(map(len, lines))
    return [f"{key:{width}}  {value}" for key, value in lines.items()]


def is_finished(config: Any, checkpoint_folder: str) -> bool:
    """Whether a training is done, with its last test.

    VISSL asks for the final checkpoint alone, which is written before that test: a run that was killed between them
    would report an earlier test.
    """
    return bool(is_training_finished(config, checkpoint_folder)) and not _lacks_last_test(Path(checkpoint_folder))


def _lacks_last_test(folder: Path) -> bool:
    last = {"train": -1, "test": -1}  # the epochs of the last rows
    for row in _metrics(folder):
        for split in last:
            if any(key.startswith(f"{split}_") and isinstance(value, Mapping) for key, value in row.items()):
                last[split] = int(row.get("train_phase_idx", -1))
    return -1 < last["test"] < last["train"]


def final_checkpoint(folder: Path) -> Path | None:
    """The final checkpoint of a training; None if it has not ended."""
    if not has_final_checkpoint(str(folder)):
        return None
    return max(folder.glob("model_final_checkpoint_phase*.torch"), key=lambda path: path.stat().st_mtime)


def _pretraining(config: Any, folder: Path) -> dict[str, str]:
    progress, monitor = _last_row(folder / "progress.csv"), _last_row(folder / "monitor.csv")
    lines = {}
    if progress:
        steps = f"{progress['epoch']} epochs, {progress['iteration']} iterations"
        lines["trained"] = f"{steps}, loss {float(progress['loss']):.4f}"
    if monitor.get("effective_rank"):
        lines["memory bank"] = (
            f"spread {float(monitor['spread']):.3f}, effective rank {float(monitor['effective_rank']):.1f}"
        )
    if monitor.get("knn_accuracy"):
        tested = config.HOOKS.PIRL_MONITOR.get("knn_test")
        lines["kNN"] = f"{100 * float(monitor['knn_accuracy']):.1f}%{f' of {tested}' if tested else ''}"
    final = final_checkpoint(folder)
    if final is not None:
        lines |= _beside_untrained(config, final)
        name = shlex.quote(str(final))
        lines["checkpoint"] = str(final)
        lines["features"] = f"pirl embed {name} PHOTOS --output features.npy"
        lines["evaluate"] = f"pirl evaluate {name} --train DIR --test DIR"
        lines["weights"] = f"pirl export {name} --format safetensors --output weights.safetensors"
    return lines


def _beside_untrained(config: Any, final: Path) -> dict[str, str]:
    """kNN of the network and of the untrained one, if the images are in class folders."""
    most = MonitorSettings.from_config(config.HOOKS.get("PIRL_MONITOR", {})).compare_images
    paths = config.DATA.TRAIN.DATA_PATHS
    if not most or len(paths) != 1 or config.DATA.TRAIN.LABEL_TYPE != "sample_index":
        return {}
    try:
        found = knn_beside_untrained(config, load_checkpoint(final), paths[0], most)
    except Exception as error:  # the run is done, even if this cannot be measured
        return {"kNN beside untrained": f"not measured: {type(error).__name__}: {error}"}
    if found is None:
        return {}
    sentence = (
        f"{100 * found['PIRL']:.1f}%, untrained {100 * found['untrained']:.1f}% ({found['images']:.0f} images of the "
        f"training, whose labels it did not see)"
    )
    if found["PIRL"] < found["untrained"]:
        sentence += f"\nWarning: the features are worse than before the training. {REMEDIES}"
    return {"kNN beside untrained": sentence}


def _evaluation(folder: Path) -> dict[str, str]:
    """The best accuracies of a training with VISSL's meters, and the last."""
    found: dict[str, list[float]] = {}
    for row in _metrics(folder):
        for meter, values in row.items():
            if not meter.startswith("test_") or not isinstance(values, Mapping):
                continue
            for measure, by_layer in values.items():
                several = isinstance(by_layer, Mapping) and len(by_layer) > 1
                by_name = by_layer if isinstance(by_layer, Mapping) else {"": by_layer}
                for name, value in by_name.items():
                    if isinstance(value, (int, float)):
                        found.setdefault(f"{name} {measure}" if several else measure, []).append(float(value))
    results = {name: f"{values[-1]:.2f} at the end, {max(values):.2f} at best" for name, values in found.items()}
    final = final_checkpoint(folder)
    return results | ({} if final is None else {"checkpoint": str(final)})


def _metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of VISSL's metrics.json."""
    path = folder / "metrics.json"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:  # cut short by a kill
            continue


def _last_row(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows else {}


def _unreadable(folder: Path) -> str:
    """How many images per split the ranks could not read."""
    listed = ", ".join(f"{count} images of {split}" for split, count in count_listed(folder).items())
    return f"{listed}; named in {folder}/unreadable_*rank*.txt" if listed else ""
