"""Which GPUs this machine has, whether this build of PyTorch can use them, and where to compute features."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pirl_plugin.validation import ConfigError, check_integer

MOST_WORKERS = 8
DRIVER = Path("/proc/driver/nvidia/version")  # what NVIDIA's driver on Linux says of itself
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # by CUDA's major version (NVIDIA's table of minor version compatibility)
# Supports compute capability 5.0 and later, and drivers from 2023 on.
FOR_OLDER = "a build of PyTorch for CUDA 12 (torch 2.6, or cu126; in a checkout: make install FOR_CUDA=12)"


def choose_device(name: str | None = None) -> torch.device:
    """The device of a name such as `cpu`, `cuda` or `cuda:1`; None for the GPU if there is one, else the CPU.

    Raises:
        ConfigError: for a device that PyTorch does not know or this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()  # `meta` makes tensors without content
    except (RuntimeError, AssertionError) as error:
        reason = next(unusable_gpus(), str(error).splitlines()[0]).rstrip(".")
        raise ConfigError(f"--device is {name!r}, which this machine cannot use ({reason}); give cpu.") from error
    return device


@dataclass(frozen=True)
class Compute:
    """Where and how an evaluation computes features.

    Attributes:
        device: the network's device.
        workers: processes that read images; 0: the evaluating process does.
        bfloat16: whether the network computes under autocast to bfloat16; features are float32 in any case.
    """

    device: torch.device
    workers: int = 0
    bfloat16: bool = False

    @classmethod
    def of_options(cls, options: Namespace) -> Compute:
        """From --device, --workers and --bfloat16.

        Default: the GPU if there is one, fed by up to MOST_WORKERS processes, in float32.

        Raises:
            ConfigError: for a device that cannot be used, or fewer than 0 workers.
        """
        device = choose_device(options.device)
        workers = options.workers
        if workers is None:  # on the CPU they would take the network's cores
            workers = 0 if device.type == "cpu" else min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        return cls(device, check_integer(workers, "--workers", 0), options.bfloat16)

    def autocast(self) -> torch.autocast:
        """The context in which the network computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def driver_version(source: Path = DRIVER) -> str | None:
    """The version of NVIDIA's driver, such as 535.104.05; None if there is none, or not on Linux."""
    try:
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+\.\d+(?:\.\d+)?)", source.read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _is_compiled_for(capability: tuple[int, int], builds: list[str]) -> bool:
    """Whether code for one of `builds` (sm_75, compute_90 ...) runs on a GPU of this compute capability.

    Machine code (sm) runs on the same major version, from its minor one on; PTX (compute) on all later versions.
    """
    for build in builds:
        kind, number = re.sub(r"[a-z]$", "", build).rsplit("_", 1)
        of_build = (int(number) // 10, int(number) % 10)
        if capability >= of_build and (kind == "compute" or capability[0] == of_build[0]):
            return True
    return False


def unusable_gpus(source: Path = DRIVER) -> Iterator[str]:
    """Why this build of PyTorch cannot use GPUs of this machine, and what to install: one sentence each."""
    driver, cuda = driver_version(source), torch.version.cuda
    if driver is not None and cuda is None:
        yield f"torch {torch.__version__} is built for CPUs only; install a build for CUDA"
    if driver is not None and cuda is not None:
        oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
        if oldest is not None and int(driver.split(".")[0]) < oldest:
            yield (
                f"torch {torch.__version__} is built for CUDA {cuda}, which needs NVIDIA's driver {oldest} or newer, "
                f"and this is {driver}: install a newer driver or {FOR_OLDER}"
            )
    if torch.cuda.is_available():
        builds = torch.cuda.get_arch_list()
        for number in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(number)
            if builds and not _is_compiled_for(capability, builds):
                yield (
                    f"GPU {number} ({torch.cuda.get_device_name(number)}) has compute capability "
                    f"{capability[0]}.{capability[1]}, and torch {torch.__version__} is built for {', '.join(builds)}: "
                    f"install {FOR_OLDER}"
                )


def emulates_bfloat16() -> bool:
    """Whether the current GPU has no units for bfloat16 (compute capability below 8.0) and is slow with it."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)


def refuse_wrong_gradients(model: nn.Module) -> None:
    """Make a network that trains in bfloat16 on a CPU raise for views whose gradients would be garbage.

    oneDNN, which computes bfloat16 convolutions on CPUs, leaves part of the weight gradient unset if a strided 3 x 3
    convolution sees one pixel (seen with torch 2.11 on processors with avx512_bf16): the loss is NaN after a step or
    two.
    """

    def check(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and inputs[0].shape[-2:] == (1, 1):
            raise ConfigError(
                "TRAINER.PIRL_TRAIN_STEP.precision is 'bfloat16', and views are so small that a strided convolution "
                "sees one pixel, where a CPU's gradients in bfloat16 are wrong: use float32, larger views or patches, "
                "or a stem for small images."
            )

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.register_forward_pre_hook(check)
