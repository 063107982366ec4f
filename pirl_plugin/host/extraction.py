"""VISSL's feature extraction on machines without a GPU."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from vissl.models.model_helpers import get_trunk_output_feature_names

from pirl_plugin.distributed import rank
from pirl_plugin.host.readable_batches import list_unreadable, unreadable_in


@torch.no_grad()
def extract_on_cpu(trainer, output_folder: str) -> None:
    """Write the features of every split of `trainer`'s task, like VISSL's own `extract` on a GPU.

    Args:
        trainer: vissl.trainer.SelfSupervisionTrainer whose task runs on a CPU.
        output_folder: folder for `rank*_chunk*_<split>_<layer>_{features,targets,inds}.npy`.

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
        chunk, targets = 0, {}
        features: dict[str, dict[int, np.ndarray]] = {layer: {} for layer in layers}
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


def report_left_out(task, output_folder: str) -> None:
    """Name the images of each split that could not be read: unreadable_<split>_rank<r>.txt beside the features."""
    for split, loader in task.left_out.items():
        indices, path = unreadable_in(loader), Path(output_folder, f"unreadable_{split}_rank{rank()}.txt")
        path.unlink(missing_ok=True)  # from an earlier extraction
        if indices:
            list_unreadable(task.datasets[split], indices, path)


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
