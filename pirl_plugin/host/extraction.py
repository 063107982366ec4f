"""VISSL's feature extraction where there is no GPU."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import torch
from vissl.models.model_helpers import get_trunk_output_feature_names


@torch.no_grad()
def extract_on_cpu(trainer, output_folder: str) -> None:
    """Write the features of every split of `trainer`'s task as VISSL's own `extract` does on a GPU.

    Args:
        trainer: vissl.trainer.SelfSupervisionTrainer whose task runs on a CPU.
        output_folder: where `rank*_chunk*_<split>_<layer>_{features,targets,inds}.npy` go.

    Each image is written by the rank that read it, in ascending order of its index, in chunks of
    EXTRACT_FEATURES.CHUNK_THRESHOLD images (a negative threshold: one chunk).
    """
    task = trainer.task
    task.prepare_extraction(pin_memory=False)
    task.base_model.eval()
    layers = get_trunk_output_feature_names(trainer.cfg.MODEL) or ["heads"]
    threshold = trainer.cfg.EXTRACT_FEATURES.CHUNK_THRESHOLD
    for split in task.available_splits:
        loader = task.dataloaders[split.lower()]
        logging.info(f"Extracting {layers} of {len(loader.dataset)} images ({split.lower()}) on the CPU")
        chunk, features, targets = 0, {layer: {} for layer in layers}, {}
        for number, batch in enumerate(loader):
            outputs = _flatten(task.base_model(torch.cat(batch["data"])))
            indices = torch.cat(batch["data_idx"]).tolist()
            labels = torch.cat(batch["label"]).numpy()
            for position, index in enumerate(indices):
                targets[index] = labels[position].reshape(-1)
                for layer, output in zip(layers, outputs, strict=True):
                    features[layer][index] = output[position].numpy()
            if number % 10 == 0:
                logging.info(f"{split.lower()}: batch {number + 1} of {len(loader)}")
            if 0 <= threshold <= len(targets):
                _save(trainer, features, targets, chunk, split, output_folder)
                chunk, features, targets = chunk + 1, {layer: {} for layer in layers}, {}
        _save(trainer, features, targets, chunk, split, output_folder)
    trainer._cleanup_task()


def _flatten(outputs: list) -> list[torch.Tensor]:
    return [tensor for item in outputs for tensor in (item if isinstance(item, list) else [item])]


def _save(trainer, features: dict, targets: dict, chunk: int, split: str, output_folder: str) -> None:
    trainer._save_extracted_features(
        features=features,
        targets=dict.fromkeys(features, targets),
        dist_rank=trainer.distributed_rank,
        chunk_index=chunk,
        split=split,
        output_folder=output_folder,
    )


def layers_and_splits(output_folder: str | Path) -> set[tuple[str, str]]:
    """(split, layer) of all features that an extraction wrote."""
    names = [path.name for path in Path(output_folder).glob("rank*_chunk*_*_*_features.npy")]
    matches = (re.fullmatch(r"rank\d+_chunk\d+_([^_]+)_(.+)_features\.npy", name) for name in names)
    return {match.groups() for match in matches if match}


def collect(output_folder: str, split: str, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """All features that an extraction wrote for one split and layer, in ascending order of the image index.

    Returns:
        features float32 [images, dimensions] (flattened) and targets int64 [images].
    """
    from vissl.utils.extract_features_utils import ExtractedFeaturesLoader

    merged = ExtractedFeaturesLoader.load_features(output_folder, split, layer, flatten_features=True)
    return merged["features"], merged["targets"].reshape(-1)


def collect_indices(output_folder: str, split: str, layer: str) -> np.ndarray:
    """The images' places in the data set, ascending: int64 [images]; those of the rows of `collect`."""
    parts = Path(output_folder).glob(f"rank*_chunk*_{split}_{layer}_inds.npy")
    return np.unique(np.concatenate([np.load(part).reshape(-1) for part in parts]))
