"""Spread of embeddings, and what the monitor writes while a run trains."""

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.evaluation.spread import Moments, effective_rank, spectrum, spread
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.weights import Architecture, Trunk, load_trunk
from pirl_plugin.objective.memory_bank import MemoryBank
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.training.monitor import MonitorHook, MonitorSettings, bank_health, embed_among_ranks
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def embeddings(count: int, dim: int, directions: int, seed: int = 0) -> torch.Tensor:
    """Unit vectors that vary in `directions` of `dim` directions."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(count, dim)
    values[:, :directions] = torch.randn(count, directions, generator=generator)
    return normalize(values, dim=1)


def test_spread_is_one_minus_the_mean_similarity_of_two_embeddings():
    values = normalize(embeddings(50, 8, 8) + 0.3, dim=1)
    similarities = values.double() @ values.double().T
    assert spread(Moments.of(values)) == pytest.approx(1 - float(similarities.mean()), abs=1e-6)


def test_the_effective_rank_is_that_of_the_singular_values():
    values = embeddings(200, 16, 5) * torch.linspace(1, 0.2, 16)
    singular = np.linalg.svd((values - values.mean(0)).double().numpy(), compute_uv=False)
    shares = singular**2 / (singular**2).sum()
    entropy = -sum(share * np.log(share) for share in shares if share > 0)
    assert effective_rank(Moments.of(values)) == pytest.approx(np.exp(entropy), rel=1e-4)
    np.testing.assert_allclose(spectrum(Moments.of(values)).numpy(), shares, atol=1e-6)


@pytest.mark.parametrize("directions", [2, 4, 8])
def test_the_effective_rank_counts_directions(directions):
    assert effective_rank(Moments.of(embeddings(20_000, 8, directions))) == pytest.approx(directions, rel=0.02)


def test_embeddings_that_are_all_the_same_have_no_spread_and_no_rank():
    same = torch.ones(10, 4) / 2
    assert spread(Moments.of(same)) == pytest.approx(0, abs=1e-6) and effective_rank(Moments.of(same)) == 0


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_embeddings_that_are_nearly_the_same_are_a_collapse_in_spread(noise):
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(128, generator=generator)
    near = normalize(point + noise * point.norm() * torch.randn(20_000, 128, generator=generator) / 128**0.5, dim=1)
    moments = Moments.of(near)
    assert spread(moments) == pytest.approx(noise**2, abs=1e-7) and spread(moments) < MonitorSettings().smallest_spread
    assert (effective_rank(moments) == 0) == (noise == 0)


def test_moments_of_parts_add_up():
    values = embeddings(30, 6, 6)
    parts = [Moments.of(part).packed() for part in (values[:7], values[7:7], values[7:])]
    both = Moments.unpacked(sum(parts), 6)
    assert effective_rank(both) == pytest.approx(effective_rank(Moments.of(values)), rel=1e-6)


def test_only_rows_that_were_updated_are_looked_at():
    bank = MemoryBank(40, dim=4)
    assert bank_health(bank) == {"rows_updated": 0.0}
    same = normalize(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), dim=1).expand(10, 4)
    for _ in range(60):  # until nothing of the first random rows is left
        bank.update(torch.arange(10), same)
    health = bank_health(bank)
    assert health["rows_updated"] == 0.25 and health["spread"] < 1e-6 and health["effective_rank"] <= 1


def test_a_collapse_is_warned_of(tmp_path, caplog):
    bank = MemoryBank(40, dim=4)
    same = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(40, 4)
    for _ in range(60):
        bank.update(torch.arange(40), same)
    task = SimpleNamespace(base_loss=SimpleNamespace(memory_bank=bank), iteration=20, train_phase_idx=0)
    published = []
    hook = MonitorHook(tmp_path, MonitorSettings(every_iterations=20), lambda *values: published.append(values))
    with caplog.at_level(logging.INFO):
        hook.on_step(task)
    assert "the representation has collapsed" in caplog.text
    ((scalars, iteration),) = published
    assert iteration == 20 and scalars["Monitor/rows_updated"] == 1.0
    task.iteration = 21
    hook.on_step(task)
    assert len(published) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 3}, "HOOKS.PIRL_MONITOR has no key 'every'"),
        ({"every_iterations": 0}, "every_iterations is 0"),
        ({"knn_every_epochs": 1}, "knn_train is ''; with knn_every_epochs 1 it must be a folder"),
        ({"knn_every_epochs": 1, "knn_train": "/nowhere", "knn_test": "/nowhere"}, "/nowhere has 0 sub-folders"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MonitorSettings.from_config(settings).images()


def test_folders_of_other_classes_are_refused(photo_folder, tmp_path):
    (tmp_path / "class0").mkdir()
    (tmp_path / "other").mkdir()
    settings = {"knn_every_epochs": 1, "knn_train": str(photo_folder), "knn_test": str(tmp_path)}
    with pytest.raises(
        ConfigError, match="must have the same class folders; only one has class1, class2, class3, other"
    ):
        MonitorSettings.from_config(settings).images()


def test_the_monitor_is_checked_before_the_run(photo_folder):
    small = ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]
    folders = [f"config.HOOKS.PIRL_MONITOR.knn_{split}={photo_folder}" for split in ("train", "test")]
    vissls_step = ["config.TRAINER.TRAIN_STEP_NAME=standard_train_step", "config.HOOKS.PIRL_MONITOR.knn_every_epochs=1"]
    with pytest.raises(
        ConfigError, match=r"HOOKS.PIRL_MONITOR differs from its defaults, which needs TRAINER.TRAIN_STEP_NAME"
    ):
        compose([*small, *vissls_step, *folders])
    with pytest.raises(ConfigError, match="smallest_effective_rank is -1"):
        compose([*small, "config.HOOKS.PIRL_MONITOR.smallest_effective_rank=-1"])


def launch(folder: Path, photo_folder: Path, **monitor: object) -> str:
    """What a run of two processes printed."""
    command = [
        sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        "config.OPTIMIZER.num_epochs=3", "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4", f"config.CHECKPOINT.DIR={folder}",
        "config.HOOKS.TENSORBOARD_SETUP.USE_TENSORBOARD=True",
        *(f"config.HOOKS.PIRL_MONITOR.{key}={value}" for key, value in monitor.items()),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def monitored(photo_folder, tmp_path_factory) -> Path:
    """The folder of a run that was monitored, with kNN after its second epoch."""
    folder = tmp_path_factory.mktemp("monitored") / "run"
    knn = {"knn_every_epochs": 2, "knn_train": photo_folder, "knn_test": photo_folder, "knn_k": 5}
    (folder.parent / "printed").write_text(launch(folder, photo_folder, every_iterations=4, **knn))
    return folder


@pytest.mark.slow
def test_watching_a_run_changes_nothing_of_it(monitored, photo_folder, tmp_path):
    launch(tmp_path / "run", photo_folder)
    states = []
    for folder in (monitored, tmp_path / "run"):
        checkpoint = load_checkpoint(folder / "model_final_checkpoint_phase2.torch")
        states.append({**checkpoint["classy_state_dict"]["base_model"]["model"]["trunk"], **checkpoint["loss"]})
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), states[1][key].nan_to_num()), key


@pytest.mark.slow
def test_a_run_says_how_its_bank_does_and_how_well_neighbours_vote(monitored, photo_folder):
    rows = list(csv.DictReader((monitored / "monitor.csv").open()))
    # Of 6 steps an epoch: every fourth, and the end of each epoch.
    assert [row["iteration"] for row in rows] == ["4", "6", "8", "12", "12", "16", "18"]
    assert [bool(row["knn_accuracy"]) for row in rows] == [False, False, False, False, True, False, True]
    assert float(rows[0]["rows_updated"]) == pytest.approx(32 / 48) and float(rows[1]["rows_updated"]) == 1
    assert all(1 <= float(row["effective_rank"]) <= 128 for row in rows)
    # The last one again, from the final checkpoint, in one process.
    trunk = load_trunk(monitored / "model_final_checkpoint_phase2.torch")
    files, labels = labelled_images(photo_folder)
    features = embed_among_ranks(trunk.network, files, center_view(32))
    accuracy = weighted_knn(features, labels, features, labels, k=5)
    assert float(rows[-1]["knn_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    np.testing.assert_array_equal(features, embed(trunk.network, files, center_view(32)))


@pytest.mark.slow
def test_the_monitor_reaches_tensorboard_and_the_log(monitored):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(monitored / "tb_logs"))
    events.Reload()
    assert {"Monitor/effective_rank", "Monitor/spread", "Monitor/knn_accuracy"} <= set(events.Tags()["scalars"])
    printed = (monitored.parent / "printed").read_text()
    assert "monitor: rows_updated 1.0000, spread " in printed and ", knn_accuracy " in printed
    # What the run was going to do, said before it began.
    assert printed.index("pirl_loss, nce, negatives all, tau 0.1, lambda 0.5") < printed.index("monitor: ")


def test_the_training_images_vote_on_the_test_images(tmp_path, make_photo):
    """Every test image is a training image of another class: its own vote counts, not that of the test images."""
    for number in range(8):
        for split, label in (("train", number % 2), ("test", (number + 1) % 2)):
            (tmp_path / split / f"class{label}").mkdir(parents=True, exist_ok=True)
            make_photo(number).save(tmp_path / split / f"class{label}" / f"{number}.png")
    settings = MonitorSettings(
        knn_every_epochs=1, knn_train=str(tmp_path / "train"), knn_test=str(tmp_path / "test"), knn_k=1
    )
    hook = MonitorHook(tmp_path, settings, lambda *_: None)
    hook.images = settings.images()
    trunk = Trunk(Architecture(18, 0.125, "small")).network.train()
    task = SimpleNamespace(
        transform=JigsawPatchTransform(image_crop_size=32, patch_crop_size=42, patch_size=12),
        base_model=SimpleNamespace(trunk=trunk),
    )
    assert hook._knn(task) == 0.0 and trunk.training
    hook.images = [hook.images[0], hook.images[0]]
    assert hook._knn(task) == 1.0
