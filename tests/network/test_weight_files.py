"""The files in which people have ResNets, and those that are none."""

import argparse

import numpy as np
import pytest
import torch
from torchvision import models

from pirl_plugin.network.weights import load_trunk
from pirl_plugin.validation import ConfigError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def resnet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.resnet18(weights=None).eval()


def features(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.Sequential(*list(model.children())[:-1])(IMAGES).flatten(1)


def prefixed(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


def sequential(model: torch.nn.Module, without_pool: bool = False) -> dict:
    children = [child for name, child in model.named_children() if not (without_pool and name == "maxpool")]
    return torch.nn.Sequential(*children[:-2]).state_dict()


RIGHT, OTHER = resnet(0), resnet(1)
STATE, STATE_2 = RIGHT.state_dict(), OTHER.state_dict()
VISSL = {"classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", STATE)}}}}
FORMS = {
    "VISSL's MoCo": {**VISSL, "loss": prefixed("moco_encoder.trunk._feature_blocks.", STATE_2)},
    "MoCo": {"state_dict": prefixed("module.encoder_q.", STATE) | prefixed("module.encoder_k.", STATE_2), "arch": "x"},
    "DINO": {"student": prefixed("module.backbone.", STATE_2), "teacher": prefixed("backbone.", STATE), "epoch": 3},
    "BYOL": prefixed("online_network.encoder.", STATE) | prefixed("target_network.encoder.", STATE_2),
    "timm with an average": {"state_dict": STATE_2, "state_dict_ema": STATE},
    "compiled": prefixed("_orig_mod.", STATE),
    "compiled under DDP": {"net": prefixed("module._orig_mod.", STATE)},
    "nn.Sequential": prefixed("backbone.", sequential(RIGHT)),
    "nn.Sequential without a pool": prefixed("f.", sequential(RIGHT, without_pool=True)),
    "net": {"net": STATE, "acc": 91.2},
    "SupContrast": {"model": prefixed("module.encoder.", STATE), "opt": argparse.Namespace(lr=0.1), "epoch": 3},
    "Lightning": {"state_dict": prefixed("model.backbone.", STATE), "hyper_parameters": {"lr": np.float64(0.1)}},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_network_that_a_method_evaluates_is_found(form, tmp_path):
    torch.save(FORMS[form], tmp_path / "w.pth")
    torch.testing.assert_close(load_trunk(tmp_path / "w.pth")(IMAGES), features(RIGHT), rtol=1e-5, atol=1e-5)


class Head:
    pass


NAN = {**STATE, "layer2.0.conv1.weight": torch.full_like(STATE["layer2.0.conv1.weight"], torch.nan)}
REFUSED = {
    "two": (prefixed("model.", STATE) | prefixed("backbone.", STATE_2), r"holds 2 ResNets, at 'backbone.', 'model.'"),
    "NaN": (NAN, r"numbers in layer2.0.conv1.weight that are not finite"),
    "object": (
        {"state_dict": STATE, "head": Head()},
        r"an object of .*Head; if you trust it, .* save only its state_d",
    ),
    "deep stem": ({**prefixed("visual.", STATE), "visual.conv2.weight": torch.ones(3)}, "stem of several convolutions"),
    "ViT": ({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, "another architecture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_for_the_right_reason(name, tmp_path):
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message) as caught:
        load_trunk(tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "a pointer of git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<html><body>404", "a web page"),
        (b"", "is empty"),
        (b"h", "can be read safely .*: torch.save did not write it"),
        (b"the weights will follow\n", "can be read safely .*: torch.save did not write it"),
    ],
)
def test_what_a_download_left_behind_is_called_what_it_is(start, message, tmp_path):
    (tmp_path / "w.pth").write_bytes(start)
    with pytest.raises(ConfigError, match=message):
        load_trunk(tmp_path / "w.pth")


def test_a_torchscript_program_is_called_one(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="it is a TorchScript program; save the state_dict"):
        load_trunk(tmp_path / "w.pt")
