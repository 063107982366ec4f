import pytest
import torch
from torchvision.models import resnet18, resnet50

from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.trunks import PIRLResNet, feature_channels
from pirl_plugin.validation import ConfigError


def model_config(photo_folder, **resnets):
    overrides = [f"config.MODEL.TRUNK.RESNETS.{key}={value}" for key, value in resnets.items()]
    return compose(
        [
            "config=pretrain/pirl/jigsaw_small_images_cpu",
            f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
            *overrides,
        ]
    ).MODEL


def as_torchvision(state):
    return {key.removeprefix("_feature_blocks."): value for key, value in state.items()}


@pytest.mark.parametrize(("depth", "reference"), [(18, resnet18), (50, resnet50)])
def test_it_computes_what_torchvisions_resnet_computes(photo_folder, depth, reference):
    trunk = PIRLResNet(model_config(photo_folder, DEPTH=depth, WIDTH_MULTIPLIER=1, STEM="imagenet"), "x").eval()
    expected = reference()
    expected.fc = torch.nn.Identity()
    missing = expected.load_state_dict(as_torchvision(trunk.state_dict()), strict=True)
    assert not missing.missing_keys
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(images, ["flatten"])[0], expected.eval()(images), rtol=1e-4, atol=1e-5)


def test_the_small_stem_keeps_the_resolution_and_every_layer_can_be_had(photo_folder):
    trunk = PIRLResNet(model_config(photo_folder, WIDTH_MULTIPLIER=0.25), "x")
    layers = ["conv1", "res2", "res3", "res4", "res5", "flatten"]
    shapes = [tuple(f.shape[1:]) for f in trunk(torch.randn(2, 3, 32, 32), layers)]
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (128,)]
    assert feature_channels(18, 0.25)["res5"] == 128


def test_an_unknown_depth_or_stem_is_refused(photo_folder):
    with pytest.raises(ConfigError, match="STEM is 'smal'"):
        PIRLResNet(model_config(photo_folder, STEM="smal"), "x")
    with pytest.raises(ConfigError, match="DEPTH is 20; it must be one of 18, 34, 50, 101"):
        PIRLResNet(model_config(photo_folder, DEPTH=20), "x")
