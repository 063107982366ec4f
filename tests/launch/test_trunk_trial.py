"""VISSL's other trunks: those of the table in docs/weights.md are accepted, or refused with the reason it gives."""

import pytest

from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError

LAYERS = "config.MODEL.MULTI_INPUT_HEAD_MAPPING=[[images,[]],[pretext,[]]]"


def arguments(photo_folder, trunk: str, *more: str, channels: tuple[int, int] | None = None) -> list[str]:
    heads = [f"+config.MODEL.HEAD.PARAMS.{head}.1.in_channels={n}" for head, n in enumerate(channels or ())]
    return ["config=pretrain/pirl/jigsaw_1gpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4", "config.LOSS.pirl_loss.num_negatives=10",
            f"config.MODEL.TRUNK.NAME={trunk}", LAYERS, *more, *heads]  # fmt: skip


@pytest.mark.parametrize(
    ("trunk", "more", "channels"),
    [
        ("regnet", ["+config.MODEL.TRUNK.REGNET={name:regnet_y_400mf}"], (440, 440)),
        ("xcit", [], (384, 384)),
        ("alexnet_rotnet", [], (9216, 256)),
    ],
)
def test_a_trunk_that_takes_the_views_is_accepted_with_its_features_only(photo_folder, trunk, more, channels):
    config = compose(arguments(photo_folder, trunk, *more, channels=channels))
    assert trunk == config.MODEL.TRUNK.NAME
    with pytest.raises(ConfigError, match=rf"\(pretext\) is 5, .* give in_channels: {channels[1]}\."):
        compose(arguments(photo_folder, trunk, *more, channels=(channels[0], 5)))


@pytest.mark.parametrize(
    ("trunk", "reason"),
    [
        ("efficientnet", "Please specify EfficientNet version"),
        ("regnet", "'depth' is missing"),
        ("alexnet_bvlc", "cannot take views of 224 pixels"),
        ("alexnet_colorization", "takes LAB image only"),
    ],
)
def test_a_trunk_that_cannot_train_is_refused_with_the_reason(photo_folder, trunk, reason):
    with pytest.raises(ConfigError, match=f"MODEL.TRUNK.NAME is '{trunk}', .*{reason}"):
        compose(arguments(photo_folder, trunk))
