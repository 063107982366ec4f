"""Replaces functions of VISSL that do what no user wants; each names the line of VISSL that it replaces."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from pirl_plugin.host.vissl_tools import find_scripts


def marked(function: Any) -> Any:
    """Mark a function as an override, to recognise that it was applied."""
    function.mended = True
    return function


def override(owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
    """Replace a function of a class or module by `make(original)`, once; returns whether it was replaced now."""
    original = getattr(owner, name)
    if getattr(original, "mended", False):
        return False
    setattr(owner, name, marked(functools.wraps(original)(make(original))))
    return True


def _broken_files_of_a_folder() -> bool:
    # data/disk_dataset.py:139 opens the files of a disk_folder outside its try: a broken one ends the run.
    from vissl.data.data_helper import get_mean_image
    from vissl.data.disk_dataset import DiskImageDataset

    def readable_or_grey(original: Any) -> Any:
        def item(self, idx: int):
            try:
                return original(self, idx)
            except IndexError:
                raise
            except Exception as error:  # whatever a broken file makes PIL raise
                logging.warning(f"Unreadable image {idx} of {self._path}: {type(error).__name__}: {error}")
                return get_mean_image(self.cfg["DATA"][self.split].DEFAULT_GRAY_IMG_SIZE), False

        return item

    return override(DiskImageDataset, "__getitem__", readable_or_grey)


def _unreadable_images_left_out() -> bool:
    # data/disk_dataset.py:158 replaces an unreadable image by a grey square, and train_task.py's loaders train and
    # measure on it as an image of its class.
    from vissl.trainer.train_task import SelfSupervisionTask

    from pirl_plugin.host.readable_batches import leave_out_unreadable

    def leaving_out(skip_empty: bool) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def prepare(self, pin_memory: bool = False):
                result = original(self, pin_memory)
                leave_out_unreadable(self, skip_empty)
                return result

            return prepare

        return make

    training = override(SelfSupervisionTask, "prepare", leaving_out(skip_empty=False))
    return override(SelfSupervisionTask, "prepare_extraction", leaving_out(skip_empty=True)) or training


def _ranks_agree() -> bool:
    # train_task.py:206 and :288: each node uses whatever config, images and newest checkpoint it finds.
    from vissl.trainer.train_task import SelfSupervisionTask

    from pirl_plugin.host import agreement

    def first_ranks(original: Any) -> Any:
        def set_checkpoint_path(self, checkpoint_path: str | None) -> None:
            agreement.agree_on_settings(self.config)
            original(self, agreement.choose_checkpoint(checkpoint_path))

        return set_checkpoint_path

    def agreed(original: Any) -> Any:
        def build_datasets(self, current_train_phase_idx: int = 0):
            datasets, keys = original(self, current_train_phase_idx)
            self.images_identity = agreement.agree_on_images(datasets)
            return datasets, keys

        return build_datasets

    checkpoint = override(SelfSupervisionTask, "set_checkpoint_path", first_ranks)
    return override(SelfSupervisionTask, "build_datasets", agreed) or checkpoint


def _environment_without_secrets() -> bool:
    # utils/env.py:43, called by each engine, logs every variable with its value.
    from vissl.engines import extract_cluster, extract_features, train
    from vissl.utils import env

    from pirl_plugin.host.environment_log import log_environment

    if env.print_system_env_info is log_environment:
        return False
    for module in (env, train, extract_features, extract_cluster):
        module.print_system_env_info = log_environment
    return True


def _records_of_vissl() -> bool:
    # engines/train.py:116 and trainer_main.py:173 log the whole config, system and network: some 700 lines per start.
    # utils/distributed_launcher.py:162 logs an error without a place for it in the message, which at Ctrl-C prints a
    # traceback of logging, and then "All Done!".
    from vissl.engines import extract_cluster, extract_features, train
    from vissl.utils import distributed_launcher, logger

    from pirl_plugin.host.log_records import WithoutLastWords, shorten

    original, last_words = logger.setup_logging, WithoutLastWords()
    if getattr(original, "mended", False):
        return False

    @functools.wraps(original)
    def setup_logging(name, output_dir=None, rank=0):
        original(name, output_dir, rank)
        logging.getLogger(name).addFilter(last_words)
        if output_dir:
            shorten(logging.getLogger(name), output_dir, rank)

    for module in (logger, distributed_launcher, train, extract_features, extract_cluster):
        module.setup_logging = marked(setup_logging)
    return True


OVERRIDES: dict[str, Callable[[], bool]] = {
    "VISSL's own tools before others": find_scripts,
    "no secrets of the environment in a log": _environment_without_secrets,
    "long records to a file, none of VISSL's launcher after an error": _records_of_vissl,
    "ranks agree before they start": _ranks_agree,
    "broken files of a folder": _broken_files_of_a_folder,
    "unreadable images left out of evaluations": _unreadable_images_left_out,
}
