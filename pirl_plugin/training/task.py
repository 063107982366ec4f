"""`pirl_task`: VISSL's training task, with the network and its inputs as `pirl_train_step` needs them."""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Mapping
from typing import Any

import torch
from classy_vision.tasks import register_task
from torch import Tensor
from vissl.data import build_dataloader
from vissl.trainer.train_task import SelfSupervisionTask

from pirl_plugin.data.sampler import ShuffledSampler
from pirl_plugin.distributed import rank
from pirl_plugin.host.agreement import changes, check_same_images, settings_of_the_run
from pirl_plugin.network.devices import refuse_wrong_gradients
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.timm_trunk import TimmArchitecture
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, PretextTransform
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import ConfigError


def leave_signals_to_the_rank(worker: int) -> None:
    """For a loader's worker: signals to the whole job must not end it before its rank has written a checkpoint.

    SIGUSR2 is submitit's. SIGTERM is excluded, because the rank itself ends its workers by it.
    """
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


def _shapes(weights: Mapping[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items() if isinstance(value, Tensor)}


@register_task("pirl_task")
class PIRLTask(SelfSupervisionTask):
    """VISSL's task; reads TRAINER.PIRL_TRAIN_STEP of the config.

    Attributes:
        step_settings: settings of `pirl_train_step`.
        transform: the pretext transform, for the work that the workers leave to the device.
        images_identity: number and hash of names of the training images.
        unreadable_so_far: (unreadable, seen) images of this epoch on all ranks.
        unreadable_before: the same from the checkpoint that this run resumes from.
    """

    images_identity: dict[str, str]

    checkpoint: dict[str, Any] | None

    def __init__(self, config) -> None:
        super().__init__(config)
        self.start_iter = self.resumed_steps = self.epoch_began = 0
        self.unreadable_so_far = self.unreadable_before = (0, 0)
        self.step_settings = StepSettings.of_run(config)

    @functools.cached_property
    def transform(self) -> PretextTransform:
        transform = self.config.DATA.TRAIN.TRANSFORMS[0]
        return PRETEXT_TRANSFORMS[transform["name"]].from_config(transform)

    def _build_model(self):
        model = super()._build_model()
        if self.step_settings.precision == "bfloat16" and self.device.type == "cpu":
            refuse_wrong_gradients(model)
        if self.step_settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.step_settings.compile:
            model.trunk.compile(dynamic=False)  # in place: names of weights stay; two input sizes, both fixed
        return model

    def build_datasets(self, current_train_phase_idx: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """VISSL's data sets; a resumed run must have those of its checkpoint."""
        datasets, keys = super().build_datasets(current_train_phase_idx)
        if self.checkpoint is not None:
            self._check_same_run()
        return datasets, keys

    def _check_same_run(self) -> None:
        """Check what a resumed run must share with its checkpoint's run, and warn of other changes.

        Raises:
            ConfigError: for other images, or if there is nothing left to train.
        """
        assert self.checkpoint is not None
        saved = self.checkpoint["classy_state_dict"].get("pirl_plugin") or {}
        accepted = self.config.CHECKPOINT.get("RESUME_WITH_OTHER_IMAGES", False)
        check_same_images(saved.get("files", {}), self.images_identity, accepted)
        done = self.checkpoint["train_phase_idx"] + 1
        if done >= self.config.OPTIMIZER.num_epochs:
            raise ConfigError(
                f"OPTIMIZER.num_epochs is {self.config.OPTIMIZER.num_epochs}, but {done} epochs of the checkpoint "
                f"{self.checkpoint_path} are done; give more, another CHECKPOINT.DIR, or an earlier checkpoint by "
                f"CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM."
            )
        if rank() == 0:
            for change in changes(saved.get("settings", {}), settings_of_the_run(self.config)):
                logging.warning(f"Resumed with another setting: {change}")

    def build_dataloaders(self, pin_memory: bool, current_train_phase_idx: int = 0) -> dict[str, Any]:
        """VISSL's loaders, with a sampler that can resume in the middle of an epoch."""

        def sampler(dataset: Any, config: Any, seed: int) -> ShuffledSampler:
            return ShuffledSampler(dataset, config["BATCHSIZE_PER_REPLICA"], seed, config["DROP_LAST"])

        return {
            "train": build_dataloader(
                dataset=self.datasets["train"],
                dataset_config=self.config["DATA"]["TRAIN"],
                num_dataloader_workers=self.config.DATA.NUM_DATALOADER_WORKERS,
                pin_memory=pin_memory,
                multi_processing_method=self.config.MULTI_PROCESSING_METHOD,
                device=self.device,
                sampler_seed=self.config["SEED_VALUE"],
                split="train",
                get_sampler=sampler,
                worker_init_fn=leave_signals_to_the_rank,
            )
        }

    def set_epoch(self, phase_type: str, epoch: int, start_iter: int, train_phase_idx: int) -> None:
        super().set_epoch(phase_type, epoch, start_iter, train_phase_idx)
        self.start_iter, self.epoch_began = start_iter, self.iteration - start_iter
        # The workers start after this; their random choices for an image depend on seed, epoch and image index.
        for transform in self.datasets[phase_type].transform.transforms:
            if isinstance(getattr(transform, "transform", None), PretextTransform):
                transform.transform.epoch = epoch

    def prepare(self, pin_memory: bool = False) -> None:
        super().prepare(pin_memory)
        if self.checkpoint is not None:
            self._check_same_batches()
            if self.device.type == "cpu":  # the optimiser uses the tensors as they are: mapped from the file
                for state in self.optimizer.optimizer.state.values():
                    state.update({key: value.clone() for key, value in state.items() if isinstance(value, Tensor)})
            # Model, optimiser and bank have copies by now; VISSL would keep this until the end.
            kept = ("phase_idx", "train_phase_idx", "iteration", "iteration_num")
            self.checkpoint = {key: self.checkpoint[key] for key in kept}

    def _check_same_batches(self) -> None:
        assert self.checkpoint is not None
        saved = self.checkpoint["classy_state_dict"].get("pirl_plugin") or {}
        for key, value in self._step_identity().items():
            if self.start_iter and saved.get(key, value) != value:
                value, now = saved[key], value
                raise ConfigError(
                    f"The checkpoint is from mid-epoch of a run whose {key} was {value}; here it is {now}, "
                    f"so the rest of the epoch would have other images: make it {value}, or resume from the end "
                    f"of an epoch (CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM takes an earlier checkpoint)."
                )

    def _step_identity(self) -> dict[str, int]:
        """What must be unchanged so that the rest of an epoch has the remaining images."""
        return {
            "global batch": self.datasets["train"].get_global_batchsize(),
            "SEED_VALUE": self.config["SEED_VALUE"],
            "number of images": len(self.datasets["train"]),
        }

    def get_classy_state(self, deep_copy: bool = False) -> dict[str, Any]:
        state = super().get_classy_state(deep_copy)
        if self.amp_grad_scaler is not None:
            state["amp"] = self.amp_grad_scaler.state_dict()
        place = {"epoch": self.train_phase_idx, "steps of the epoch": self.iteration - self.epoch_began}
        size = self.transform.image_crop_size
        images = Preprocessing.of_transforms([{"image_crop_size": size, **self.config.DATA.TRAIN.TRANSFORMS[0]}], size)
        own = {"images": images.record(), "files": self.images_identity, "settings": settings_of_the_run(self.config)}
        if self.config.MODEL.TRUNK.NAME == "timm":
            own["trunk"] = TimmArchitecture.of_settings(self.config.MODEL.TRUNK.TIMM).record()
        state["pirl_plugin"] = {**self._step_identity(), **place, **own, "unreadable": list(self.unreadable_so_far)}
        return state

    def _update_classy_state(self, state_dict: dict[str, Any] | None = None) -> PIRLTask:
        if state_dict is not None:
            self._check_same_network(state_dict)
        return super()._update_classy_state(state_dict)

    def _check_same_network(self, state: Mapping[str, Any]) -> None:
        """Refuse to resume from weights of another network than the config's.

        Raises:
            ConfigError: naming the settings that differ, or the first weight.
        """
        saved, own = state["base_model"]["model"], {"trunk": self.base_model.trunk, "heads": self.base_model.heads}
        differ = [
            f"{part}.{name}"
            for part, module in own.items()
            for name, _ in sorted(_shapes(saved[part]).items() ^ _shapes(module.state_dict()).items())
        ]
        if differ:
            settings = changes((state.get("pirl_plugin") or {}).get("settings", {}), settings_of_the_run(self.config))
            told = [change for change in settings if change.startswith("MODEL.")] or differ[:1]
            raise ConfigError(
                f"The checkpoint {self.checkpoint_path} is of another network ({'; '.join(told)}), and a run resumes "
                f"with its own; give another CHECKPOINT.DIR."
            )

    def _set_classy_state(self, state: dict[str, Any]) -> None:
        if self.amp_grad_scaler is None:
            state.pop("amp", None)  # from a run in float16
        super()._set_classy_state(state)

    def _compute_start_iter_from_checkpoint(self, phase_type: str) -> int:
        """Steps of the epoch that are done. VISSL derives them from all steps and the current steps per epoch."""
        checkpoint = self.checkpoint or {}
        saved = checkpoint.get("classy_state_dict", {}).get("pirl_plugin")
        if saved is not None:
            # In an iteration's checkpoint, VISSL's epoch is the last finished one.
            finished = checkpoint["train_phase_idx"] == saved["epoch"]
            self.resumed_steps = 0 if finished else saved["steps of the epoch"]
            unreadable, seen = saved.get("unreadable", (0, 0))
            self.unreadable_before = (unreadable, seen)
        return self.resumed_steps

    def learning_rate_of_the_epoch(self) -> None:
        """Set the learning rate that the epoch began with, if the run resumes in the middle of one.

        VISSL sets it for the current position; a schedule by epochs would then differ from an uninterrupted run.
        """
        per_epoch, batch = self.num_batches_per_phase, self.get_global_batchsize()
        begun = self.train_phase_idx * per_epoch * batch
        self.optimizer.on_epoch(begun / batch / (self.get_total_training_phases() * per_epoch))

    def prepare_inputs(self, sample: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """The network's inputs for a batch, augmented and normalised: [B, 3, h, w], or several by name."""
        inputs = sample["input"]
        parameters = sample["photometric"][0] if "photometric" in sample else None
        if isinstance(inputs, dict):
            return self.transform.finish(inputs, parameters)
        return self.transform.finish({"images": inputs}, parameters)["images"]
