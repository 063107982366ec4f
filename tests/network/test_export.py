"""Weights into each library and back, with the real libraries."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from pirl_plugin.commands.__main__ import main as pirl
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.network import embed_folder as embed_folder_module
from pirl_plugin.network.embed_folder import embed_folder
from pirl_plugin.network.export import SUFFIXES, detectron2_name, export, preprocessing_notes
from pirl_plugin.network.features import center_view
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.trunks import LAYOUTS
from pirl_plugin.network.weights import Architecture, Trunk, infer_architecture, load_trunk, read_trunk_weights
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError


def randomised(trunk: torch.nn.Module) -> torch.nn.Module:
    """With BatchNorm statistics that are not their defaults, so that a statistic left behind shows."""
    generator = torch.Generator().manual_seed(1)
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
    return trunk.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function: architecture -> (file as VISSL writes it, its trunk)."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def make(architecture: Architecture) -> tuple[Path, Trunk]:
        if architecture not in made:
            torch.manual_seed(0)
            trunk = randomised(Trunk(architecture))
            path = folder / f"{len(made)}.torch"
            model = {"trunk": trunk.network.state_dict(), "heads": {"0.weight": torch.ones(3)}}
            torch.save({"classy_state_dict": {"base_model": {"model": model}}, "loss": {"steps": 3}}, path)
            made[architecture] = path, trunk
        return made[architecture]

    return make


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_equal_in_the_other_library(form, depth, checkpoint, tmp_path):
    path, trunk = checkpoint(Architecture(depth))
    output = tmp_path / f"weights{SUFFIXES[form]}"
    said = export(path, form, output)
    assert f"features in {form} equal" in said and f"ResNet-{depth}" in said
    assert json.loads((output.parent / f"{output.name}.json").read_text())["architecture"]["depth"] == depth
    if form == "torchvision":  # as its users load it, without this package
        model = getattr(torchvision.models, f"resnet{depth}")()
        model.load_state_dict(torch.load(output, weights_only=True), strict=False)
        model.fc = torch.nn.Identity()
        torch.testing.assert_close(model.eval()(IMAGES), trunk(IMAGES), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=f"end in {SUFFIXES[form]}"):
        export(path, form, tmp_path / "weights.bin")


def test_detectron2s_own_checkpointer_loads_the_export(checkpoint, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    path, trunk = checkpoint(Architecture(50))
    export(path, "detectron2", tmp_path / "d2.pth")
    config = get_cfg()
    config.MODEL.RESNETS.STRIDE_IN_1X1 = False
    config.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    model = torch.nn.ModuleDict({"backbone": build_backbone(config)})
    DetectionCheckpointer(model).load(str(tmp_path / "d2.pth"))
    with torch.no_grad():
        features = model.eval()["backbone"](IMAGES)
    torch.testing.assert_close(features["res5"], trunk(IMAGES, "res5"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features["res4"], trunk(IMAGES, "res4"), rtol=1e-4, atol=1e-4)


def test_a_wrong_stride_would_not_pass_the_check(checkpoint, tmp_path, monkeypatch):
    """Detectron2's default STRIDE_IN_1X1 changes no shape: only features show it."""
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import resnet

    from pirl_plugin.network import export as module

    def wrong(config, shape=None):
        config = config.clone()
        config.MODEL.RESNETS.STRIDE_IN_1X1 = True
        return original(config, shape or ShapeSpec(channels=3))

    assert get_cfg().MODEL.RESNETS.STRIDE_IN_1X1
    original = resnet.build_resnet_backbone
    monkeypatch.setattr(resnet, "build_resnet_backbone", wrong)
    with pytest.raises(RuntimeError, match="differ by"):
        module.export(checkpoint(Architecture(50))[0], "detectron2", tmp_path / "d2.pth")


def test_names_in_detectron2():
    names = [
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.1.bias",
        "layer4.2.bn3.weight",
        "layer2.1.conv2.weight",
    ]
    assert [detectron2_name(name) for name in names] == [
        "stem.conv1.weight",
        "stem.conv1.norm.running_mean",
        "res2.0.shortcut.norm.bias",
        "res5.2.conv3.norm.weight",
        "res3.1.conv2.weight",
    ]


