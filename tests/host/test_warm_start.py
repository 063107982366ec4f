"""Starting from VISSL's own PIRL: the same embeddings from the converted heads, the same bank, refused files."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from vissl.config import AttrDict
from vissl.models.heads.mlp import MLP
from vissl.models.heads.siamese_concat_view import SiameseConcatView

from pirl_plugin.commands import convert_vissl
from pirl_plugin.data.image_files import list_images
from pirl_plugin.host.warm_start import agreement, convert, convert_heads
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.network.weights import trunk_from_weights, trunk_weights_in
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.objective.memory_bank import MemoryBank, bank_rows
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CHANNELS, DIM = 128, 16  # of a ResNet-18 of a quarter of the usual width
MODEL = AttrDict({"HEAD": {"BATCHNORM_EPS": 1e-5, "BATCHNORM_MOMENTUM": 0.1, "PARAMS_MULTIPLIER": 1.0}})


def vissl_heads(patches: dict, image: dict) -> nn.ModuleList:
    """The heads of VISSL's PIRL configs, the patches' first."""
    return nn.ModuleList(
        [
            nn.Sequential(MLP(MODEL, **patches), SiameseConcatView(MODEL, 9), MLP(MODEL, dims=[9 * DIM, DIM])),
            nn.Sequential(MLP(MODEL, **image)),
        ]
    )


VARIANTS = {
    "linear": ({"dims": [CHANNELS, DIM]}, {"dims": [CHANNELS, DIM]}),
    "mlp": (
        {"dims": [CHANNELS, CHANNELS, DIM], "use_relu": True, "skip_last_layer_relu_bn": False},
        {"dims": [CHANNELS, CHANNELS, DIM], "use_relu": True},
    ),
    "mlp with the slip of _w2 and _w4": (
        {"dims": [CHANNELS, CHANNELS, DIM], "use_relu": True, "skip_last_layer_relu_bn": False},
        {"dims": [CHANNELS, CHANNELS, DIM]},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_heads_give_the_embeddings_of_vissls(variant):
    torch.manual_seed(0)
    theirs = vissl_heads(*VARIANTS[variant])
    converted = convert_heads(theirs.state_dict())
    image, pretext = torch.randn(4, CHANNELS), torch.randn(36, CHANNELS)
    for number, arguments, features, expected in (
        (0, converted.image, image, theirs[1](image)),
        (1, converted.pretext, pretext, theirs[0](pretext)),
    ):
        head = PIRLHead(**arguments)
        own = {key[2:]: value for key, value in converted.state.items() if key.startswith(f"{number}.")}
        head.load_state_dict(own)
        torch.testing.assert_close(head(features), expected, rtol=1e-5, atol=1e-6)


def checkpoint_of_vissl(path: Path, rows: torch.Tensor, variant: str = "linear") -> Path:
    """A file with the structure of VISSL's; test_a_real_checkpoint_... holds that to a real one."""
    torch.manual_seed(0)
    trunk = ResNetTrunk(18, 0.25, "small")
    model = {"trunk": trunk.state_dict(), "heads": vissl_heads(*VARIANTS[variant]).state_dict()}
    content = {"classy_state_dict": {"base_model": {"model": model}}, "loss": {"nce_average.memory": rows}}
    torch.save(content, path)
    return path


def test_a_converted_bank_is_the_first_bank_with_rows_of_norm_one(tmp_path):
    rows = 0.5 * torch.nn.functional.normalize(torch.randn(20, DIM), dim=1)  # VISSL's norm with 4 ranks
    said = convert(checkpoint_of_vissl(tmp_path / "vissl.torch", rows), tmp_path / "warm.torch")
    assert "ResNet-18 of 0.25 times the width" in said and "20 rows of 16" in said
    bank = MemoryBank(20, DIM, initial_rows=str(tmp_path / "warm.torch"), dtype="bfloat16")
    torch.testing.assert_close(bank.rows.float(), 2 * rows, rtol=0.01, atol=0.01)
    assert bank.updated.all()
    # straight from VISSL's file, too
    assert torch.equal(*(bank_rows(load_checkpoint(tmp_path / f"{name}.torch"), name) for name in ("vissl", "warm")))
    settings = {"num_negatives": 4, "embedding_dim": DIM, "memory_bank": {"initial_rows": str(tmp_path / "warm.torch")}}
    with pytest.raises(ConfigError, match=r"20 rows of 16 numbers; this run has 21 images and embedding_dim 16"):
        PIRLLoss(21, **settings)


def test_a_checkpoint_is_not_converted_over_itself(tmp_path):
    source = checkpoint_of_vissl(tmp_path / "vissl.torch", torch.randn(20, DIM))
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=r"--output is .*vissl.torch, which is the same file as"):
        convert(source, source)
    with pytest.raises(ConfigError, match="which is a folder; give the name of a file"):
        convert(source, tmp_path)
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["vissl.torch"]


