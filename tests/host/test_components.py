"""What VISSL builds by name does what the plain classes do."""

import torch
from vissl.models.heads import get_model_head
from vissl.models.trunks import get_model_trunk

from pirl_plugin.host.components import VisslHead
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.run_networks import TRUNKS, build_trunk
from pirl_plugin.network.trunks import STAGES, ResNetTrunk


def model_config(photo_folder, *overrides):
    data = f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"
    return compose(["config=pretrain/pirl/jigsaw_small_images_cpu", data, *overrides]).MODEL


def test_vissls_own_resnet_and_ours_have_the_same_weights_and_features(photo_folder):
    """So that load_trunk needs no network code of VISSL."""
    config = model_config(photo_folder)
    config.TRUNK.RESNETS |= {"DEPTH": 50, "WIDTH_MULTIPLIER": 1}
    theirs, ours = get_model_trunk("resnet")(config, "resnet").eval(), ResNetTrunk(50).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for got, expected in zip(ours(images, STAGES), theirs(images, list(STAGES)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_registered_trunk_is_the_plain_one_with_vissls_settings(photo_folder):
    config = model_config(photo_folder, "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.25")
    registered, plain = get_model_trunk("pirl_resnet")(config, "pirl_resnet"), ResNetTrunk(18, 0.25, "small")
    plain.load_state_dict(registered.state_dict())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(registered(images, ["flatten"])[0], plain(images)[0])
    config.INPUT_TYPE = "bgr"
    turned = get_model_trunk("pirl_resnet")(config, "pirl_resnet")
    turned.load_state_dict(plain.state_dict())
    torch.testing.assert_close(turned.eval()(images, ["flatten"])[0], plain.eval()(images.flip(1))[0])


def test_the_registered_head_takes_vissls_config_first():
    head = get_model_head("pirl_heads")(object(), "image", in_channels=8, embedding_dim=4)
    assert isinstance(head, VisslHead)
    plain = PIRLHead("image", in_channels=8, embedding_dim=4)
    plain.load_state_dict(head.state_dict())
    features = torch.randn(3, 8)
    assert torch.equal(head(features), plain(features))


def test_a_trunk_of_vissl_that_we_do_not_have_is_built_by_vissl(photo_folder):
    config = model_config(photo_folder)
    assert {"efficientnet", "regnet", "resnet", "pirl_resnet"} <= set(TRUNKS)
    config.TRUNK |= {"NAME": "alexnet_jigsaw"}
    trunk = build_trunk({"MODEL": config})
    assert type(trunk).__module__.startswith("vissl.") and not trunk.training