ARCHITECTURES = [
    Architecture(18, 0.25, "small"), Architecture(50, 2), Architecture(34),
    Architecture(50, groups=32, width_per_group=4), Architecture(50, 0.125, "small", groups=4),
    Architecture(50, 0.25, width_per_group=128),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_network_of_the_plugin_goes_through_safetensors(architecture, checkpoint, tmp_path):
    path, trunk = checkpoint(architecture)
    assert load_trunk(path).architecture == architecture
    said = export(path, "safetensors", tmp_path / "w.safetensors")
    assert "equal" in said
    assert torch.equal(load_trunk(tmp_path / "w.safetensors")(IMAGES), trunk(IMAGES))
    if architecture != Architecture(34):
        with pytest.raises(ConfigError, match="torchvision has no ResNet"):
            export(path, "torchvision", tmp_path / "w.pth")


def prefixed(prefix, state):
    return {f"{prefix}.{key}": value for key, value in state.items()}


def as_vissl_converts(state):
    trunk = prefixed("base_model._feature_blocks", state)
    return {"classy_state_dict": {"base_model": {"model": {"trunk": trunk}}}}


def as_old_vissl(state):
    return {"model_state_dict": prefixed("_feature_blocks", state), "iteration": np.int64(7), "lr": np.float32(0.1)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: prefixed("module", state),
        lambda state: {"state_dict": prefixed("backbone", state), "epoch": 3},
        lambda state: {"model": state},
        as_vissl_converts,
        as_old_vissl,
    ],
    ids=["plain", "DDP", "backbone", "model", "VISSL converted", "old VISSL with NumPy numbers"],
)
def test_weights_are_found_wherever_people_have_them(wrap, checkpoint, tmp_path):
    trunk = checkpoint(Architecture(18))[1]
    plain = {key.removeprefix("_feature_blocks."): value for key, value in trunk.network.state_dict().items()}
    torch.save(wrap({**plain, "fc.weight": torch.ones(10, 512)}), tmp_path / "w.pth")
    assert torch.equal(load_trunk(tmp_path / "w.pth")(IMAGES), trunk(IMAGES))


class Malicious:
    def __reduce__(self):
        return (exec, ("open('/tmp/pirl_plugin_was_here', 'w')",))