def test_agreement_tells_the_right_order_of_images_from_a_wrong_one(tmp_path, photo_folder):
    files = list_images(photo_folder)
    convert(checkpoint_of_vissl(tmp_path / "vissl.torch", torch.randn(len(files), DIM)), tmp_path / "warm.torch")
    content = load_checkpoint(tmp_path / "warm.torch")
    trunk = trunk_from_weights(trunk_weights_in(content, ""))
    features = torch.from_numpy(embed(trunk.network, files, center_view(32)))
    heads = content["classy_state_dict"]["base_model"]["model"]["heads"]
    heads["0.projection.bias"] = -heads["0.projection.weight"] @ features.mean(0)  # embeddings around 0
    embeddings = features @ heads["0.projection.weight"].T + heads["0.projection.bias"]
    content["loss"]["memory_bank.rows"] = torch.nn.functional.normalize(embeddings, dim=1)
    torch.save(content, tmp_path / "warm.torch")
    own, other = agreement(tmp_path / "warm.torch", photo_folder, count=24)
    assert own > 0.99 and other < 0.5
    content["loss"]["memory_bank.rows"] = content["loss"]["memory_bank.rows"].roll(1, 0)
    torch.save(content, tmp_path / "warm.torch")
    assert agreement(tmp_path / "warm.torch", photo_folder, count=24)[0] < 0.5
    with pytest.raises(ConfigError, match="holds 12 images, but the bank has 48 rows: another data set"):
        agreement(tmp_path / "warm.torch", photo_folder / "class0")


def test_the_command_refuses_images_whose_rows_the_bank_does_not_hold(tmp_path, photo_folder):
    checkpoint = checkpoint_of_vissl(tmp_path / "vissl.torch", torch.randn(len(list_images(photo_folder)), DIM))
    options = Namespace(checkpoint=checkpoint, output=tmp_path / "warm.torch", patch_relu=None, images=photo_folder)
    with pytest.raises(ConfigError, match=f"The rows of the bank are not those of {photo_folder} in this order"):
        convert_vissl.run(options)


def test_other_checkpoints_are_refused_in_one_sentence(tmp_path):
    path = checkpoint_of_vissl(tmp_path / "vissl.torch", torch.randn(8, DIM))
    content = load_checkpoint(path)
    model = content["classy_state_dict"]["base_model"]["model"]

    def refused(match: str) -> None:
        torch.save(content, path)
        with pytest.raises(ConfigError, match=match):
            convert(path, tmp_path / "warm.torch")

    heads = dict(model["heads"])
    model["heads"] = {"0.clf.0.weight": torch.zeros(3, 3)}
    refused(r"are not those of VISSL's PIRL")
    model["heads"] = {**heads, "0.0.clf.1.weight": torch.zeros(DIM), "0.0.clf.1.running_mean": torch.zeros(DIM)}
    refused(r"0\.0\.clf\.1\.running_mean")
    model["heads"] = heads
    content["loss"] = {}
    refused(r"holds no memory bank")
    model["trunk"] = {}
    refused(r"holds no trunk")


@pytest.mark.slow
def test_a_real_checkpoint_of_vissls_pirl_starts_a_run_of_ours(photo_folder, tmp_path):
    def launch(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=500,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    run = [
        "-m",
        "pirl_plugin.launch.launcher",
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        "config.MACHINE.DEVICE=cpu",
        "config.DISTRIBUTED.BACKEND=gloo",
        "config.DISTRIBUTED.NUM_NODES=1",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
        "config.DATA.NUM_DATALOADER_WORKERS=0",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        "config.DATA.TRAIN.DATA_LIMIT=8",
        "config.OPTIMIZER.num_epochs=1",
    ]
    launch(
        *run,
        "config=pretrain/pirl/pirl_jigsaw_4node_resnet50",
        "config.LOSS.nce_loss_with_memory.negative_sampling_params.num_negatives=4",
        f"config.CHECKPOINT.DIR={tmp_path}/vissl",
    )
    theirs = tmp_path / "vissl" / "model_final_checkpoint_phase0.torch"
    script = str(ROOT / "extra_scripts" / "convert_vissl_pirl.py")
    said = launch(script, str(theirs), "--output", f"{tmp_path}/warm.torch")
    overrides = said.splitlines()[-1].split()
    printed = launch(
        *run,
        "config=pretrain/pirl/jigsaw_1gpu",
        "config.LOSS.pirl_loss.num_negatives=4",
        "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.auto_scale=False",
        "config.OPTIMIZER.param_schedulers.lr.start_value=0",  # what it started from is what it ends with
        "config.OPTIMIZER.param_schedulers.lr.end_value=0",
        "config.LOSS.pirl_loss.memory_bank.momentum=0.999",
        f"config.CHECKPOINT.DIR={tmp_path}/ours",
        *overrides,
    )
    assert "not initialized" not in "".join(line for line in printed.splitlines() if "heads" in line)
    before, after = load_checkpoint(theirs), load_checkpoint(tmp_path / "ours" / "model_final_checkpoint_phase0.torch")
    old, new = (c["classy_state_dict"]["base_model"]["model"] for c in (before, after))
    assert torch.equal(new["trunk"]["_feature_blocks.conv1.weight"], old["trunk"]["_feature_blocks.conv1.weight"])
    assert torch.equal(new["heads"]["0.projection.weight"], old["heads"]["1.0.clf.0.weight"])
    assert torch.equal(new["heads"]["1.combine.weight"], old["heads"]["0.2.clf.0.weight"])
    rows = torch.nn.functional.normalize(before["loss"]["nce_average.memory"], dim=1)
    torch.testing.assert_close(after["loss"]["memory_bank.rows"], rows, rtol=0, atol=2e-3)
