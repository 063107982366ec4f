"""Backbones of timm as trunks: built, run at several sizes, saved, read back and exported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pirl_plugin.evaluation.layers import embed_layers
from pirl_plugin.launch.composition import compose
from pirl_plugin.network.embed_folder import embed_folder
from pirl_plugin.network.export import export
from pirl_plugin.network.features import center_view
from pirl_plugin.network.timm_trunk import TimmArchitecture, TimmTrunk, timm_channels
from pirl_plugin.network.weights import Trunk, load_trunk
from pirl_plugin.validation import ConfigError

timm = pytest.importorskip("timm", reason="trunks of timm need timm")
ROOT = Path(__file__).resolve().parents[2]
VIT = {"model": "vit_tiny_patch16_224", "arguments": {"dynamic_img_size": True, "depth": 3, "img_size": 64}}
REGNET = {"model": "regnetx_002", "arguments": {}}
CONVNEXT = {"model": "convnext_atto", "arguments": {"depths": [1, 1, 1, 1]}}


@pytest.mark.parametrize("settings", [VIT, REGNET, CONVNEXT], ids=lambda settings: settings["model"])
def test_features_are_those_of_timm_and_their_number_is_known_without_weights(settings):
    torch.manual_seed(0)
    trunk = TimmTrunk(TimmArchitecture.of_settings(settings)).eval()
    reference = timm.create_model(settings["model"], num_classes=0, **settings["arguments"]).eval()
    reference.load_state_dict({key.removeprefix("model."): value for key, value in trunk.state_dict().items()})
    for size in (64, 32):
        images = torch.randn(2, 3, size, size)
        (features,) = trunk(images)
        assert torch.equal(features, reference(images))
        assert features.shape == (2, timm_channels(settings)) and timm_channels(settings) == trunk.channels


@pytest.mark.parametrize("settings", [VIT, REGNET, CONVNEXT], ids=lambda settings: settings["model"])
def test_features_of_stages_come_in_the_order_asked_for(settings):
    trunk = TimmTrunk(TimmArchitecture.of_settings(settings)).eval()
    images = torch.randn(2, 3, 64, 64)
    last, pooled, first = trunk(images, [trunk.stages[-1], "flatten", trunk.stages[0]])
    maps = trunk.model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    assert len(maps) == len(trunk.stages) and torch.equal(first, maps[0]) and torch.equal(last, maps[-1])
    torch.testing.assert_close(pooled, trunk(images)[0])
    with pytest.raises(ConfigError, match=f"no layer 'res9'; it has stage1, .*stage{len(maps)}, flatten"):
        trunk(images, ["res9"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "vit_tinny_patch16_224"}, r"model is 'vit_tinny_patch16_224' \(did you mean vit_tiny_patch16_224"),
        ({"model": "hf-hub:somebody/model"}, "must be one of the .* of timm.list_models"),
        ({"model": "regnetx_002", "arguments": {"pretrained": True}}, "arguments has pretrained; a trunk starts"),
        ({"model": "regnetx_002", "arguments": {"checkpoint_path": "x"}}, "arguments has checkpoint_path"),
        ({"model": "regnetx_002", "argument": {}}, r"no key 'argument' \(did you mean arguments\?\)"),
        (None, "MODEL.TRUNK.TIMM is None; it must be a mapping"),
        ({"model": "regnetx_002", "arguments": {"nonsense": 3}}, "arguments does not fit regnetx_002: .*nonsense"),
    ],
)
def test_settings_that_cannot_be_right_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TimmArchitecture.of_settings(settings).build()


def checkpoint(settings: dict, path: Path) -> TimmTrunk:
    """As a run writes it."""
    torch.manual_seed(1)
    architecture = TimmArchitecture.of_settings(settings)
    network = architecture.build()
    own = {"trunk": architecture.record(), "images": {"size": 48, "mean": [0.5] * 3, "std": [0.25] * 3}}
    model = {"trunk": network.state_dict(), "heads": {}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}, "pirl_plugin": own}}, path)
    return network.eval()


@pytest.mark.parametrize("settings", [VIT, REGNET], ids=lambda settings: settings["model"])
def test_a_checkpoint_is_read_embedded_analysed_and_exported(settings, tmp_path, photo_folder):
    path = tmp_path / "checkpoint.torch"
    network = checkpoint(settings, path)
    trunk = load_trunk(path)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(trunk(images), network(images)[0]) and trunk.preprocessing.size == 48
    assert trunk.preprocessing.known and len(trunk.stages) <= 5 and trunk.stages[-1] == network.stages[-1]
    count, _ = embed_folder(path, photo_folder, tmp_path / "features.npy")
    assert np.load(tmp_path / "features.npy").shape == (count, network.channels)
    files = sorted(map(str, photo_folder.rglob("*.jpg")))[:3]
    by_layer = embed_layers(trunk.network, files, center_view(48), trunk.stages, 100)
    assert set(by_layer) == set(trunk.stages) and all(len(values) == 3 for values in by_layer.values())

    said = export(path, "safetensors", tmp_path / "weights.safetensors")
    read = load_trunk(tmp_path / "weights.safetensors")
    assert "equal the trunk's" in said and torch.equal(read(images), trunk(images))
    assert read.preprocessing == trunk.preprocessing
    export(path, "timm", tmp_path / "weights.pth")
    model = timm.create_model(settings["model"], num_classes=0, **settings["arguments"]).eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for one in (model, load_trunk(tmp_path / "weights.pth")):
        assert torch.equal(one(images), trunk(images))
    notes = json.loads((tmp_path / "weights.pth.json").read_text())
    assert notes["architecture"]["model"] == settings["model"] and notes["crop"] == 48
    with pytest.raises(ConfigError, match=r"--format, for .* of timm.*is 'torchvision'.*one of timm, safetensors"):
        export(path, "torchvision", tmp_path / "other.pth")


def test_a_size_that_a_vit_does_not_take_and_a_layer_that_it_lacks_are_refused(tmp_path, photo_folder):
    path = tmp_path / "checkpoint.torch"
    settings = {"model": VIT["model"], "arguments": {**VIT["arguments"], "img_size": [64, 64]}}
    network = checkpoint(settings, path)
    assert TimmArchitecture.of_settings(settings).input_size == 64
    with pytest.raises(
        ConfigError, match=r"vit_tiny_patch16_224 of timm does not take images of 50 x 50: .*patch size"
    ):
        embed_folder(path, photo_folder, tmp_path / "f.npy", size=50)
    with pytest.raises(ConfigError, match="--layer is 'res5'; it must be one of flatten, stage1, stage2, stage3"):
        embed_folder(path, photo_folder, tmp_path / "f.npy", layer="res5")
    embed_folder(path, photo_folder, tmp_path / "f.npy", layer="stage2", size=48)
    with torch.no_grad():
        (maps,) = network(torch.randn(1, 3, 48, 48), ["stage2"])
    assert np.load(tmp_path / "f.npy").shape[1] == maps.numel()


def test_a_file_whose_weights_are_another_networks_is_refused(tmp_path):
    checkpoint(REGNET, tmp_path / "a.torch")
    content = torch.load(tmp_path / "a.torch", weights_only=True)
    content["classy_state_dict"]["pirl_plugin"]["trunk"] = {"model": "regnetx_004", "arguments": {}}
    torch.save(content, tmp_path / "b.torch")
    with pytest.raises(ConfigError, match="is not a complete regnetx_004 of timm"):
        load_trunk(tmp_path / "b.torch")


TINY = [
    "config.MACHINE.DEVICE=cpu", "config.DISTRIBUTED.BACKEND=gloo", "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=24", "config.TRAINER.PIRL_TRAIN_STEP.precision=float32",
    "config.DATA.TRAIN.TRANSFORMS.0.image_crop_size=64", "config.DATA.TRAIN.TRANSFORMS.0.patch_crop_size=96",
    "config.DATA.TRAIN.TRANSFORMS.0.patch_size=32", "config.LOSS.pirl_loss.num_negatives=20",
]  # fmt: skip


def test_in_channels_are_filled_in_and_a_vit_of_one_size_is_refused_with_the_argument_that_helps(photo_folder):
    given = [*TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", "config=pretrain/pirl/jigsaw_vit_1gpu",
             "config.MODEL.TRUNK.TIMM.model=vit_tiny_patch16_224"]  # fmt: skip
    config = compose(given).config
    assert [head[1]["in_channels"] for (head,) in [[part] for part in config.MODEL.HEAD.PARAMS]] == [192, 192]
    with pytest.raises(ConfigError, match=r"cannot take views of 64 pixels.*dynamic_img_size"):
        compose([*given, "config.MODEL.TRUNK.TIMM.arguments.dynamic_img_size=False"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [("pretrain/pirl/jigsaw_vit_1gpu", "vit_tiny_patch16_224"), ("pretrain/pirl/jigsaw_regnet_1gpu", "regnetx_002")],
)
def test_a_run_with_a_network_of_timm_trains_and_its_checkpoint_is_read(name, model, photo_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", f"config={name}", *TINY,
         f"config.MODEL.TRUNK.TIMM.model={model}", "config.OPTIMIZER.num_epochs=1",
         f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={tmp_path}/run"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    trunk = load_trunk(next((tmp_path / "run").glob("model_final_checkpoint*.torch")))
    assert isinstance(trunk, Trunk) and trunk.architecture.model == model and trunk.preprocessing.size == 64
    assert "kNN beside untrained" in done.stdout + done.stderr