def test_files_that_cannot_serve_are_refused_in_one_sentence(checkpoint, tmp_path):
    path, _ = checkpoint(Architecture(18))
    whole = path.read_bytes()
    weights = read_trunk_weights(path)
    cases = {
        "missing.torch": (None, "There is no checkpoint file"),
        "cut.torch": (whole[: len(whole) // 2], "cannot be read|can be read safely"),
        "code.torch": ({"classy_state_dict": Malicious()}, "can be read safely"),
        "head.torch": (
            {"classy_state_dict": {"base_model": {"model": {"heads": {"0.weight": torch.ones(2)}}}}},
            "only a head",
        ),
        "other.torch": ({"patch_embed.weight": torch.ones(3, 3)}, "another architecture"),
        "lost.torch": ({key: value for key, value in weights.items() if "layer3.1" not in key}, r"have \(2, 2, 1, 2\)"),
        "half.torch": (
            {key: value for key, value in weights.items() if key != "layer3.1.bn2.bias"},
            "not a complete ResNet-18",
        ),
        "shape.torch": ({**weights, "layer2.0.conv1.weight": torch.ones(3, 3)}, "not a complete ResNet-18"),
        "cut.safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "not a complete .safetensors"),
    }
    for name, (content, message) in cases.items():
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(ConfigError, match=message) as caught:
            load_trunk(file)
        assert "\n" not in str(caught.value)
    assert not Path("/tmp/pirl_plugin_was_here").exists()


def test_depths_are_told_apart():
    for depth in LAYOUTS:
        with torch.device("meta"):
            trunk = Trunk(Architecture(depth))
        weights = {key.removeprefix("_feature_blocks."): value for key, value in trunk.network.state_dict().items()}
        assert infer_architecture(weights) == Architecture(depth)


def test_the_export_says_what_the_images_must_be():
    wanted = Preprocessing(224)
    plain, detection = (preprocessing_notes(Architecture(50), form, wanted) for form in ("torchvision", "detectron2"))
    assert (plain["channels"], plain["mean"], plain["std"]) == ("RGB", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert detection["INPUT.FORMAT"] == "RGB" and detection["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert detection["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert detection["MODEL.PIXEL_STD"] == [58.395, 57.12, 57.375]


def test_a_folder_is_embedded_and_what_cannot_be_read_is_named(checkpoint, photo_folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    subprocess.run(["cp", "-r", str(photo_folder), str(photos)], check=True)
    files = list_images(photos)
    Path(files[5]).write_bytes(b"no image")
    path, trunk = checkpoint(Architecture(18))
    with pytest.raises(SystemExit) as end:
        pirl(["embed", str(path), str(photos), "--output", str(tmp_path / "f.npy"), "--size", "64", "--batch-size=7"])
    assert end.value.code is None
    printed = capsys.readouterr().out
    assert f"Not read: {files[5]}: " in printed and f"features of {len(files) - 1} images; 1 could" in printed
    features, listed = np.load(tmp_path / "f.npy"), (tmp_path / "f.txt").read_text().split("\n")[:-1]
    assert listed == files[:5] + files[6:] and features.shape == (len(listed), 512)
    with torch.no_grad():
        expected = trunk(torch.stack([center_view(64)(load_rgb(file)) for file in listed]))
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_features_and_their_files_stay_in_step_whatever_the_names_are(checkpoint, tmp_path, make_photo):
    names = [b"a.jpg", b"latin1-\xe9.jpg", b"line\nbreak.jpg", "next\x85line.jpg".encode(), "sep\u2028.jpg".encode()]
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(names):
        make_photo(number, 40, 40).save(os.path.join(os.fsencode(tmp_path / "photos"), name), "JPEG")
    (tmp_path / "photos" / os.fsdecode(b"broken-\xe9\n.jpg")).write_bytes(b"no image")
    path, trunk = checkpoint(Architecture(18))
    count, unreadable = embed_folder(path, tmp_path / "photos", tmp_path / "f.npy", size=64)
    features, listed = np.load(tmp_path / "f.npy"), list_images(tmp_path / "f.txt")
    assert count == len(features) == len(listed) == 5 and len(unreadable) == 1 and unreadable[0].isprintable()
    with torch.no_grad():
        expected = trunk(torch.stack([center_view(64)(load_rgb(file)) for file in listed]))
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_embedding_mistakes_are_refused(checkpoint, photo_folder, tmp_path):
    path, _ = checkpoint(Architecture(18))
    with pytest.raises(ConfigError, match=r"must end in \.npy"):
        embed_folder(path, photo_folder, tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="did you mean flatten"):
        embed_folder(path, photo_folder, tmp_path / "x.npy", layer="flaten")
    for batch_size in (0, -1):
        with pytest.raises(ConfigError, match=f"--batch-size is {batch_size}; it must be a whole number at least 1"):
            embed_folder(path, photo_folder, tmp_path / "x.npy", batch_size=batch_size)
    listed = tmp_path / "some.txt"
    listed.write_text(f"{next(photo_folder.rglob('*.jpg'))}\n")
    with pytest.raises(ConfigError, match=r"some\.txt, which is the same file as .*some\.txt, which is read"):
        embed_folder(path, listed, tmp_path / "some.npy")
    assert listed.read_text().count("\n") == 1
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="None of the 1 images"):
        embed_folder(path, tmp_path / "bad", tmp_path / "x.npy")


def test_the_list_of_files_beside_the_features_is_read_from_anywhere(checkpoint, photo_folder, tmp_path, monkeypatch):
    path, _ = checkpoint(Architecture(18))
    monkeypatch.chdir(photo_folder.parent)
    (tmp_path / "out").mkdir()
    embed_folder(path, photo_folder.name, tmp_path / "out" / "f.npy", size=32)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    embed_folder(path, photo_folder.name, tmp_path / "link" / "f.npy", size=32)
    monkeypatch.chdir("/")
    for folder in ("out", "link"):
        found = list_images(tmp_path / folder / "f.txt")
        assert [Path(file).resolve() for file in found] == [Path(file).resolve() for file in list_images(photo_folder)]


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (123456789012, 2048), (48, 100352)])
def test_the_header_of_features_is_numpys(shape, tmp_path):
    (tmp_path / "f.npy").write_bytes(embed_folder_module._header(*shape))
    with open(tmp_path / "f.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.dtype(np.float32)) and not file.read()


def test_features_that_were_interrupted_leave_the_ones_before(checkpoint, photo_folder, tmp_path, monkeypatch):
    path, _ = checkpoint(Architecture(18))
    embed_folder(path, photo_folder, tmp_path / "f.npy", size=32)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("f.*")}

    shapes = []

    def full(*shape):
        shapes.append(shape)
        if len(shapes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return header(*shape)

    header = embed_folder_module._header
    monkeypatch.setattr(embed_folder_module, "_header", full)
    with pytest.raises(OSError, match="No space left"):
        embed_folder(path, photo_folder, tmp_path / "f.npy", size=32)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("f.*")} == before and len(before) == 2


@pytest.mark.parametrize("form", ["vissl", "safetensors"])
def test_an_export_never_writes_over_the_file_that_it_reads(form, checkpoint, tmp_path):
    path, _ = checkpoint(Architecture(18))
    output = tmp_path / f"checkpoint.{'torch' if form == 'vissl' else form}"
    output.symlink_to(path)
    before = Path(path).read_bytes()
    with pytest.raises(ConfigError, match=r"--output is .*, which is the same file as .*; give another name"):
        export(path, form, output)
    assert Path(path).read_bytes() == before
    other = tmp_path / "other.bin"  # a link to a file that is not read is replaced, and that file kept
    other.write_bytes(b"kept")
    output.unlink()
    output.symlink_to(other)
    export(path, form, output)
    assert other.read_bytes() == b"kept" and not output.is_symlink()


def test_the_commands_work_from_a_shell(checkpoint, tmp_path):
    path, _ = checkpoint(Architecture(18))
    run = [Path(sys.executable).parent / "pirl", "export", path]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0 and "ResNet-18" in done.stdout
    done = subprocess.run([*run, "--format", "timm", "--output", tmp_path / "t.pth"], capture_output=True, text=True)
    assert done.returncode == 0 and "features in timm equal" in done.stdout
    done = subprocess.run([*run, "--format", "timm"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "Error: --output is missing; give the file to write."


def test_reading_never_runs_code(tmp_path):
    torch.save({"x": Malicious()}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="read safely"):
        read_safely(tmp_path / "x.pth")
    assert not Path("/tmp/pirl_plugin_was_here").exists()
