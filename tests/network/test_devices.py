"""Which GPUs this build of PyTorch can use: the queries are patched, since CI has no GPU."""

import re
import subprocess
import sys

import pytest
import torch

from pirl_plugin.network.devices import (
    choose_device,
    driver_version,
    emulates_bfloat16,
    refuse_wrong_gradients,
    unusable_gpus,
)
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.validation import ConfigError

PROPRIETARY = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)
GCC version:  gcc version 12.3.0
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with GPUs of some compute capabilities, a driver, and a build of PyTorch."""

    def of(capabilities=(), driver=OPEN, cuda="13.0", builds=("sm_75", "sm_80", "sm_90", "compute_120")):
        source = tmp_path / "version"
        if driver is not None:
            source.write_text(driver)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(builds))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number=0: capabilities[number])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: f"Model {number}")
        return source

    return of


@pytest.mark.parametrize(("text", "version"), [(PROPRIETARY, "535.104.05"), (OPEN, "580.65.06"), ("nothing", None)])
def test_the_drivers_version_is_read_from_what_it_says_of_itself(machine, text, version):
    assert driver_version(machine(driver=text)) == version


def test_where_there_is_no_driver_nothing_is_said_of_it(machine):
    source = machine(driver=None)
    assert driver_version(source) is None and list(unusable_gpus(source)) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "fault"),
    [
        (
            PROPRIETARY,
            "13.0",
            r"needs NVIDIA's driver 580 or newer, and this is 535\.104\.05: .*cu126",
        ),
        (PROPRIETARY, "12.6", None),
        (OPEN, "13.0", None),
        (OPEN, None, "built for CPUs only; install a build for CUDA"),
    ],
)
def test_a_driver_too_old_for_the_build_is_named_with_what_to_install(machine, driver, cuda, fault):
    source = machine(driver=driver, cuda=cuda)
    faults = list(unusable_gpus(source))
    if fault is None:
        assert faults == []
    else:
        (said,) = faults
        assert re.search(fault, said), said


@pytest.mark.parametrize(
    ("capability", "builds", "usable"),
    [
        ((7, 0), ("sm_75", "sm_80", "compute_120"), False),  # a V100 with wheels for CUDA 13
        ((7, 0), ("sm_50", "sm_60", "sm_70"), True),
        ((7, 5), ("sm_75", "sm_80"), True),
        ((8, 6), ("sm_75", "sm_80"), True),  # machine code serves later GPUs of the same major version
        ((9, 0), ("sm_75", "sm_80"), False),
        ((9, 0), ("sm_75", "compute_80"), True),  # PTX serves all later ones
        ((12, 0), ("sm_75", "sm_90a", "sm_100"), False),
        ((12, 0), ("sm_90", "sm_120"), True),
        ((9, 0), ("sm_90a",), True),
    ],
)
def test_a_gpu_for_which_there_is_no_code_is_named(machine, capability, builds, usable):
    faults = list(unusable_gpus(machine([(8, 0), capability], builds=(*builds, "sm_80"))))
    assert bool(faults) != usable
    for fault in faults:
        assert fault.startswith(f"GPU 1 (Model 1) has compute capability {capability[0]}.{capability[1]}, and torch")
        assert "install a build of PyTorch for CUDA 12" in fault


@pytest.mark.parametrize(("capability", "emulated"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_bfloat16_below_compute_capability_8_is_called_emulated(machine, capability, emulated):
    machine([capability])
    assert emulates_bfloat16() is emulated


def test_a_device_that_is_not_there_is_refused_with_the_reason():
    if torch.cuda.is_available():
        assert choose_device().type == "cuda"
        return
    assert choose_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"--device is 'cuda', which this machine cannot use \(.+\); give cpu"):
        choose_device("cuda")
    for name in ("gpu:x", "meta"):  # tensors of `meta` have no content
        with pytest.raises(ConfigError, match=f"--device is '{name}', which this machine cannot use"):
            choose_device(name)


def test_a_run_on_gpus_that_cannot_serve_is_refused_and_a_slow_number_format_warned_of(machine, monkeypatch, caplog):
    from vissl.utils.hydra_config import AttrDict

    from pirl_plugin.launch import machine_check
    from pirl_plugin.network import devices

    config = AttrDict({"TRAINER": {"PIRL_TRAIN_STEP": {"precision": "bfloat16"}}})
    monkeypatch.setattr(machine_check, "unusable_gpus", lambda: devices.unusable_gpus(machine([(7, 0)])))
    with pytest.raises(ConfigError, match=r"MACHINE.DEVICE is gpu, but GPU 0 \(Model 0\) has compute capability 7.0"):
        machine_check.check_gpus(config)
    monkeypatch.setattr(machine_check, "unusable_gpus", lambda: devices.unusable_gpus(machine([(7, 5)])))
    machine_check.check_gpus(config)
    assert "precision is bfloat16, for which Model 0 has no units" in caplog.text
    caplog.clear()
    monkeypatch.setattr(machine_check, "unusable_gpus", lambda: devices.unusable_gpus(machine([(8, 0)])))
    machine_check.check_gpus(config)
    assert not caplog.text


def test_without_a_gpu_importing_the_devices_starts_no_driver():
    code = "import torch, pirl_plugin.network.devices as d; list(d.unusable_gpus()); print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_on_a_cpu_bfloat16_is_refused_where_a_strided_convolution_sees_one_pixel():
    model = ResNetTrunk(18, 0.125)
    refuse_wrong_gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ConfigError, match=r"precision is 'bfloat16', .*use float32, larger views"):
            model(torch.zeros(2, 3, 12, 12))
        model(torch.zeros(2, 3, 24, 24))
        with torch.no_grad():  # an evaluation takes no gradients
            model(torch.zeros(2, 3, 12, 12))
    small = ResNetTrunk(18, 0.125, stem="small")
    refuse_wrong_gradients(small)
    with torch.autocast("cpu", torch.bfloat16):
        small(torch.zeros(2, 3, 12, 12))


def test_what_is_not_refused_has_gradients_near_those_of_float32():
    torch.manual_seed(0)
    trunk = ResNetTrunk(18, 0.125).eval()
    images, gradients = torch.randn(8, 3, 24, 24), []
    refuse_wrong_gradients(trunk)
    for enabled in (False, True):
        trunk.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (features,) = trunk(images)
        features.float().square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in trunk.parameters()])
    for exact, rounded in zip(*gradients, strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.1
