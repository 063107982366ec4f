"""Reports what is installed, which optional packages are missing, and which configs this machine can run."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pirl_plugin.host import (
    mends,  # the rest is imported where it is used, so that the doctor can report what is missing
)

REQUIRED = (
    "torch", "torchvision", "vissl", "classy_vision", "hydra", "omegaconf", "fvcore", "iopath", "numpy", "scipy",
    "sklearn", "PIL", "matplotlib", "tensorboard", "simplejpeg", "safetensors", "submitit",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """An optional package, used if it is installed.

    Attributes:
        module: its import name.
        gives: what is missing without it.
        install: the command that installs it.
    """

    module: str
    gives: str
    install: str


OPTIONAL = (
    Part("cv2", "quick augmentation in the loader's workers", "pip install opencv-python-headless"),
    Part("triton", "the fused loss on a GPU", "it comes with PyTorch for CUDA"),
    Part("detectron2", "detection", "pirl install-detectron2"),
    Part("pycocotools", "detection", "pip install pycocotools"),
    Part("skimage", "the demo without your own photos", "pip install scikit-image"),
    Part("timm", "training networks of timm and checking exports for it", "pip install timm"),
    Part("pyarrow", "data sets saved by Hugging Face datasets, or in Parquet", "pip install pyarrow"),
    Part("wandb", "logging to Weights & Biases", "pip install wandb"),
)


def _version(module: str) -> str | None:
    """The version of an installed module; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in _distributions().get(module, ()):
        return importlib.metadata.version(name)
    try:
        return str(getattr(importlib.import_module(module), "__version__", "of unknown version"))
    except Exception as error:  # a broken package can raise anything
        return f"that cannot be imported ({type(error).__name__}: {error})"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Import name -> installed packages; reading them all takes a moment."""
    return importlib.metadata.packages_distributions()


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def environment() -> Iterator[str]:
    """Python, machine and required packages, one line each; a line that starts with ! is a fault."""
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield f"{os.cpu_count()} CPU cores, {memory:.0f} GiB of memory"
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / 2**30) < 2:
        yield f"! /dev/shm, which loader workers use for batches, has {free:.1f} GiB: enlarge it, or use 0 workers"
    for module in REQUIRED:
        version = _version(module)
        yield f"! {module} is not installed" if version is None else f"{module} {version}"
    if _version("torch") is not None:
        yield from gpus()
    if _version("classy_vision") is not None:
        yield from classy_vision()


def gpus() -> Iterator[str]:
    """The GPUs that PyTorch sees, one line each."""
    import torch

    from pirl_plugin.network.devices import unusable_gpus

    for fault in unusable_gpus():
        yield f"! {fault}"
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "with" if properties.major >= 8 else "without"  # below, it is emulated
        yield f"GPU {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16} bfloat16"
    if not torch.cuda.is_available():
        yield f"no GPU that PyTorch can use (it is built for {torch.version.cuda or 'CPUs only'})"


def classy_vision() -> Iterator[str]:
    """Which of the two copies of classy_vision is in use: VISSL's wheel has its own."""
    import classy_vision as package

    version, where = package.__version__, Path(package.__file__).parent
    vissl_files = importlib.metadata.files("vissl") if _distribution("vissl") else None
    carried = any(str(path).startswith("classy_vision/") for path in vissl_files or ())
    yield f"classy_vision in use: {version}, in {where}"
    if version == "0.7.0.dev":
        yield f"  this is the copy in VISSL's wheel, which works; tested is 0.7.0 on top: {mends.INSTALL_VISSL}"
    if carried and _distribution("classy-vision"):
        yield "  VISSL's wheel lists the same files: uninstalling classy-vision would take VISSL's with it"


def _distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def optional_parts() -> Iterator[str]:
    """Each optional package: its version, or what is missing without it and how to install it."""
    for part in OPTIONAL:
        version = _version(part.module)
        if version is not None:
            yield f"{part.module} {version}: {part.gives}"
        else:
            yield f"no {part.module}, so no {part.gives}: {part.install}"


@dataclass(frozen=True)
class Verdict:
    """Whether a config can run here.

    Attributes:
        lacks: what this machine lacks for it.
        give: what must be given on the command line as well.
    """

    lacks: tuple[str, ...]
    give: tuple[str, ...]

    def __str__(self) -> str:
        given = f" (give {', '.join(self.give)})" if self.give else ""
        return f"needs {', '.join(self.lacks)}{given}" if self.lacks else f"can run{given}"


def is_part(name: str) -> bool:
    """Whether a config is only a part of others."""
    import yaml

    from pirl_plugin.paths import config_folder

    content = yaml.safe_load((config_folder() / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
    return "defaults" not in content and "MODEL" not in content["config"]


def verdict(name: str) -> Verdict:
    """Whether this machine can run a config unchanged."""
    import torch
    from vissl.data.dataset_catalog import VisslDatasetCatalog

    from pirl_plugin.launch import composition
    from pirl_plugin.validation import ConfigError

    try:
        config = composition.compose([f"config={name}"], check=False).config
    except ConfigError as error:
        return Verdict((str(error),), ())
    lacks, give = [], []
    distributed = config.DISTRIBUTED
    if distributed.NUM_NODES > 1:
        lacks.append(f"{distributed.NUM_NODES} nodes")
    if config.MACHINE.DEVICE == "gpu":
        wanted, found = distributed.NUM_PROC_PER_NODE, torch.cuda.device_count()
        if found < wanted:
            lacks.append(
                f"{wanted} GPU{'s' * (wanted > 1)}{' per node' if distributed.NUM_NODES > 1 else ''}, found {found}"
            )
        if distributed.BACKEND == "nccl" and not torch.distributed.is_nccl_available():
            lacks.append("NCCL")
    benchmark = name.startswith("benchmark/")
    for split in ("TRAIN", "TEST") if benchmark or config.TEST_MODEL else ("TRAIN",):
        data = config.DATA[split]
        known = all(VisslDatasetCatalog.has_data(dataset) for dataset in data.DATASET_NAMES)
        if any(not Path(path).exists() for path in data.DATA_PATHS) or not (data.DATA_PATHS or known):
            give.append(f"DATA.{split}.DATA_PATHS")
    if benchmark:
        give.append("MODEL.WEIGHTS_INIT.PARAMS_FILE")
    return Verdict(tuple(lacks), tuple(give))


def examine(configs: bool = True) -> Iterator[str]:
    """The whole report, line by line."""
    yield "Environment"
    yield from (f"  {line}" for line in environment())
    yield "Optional packages"
    yield from (f"  {line}" for line in optional_parts())
    if not configs:
        return
    try:
        from pirl_plugin.launch import registration  # noqa: F401
        from pirl_plugin.launch.composition import config_names
    except Exception as error:  # a missing or broken package can raise anything
        yield f"! the plugin cannot be imported: {' '.join(str(error).split())}"
        return
    yield "Configs as they are, with the values to give as config.<key>=..."
    for name in config_names():
        if not is_part(name):
            yield f"  {name}: {verdict(name)}"
    yield "With fewer GPUs: config.DISTRIBUTED.NUM_NODES=1 config.DISTRIBUTED.NUM_PROC_PER_NODE=<n>;"
    yield "on a CPU, slowly: config.MACHINE.DEVICE=cpu config.DISTRIBUTED.BACKEND=gloo."
