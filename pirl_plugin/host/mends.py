"""VISSL 0.1.6 (2021), unmodified, on today's Python, NumPy, PyTorch and setuptools.

The only module that deals with VISSL's age. Each mend is a small patch, names the line of VISSL (or of the
ClassyVision in its wheel) that needs it, and is applied only if the feature it supplies is missing, so that
an older stack stays unchanged. `mend` must run before VISSL is imported, in every process: importing
`pirl_plugin.host` does it.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pirl_plugin.host.overrides import OVERRIDES, marked, override
from pirl_plugin.validation import ConfigError, MissingPackageError

INSTALL_VISSL = "pip install --no-deps vissl==0.1.6 && pip install --no-deps --force-reinstall classy-vision==0.7.0"


def is_installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def require_vissl() -> None:
    """Raise if VISSL is missing, saying how to install it.

    Raises:
        MissingPackageError: in one sentence, with the command.
    """
    missing = [name for name in ("vissl", "classy_vision") if not is_installed(name)]
    if missing:
        raise MissingPackageError(
            f"pirl_plugin needs VISSL, of which {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"installed here; install it with: "
            f"{INSTALL_VISSL}"
        )


def mend() -> list[str]:
    """Supply what VISSL 0.1.6 needs and today's stack lacks; returns the names of the mends applied now.

    Call before the first `import vissl`. Calling again does nothing.
    """
    # Deprecation warnings from VISSL's own imports and calls, about which a user can do nothing.
    warnings.filterwarnings("ignore", message=r"\s*The version_base parameter is not specified")
    warnings.filterwarnings("ignore", message=".*transforms._functional_video.* deprecated")
    warnings.filterwarnings("ignore", message=".*transforms._transforms_video.* deprecated")
    warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
    applied = []
    for name, apply in _BEFORE_IMPORT.items():
        with contextlib.suppress(ImportError):  # without NumPy or torchvision nothing needs mending
            applied += [name] if apply() else []
    return applied


def mend_imported() -> list[str]:
    """Override the few functions of VISSL that fail on today's stack; returns the names of those overridden.

    Imports the modules concerned. Calling again does nothing.
    """
    return [name for name, apply in _AFTER_IMPORT.items() if apply()]


def _numpy_aliases() -> bool:
    # svm_utils/evaluate.py:43, mean_ap_meter.py:70, rmac.py:102, cutmixup_collator.py:372,
    # classy_vision autoaugment.py:170
    import numpy

    missing = {
        name: kind for name, kind in {"float": float, "int": int, "bool": bool}.items() if not hasattr(numpy, name)
    }
    for name, kind in missing.items():
        setattr(numpy, name, kind)
    return bool(missing)


def _collections_aliases() -> bool:
    # vissl/utils/misc.py:373, classy_vision generic/util.py:370
    missing = [name for name in ("Mapping", "MutableMapping", "Sequence", "Iterable") if not hasattr(collections, name)]
    for name in missing:
        setattr(collections, name, getattr(collections.abc, name))
    return bool(missing)


def _kinetics400() -> bool:
    # classy_vision/dataset/classy_kinetics400.py:11 (the copy in VISSL's wheel; 0.7.0 needs no mend)
    from torchvision.datasets import kinetics

    if hasattr(kinetics, "Kinetics400"):
        return False
    kinetics.Kinetics400 = kinetics.Kinetics
    return True


def _pkg_resources() -> bool:
    # vissl/utils/misc.py:16 and 233, vissl/utils/collect_env.py:12 and 125 (setuptools >= 82 dropped it)
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return False
    module: Any = types.ModuleType("pkg_resources", "A stand-in with the two functions that VISSL calls.")

    def resource_filename(package: str, resource: str) -> str:
        return str(Path(str(importlib.import_module(package).__file__)).parent / resource)

    module.resource_filename = resource_filename
    module.get_distribution = importlib.metadata.distribution
    sys.modules["pkg_resources"] = module
    return True


def _safe_checkpoints() -> bool:
    # Every torch.load of VISSL and ClassyVision: a checkpoint holds tensors and plain values, and loading
    # one must never run code from it. PyTorch < 2.6 would; this setting also reaches child processes.
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "").lower() in ("1", "y", "yes", "true"):
        return False
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    return True


def _svm_average_precision() -> bool:
    # svm_trainer.py:256 and svm_low_shot_trainer.py:176 assign an array of one number to a cell, which
    # NumPy >= 2.4 rejects.
    import numpy

    cell = numpy.zeros((1, 1))
    try:
        cell[0][0] = numpy.ones(1)
    except (TypeError, ValueError):
        pass
    else:
        return False
    from vissl.utils.svm_utils import svm_low_shot_trainer, svm_trainer

    applied = False
    for module in (svm_trainer, svm_low_shot_trainer):
        original = module.get_precision_recall
        if getattr(original, "mended", False):
            continue

        @functools.wraps(original)
        def precision_recall(targets, predictions, _original=original):
            precision, recall, score, average_precision = _original(targets, predictions)
            return precision, recall, score, numpy.asarray(average_precision).item()

        module.get_precision_recall = marked(precision_recall)
        applied = True
    return applied


def _extraction_on_a_cpu() -> bool:
    # trainer_main.py:345 asserts a GPU and :438 calls .cuda(); on a GPU VISSL's own method is used.
    from vissl.trainer.trainer_main import SelfSupervisionTrainer

    from pirl_plugin.host.extraction import extract_on_cpu, report_left_out

    def anywhere(original: Any) -> Any:
        def extract(self, output_folder: str) -> None:
            if self.task.device.type == "cuda":
                original(self, output_folder)
            else:
                extract_on_cpu(self, output_folder)
            report_left_out(self.task, output_folder)

        return extract

    return override(SelfSupervisionTrainer, "extract", anywhere)


def register_data_paths(config: Any) -> None:
    """Let DATA_PATHS work without an entry in VISSL's catalogue, which dataset_catalog.py:293 looks up in any case.

    Args:
        config: the `config` node of a run. Call in every process before the data sets are built.

    Raises:
        ConfigError: if a data set is given neither by DATA_PATHS nor by the catalogue.
    """
    from vissl.data.dataset_catalog import VisslDatasetCatalog

    for split in ("TRAIN", "TEST"):
        data = config.DATA[split]
        for number, name in enumerate(data.DATASET_NAMES[: len(data.DATA_SOURCES)]):
            if VisslDatasetCatalog.has_data(name) or data.DATA_SOURCES[number] == "synthetic":
                continue
            if number >= len(data.DATA_PATHS):
                raise ConfigError(
                    f"DATA.{split} names the data set {name!r}, which VISSL's catalogue does not have: give "
                    f"config.DATA.{split}.DATA_PATHS=[<folder>], or the catalogue's file in the environment "
                    f"variable VISSL_DATASET_CATALOG_PATH."
                )
            VisslDatasetCatalog.register_data(name, {"train": ["", ""], "val": ["", ""]})


_BEFORE_IMPORT: dict[str, Callable[[], bool]] = {
    "numpy aliases": _numpy_aliases,
    "collections aliases": _collections_aliases,
    "torchvision Kinetics400": _kinetics400,
    "pkg_resources stand-in": _pkg_resources,
    "weights-only torch.load": _safe_checkpoints,
}

_AFTER_IMPORT: dict[str, Callable[[], bool]] = {
    "SVM average precision": _svm_average_precision,
    "feature extraction on a CPU": _extraction_on_a_cpu,
    **OVERRIDES,
}
