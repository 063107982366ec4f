"""BatchNorm averages of whole images: those of all of them, in a checkpoint that serves as the one it was made from."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pirl_plugin.commands.__main__ import main
from pirl_plugin.evaluation.quick import evaluate_checkpoint
from pirl_plugin.launch.composition import compose
from pirl_plugin.network.batchnorm_averages import recompute_averages
from pirl_plugin.network.checkpoints import load_checkpoint, trunk_state
from pirl_plugin.network.features import center_view
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.validation import ConfigError


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, level + 1, (32, 32, 3), dtype=np.uint8)) for level in np.linspace(40, 255, 48)
    ]


def test_the_averages_are_those_of_all_images_and_weights_stay(photos):
    trunk, view = ResNetTrunk(18, 0.125, stem="small").eval(), center_view(32)
    before = {name: value.clone() for name, value in trunk.named_parameters()}
    assert recompute_averages(trunk, photos, view, batch_size=16) == 48
    views = torch.stack([view(photo) for photo in photos])
    maps = trunk._feature_blocks["conv1"](views)
    norm = trunk._feature_blocks["bn1"]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    # The variance within a batch of 16 is that of all but for how the batches' means differ, which is little.
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)), rtol=0.1, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_parameters())
    assert not any(module.training for module in trunk.modules()) and norm.momentum == 0.1
    first = norm.running_mean.clone()
    recompute_averages(trunk, photos, view, batch_size=16)
    torch.testing.assert_close(norm.running_mean, first)  # nothing of the earlier ones is left


def test_files_that_cannot_be_read_count_for_nothing(photos, tmp_path):
    files = []
    for number, photo in enumerate(photos):
        files.append(tmp_path / f"{number}.png")
        photo.save(files[-1])
    found, unread = [], []
    for names in (files, [*files[:20], tmp_path / "missing.png", *files[20:]]):
        trunk = ResNetTrunk(18, 0.125, stem="small").eval()
        torch.manual_seed(0)
        nn.init.normal_(trunk._feature_blocks["conv1"].weight)
        recompute_averages(trunk, names, center_view(32), 64, on_unreadable=lambda file, _: unread.append(file.name))
        found.append(trunk._feature_blocks["bn1"].running_mean)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert unread == ["missing.png"]
    with pytest.raises(ConfigError, match="0 of 1 images could be read"):
        recompute_averages(trunk, [tmp_path / "missing.png"], center_view(32), on_unreadable=lambda *_: None)
    with pytest.raises(ConfigError, match="no BatchNorm with running averages"):
        recompute_averages(nn.Conv2d(3, 3, 1), photos, center_view(32))


def test_the_command_writes_a_checkpoint_that_is_evaluated_like_any_other(photo_folder, tmp_path, capsys):
    overrides = ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]
    config = compose([*overrides, f"config.CHECKPOINT.DIR={tmp_path}"], write_config=True).config
    model = {"trunk": build_trunk(config, seed=5).state_dict(), "heads": {}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, tmp_path / "checkpoint.torch")
    with pytest.raises(SystemExit) as end:
        main(["recompute-batchnorm", str(tmp_path / "checkpoint.torch"), str(photo_folder), "--most", "30"])
    assert not end.value.code and "checkpoint_batchnorm.torch: averages of 30 images" in capsys.readouterr().out
    before, after = (trunk_state(load_checkpoint(tmp_path / f"checkpoint{name}.torch")) for name in ("", "_batchnorm"))
    assert before.keys() == after.keys()
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same != name.endswith(("running_mean", "running_var", "num_batches_tracked")), name
    with pytest.raises(SystemExit) as end:
        main(["recompute-batchnorm", f"{tmp_path}/checkpoint.torch", str(photo_folder),
              "--output", f"{tmp_path}/../{tmp_path.name}/checkpoint.torch"])  # fmt: skip
    assert "is the same file as" in end.value.code
    # Every other photo is measured on, and the others vote.
    for split in ("train", "test"):
        for number, file in enumerate(sorted(photo_folder.rglob("*.jpg"))):
            if number % 2 == (split == "test"):
                (tmp_path / split / file.parent.name).mkdir(parents=True, exist_ok=True)
                (tmp_path / split / file.parent.name / file.name).write_bytes(file.read_bytes())
    figures = [
        evaluate_checkpoint(tmp_path / f"checkpoint{name}.torch", tmp_path / "train", tmp_path / "test").accuracies
        for name in ("", "_batchnorm")
    ]
    assert figures[0]["untrained"] == figures[1]["untrained"]
