import pytest
import torch
from torchvision.models import resnet18, resnet50, resnext50_32x4d

from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.network.trunks import LAYERS, ResNetTrunk, feature_channels
from pirl_plugin.validation import ConfigError


def as_torchvision(state):
    return {key.removeprefix("_feature_blocks."): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"depth": 18}, resnet18),
        ({"depth": 50}, resnet50),
        ({"depth": 50, "groups": 32, "width_per_group": 4}, resnext50_32x4d),
    ],
)
def test_it_computes_what_torchvisions_resnet_computes(settings, reference):
    trunk = ResNetTrunk(**settings).eval()
    expected = reference()
    expected.fc = torch.nn.Identity()
    missing = expected.load_state_dict(as_torchvision(trunk.state_dict()), strict=True)
    assert not missing.missing_keys
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(images, ["flatten"])[0], expected.eval()(images), rtol=1e-4, atol=1e-5)


def test_the_small_stem_keeps_the_resolution_and_every_layer_can_be_had():
    trunk = ResNetTrunk(18, 0.25, "small")
    layers = ["conv1", "res2", "res3", "res4", "res5", "flatten"]
    shapes = [tuple(f.shape[1:]) for f in trunk(torch.randn(2, 3, 32, 32), layers)]
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (128,)]
    assert feature_channels(18, 0.25)["res5"] == 128


def test_layers_come_in_the_order_in_which_they_are_asked_for_and_the_default_is_the_last():
    trunk, images = ResNetTrunk(18, 0.125, "small").eval(), torch.randn(2, 3, 16, 16)
    every = dict(zip(LAYERS, trunk(images, LAYERS), strict=True))
    for layer, features in zip(("res4", "conv1"), trunk(images, ["res4", "conv1"]), strict=True):
        assert torch.equal(features, every[layer])
    assert torch.equal(trunk(images)[0], every["flatten"])
    assert torch.equal(every["res5"].mean((2, 3)), every["flatten"])
    with pytest.raises(ConfigError, match="The layer is 'layer4'; it must be one of conv1, "):
        trunk(images, ["layer4"])


def test_an_unknown_depth_or_stem_is_refused():
    with pytest.raises(ConfigError, match="STEM is 'smal'"):
        ResNetTrunk(stem="smal")
    with pytest.raises(ConfigError, match=r"DEPTH is 20 .*must be one of 18, 34, 50, 101"):
        ResNetTrunk(20)


@pytest.mark.parametrize(
    ("resnets", "input_type", "sentence"),
    [
        ({"LAYER4_STRIDE": 1}, "rgb", "LAYER4_STRIDE is 1; features are computed here for 2 only"),
        ({"NORM": "GroupNorm"}, "rgb", "NORM is 'GroupNorm'"),
        ({}, "bgr", "INPUT_TYPE is 'bgr'"),
    ],
)
def test_a_resnet_of_vissl_that_ours_is_not_is_refused(resnets, input_type, sentence):
    """Its weights would load, and give other features."""
    given = {"DEPTH": 18, "WIDTH_MULTIPLIER": 1, "ZERO_INIT_RESIDUAL": False, **resnets}
    model = {"TRUNK": {"NAME": "resnet", "RESNETS": given}, "INPUT_TYPE": input_type}
    with pytest.raises(ConfigError, match=sentence):
        build_trunk({"MODEL": model})
