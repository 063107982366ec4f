"""pirl_train_step: the training of VISSL's own step, in parts, in bfloat16, augmented on the device, not waiting."""

import csv
import os
import pty
import subprocess
import sys
import termios
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pirl_plugin.data.collator import IGNORED, pirl_collator
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.pretext import photometric
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.photometric import PhotometricSettings
from pirl_plugin.training.progress import ProgressHook, keep_rows, start_wandb
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.training.train_step import split_batch
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TRAINER, TRANSFORM = "config.TRAINER", "config.DATA.TRAIN.TRANSFORMS.0"
STEP = f"{TRAINER}.PIRL_TRAIN_STEP"
TINY = [
    "config=pretrain/pirl/jigsaw_small_images_cpu",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.LOSS.pirl_loss.memory_bank.fill_first=False",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
    "config.OPTIMIZER.num_epochs=1",
    "config.LOG_FREQUENCY=4",
]


def launch(folder: Path, photos: Path, *overrides: str, fails: bool = False) -> tuple[str, dict]:
    """What a run printed and its last checkpoint."""
    done = subprocess.run(
        [
                sys.executable, "-m", "pirl_plugin.launch.launcher", *TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
         f"config.CHECKPOINT.DIR={folder}", *overrides],
        capture_output=True, text=True, timeout=500, cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-3000:]
    last = folder / "model_final_checkpoint_phase0.torch"
    return done.stdout + done.stderr, load_checkpoint(last) if last.exists() else {}


def trunk_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    return checkpoint["classy_state_dict"]["base_model"]["model"]["trunk"]


def largest_difference(one: dict, other: dict) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one if one[key].is_floating_point())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, photo_folder) -> tuple[Path, str, dict]:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return folder, *launch(folder, photo_folder)


@pytest.mark.slow
def test_vissls_own_step_trains_to_the_same_weights_and_bank(plain, photo_folder, tmp_path):
    _, _, ours = plain
    _, theirs = launch(tmp_path / "standard", photo_folder, f"{TRAINER}.TRAIN_STEP_NAME=standard_train_step")
    assert largest_difference(trunk_of(ours), trunk_of(theirs)) < 1e-3
    torch.testing.assert_close(ours["loss"]["memory_bank.rows"], theirs["loss"]["memory_bank.rows"], atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bfloat16"},
        {"channels_last": False},
        {"accumulation_steps": 3},
    ],
)
def test_a_run_learns_much_the_same_however_it_computes(plain, photo_folder, tmp_path, settings):
    _, _, reference = plain
    overrides = [f"{STEP}.{key}={value}" for key, value in settings.items()]
    printed, other = launch(tmp_path / "other", photo_folder, *overrides)
    assert "loss nan" not in printed
    rows, expected = other["loss"]["memory_bank.rows"], reference["loss"]["memory_bank.rows"]
    alike = torch.nn.functional.cosine_similarity(rows, expected).mean()
    others = torch.nn.functional.cosine_similarity(rows, expected.roll(1, 0)).mean()
    assert others < 0.2  # embeddings are centred: those of other images have nothing in common
    # BatchNorm sees the parts of an accumulated batch, and eight images magnify the rounding of bfloat16.
    assert alike > {"precision": 0.5, "channels_last": 0.9999, "accumulation_steps": 0.35}[next(iter(settings))]
    assert other["loss"]["_extra_state"]["steps"] == reference["loss"]["_extra_state"]["steps"] == 6


@pytest.mark.slow
def test_activation_checkpointing_trains(photo_folder, tmp_path):
    switch = "config.MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING=True"
    _, checkpoint = launch(tmp_path / "run", photo_folder, switch)
    assert all(value.isfinite().all() for value in trunk_of(checkpoint).values())


@pytest.mark.slow
def test_augmenting_on_the_device_makes_the_views_of_the_workers_where_nothing_is_augmented(photo_folder, tmp_path):
    """The same crops, the same order, the same normalisation: bit by bit the same weights."""
    off = [f"{TRANSFORM}.photometric.{key}=0" for key in ("random_photometric", "grayscale", "horizontal_flip")]
    off.append(f"+{TRANSFORM}.photometric.color_jitter_probability=0")
    _, workers = launch(tmp_path / "workers", photo_folder, *off)
    _, device = launch(tmp_path / "device", photo_folder, *off, f"+{TRANSFORM}.augment_on=device",
                       "config.DATA.NUM_DATALOADER_WORKERS=1")  # fmt: skip
    assert largest_difference(trunk_of(workers), trunk_of(device)) == 0
    printed, _ = launch(tmp_path / "refused", photo_folder, f"+{TRANSFORM}.augment_on=device",
                        f"{TRAINER}.TRAIN_STEP_NAME=standard_train_step", fails=True)  # fmt: skip
    assert "Error: jigsaw_patch_transform.augment_on is 'device'" in printed


def batch_of(task, photos, seeds) -> dict:
    samples = []
    for number, (photo, seed) in enumerate(zip(photos, seeds, strict=True)):
        torch.manual_seed(seed)
        samples.append(task({"data": [photo], "data_idx": [number], "data_valid": [1]}))
    return pirl_collator(samples)


@pytest.mark.parametrize("name", ["jigsaw_patch_transform", "rotation_transform", "image_view_transform"])
@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_what_the_device_finishes_is_what_the_workers_would_have_made(name, augment_on, make_photo):
    photos, seeds = [make_photo(number, 90, 70) for number in range(3)], range(3)
    small = {"jigsaw_patch_transform": {"patch_crop_size": 63, "patch_size": 16}}.get(name, {})
    settings = {"image_crop_size": 32, **small}
    whole = batch_of(PRETEXT_TRANSFORMS[name](**settings), photos, seeds)
    task = PRETEXT_TRANSFORMS[name](**settings, augment_on=augment_on, normalize_on="device")
    batch = batch_of(task, photos, seeds)
    assert batch["images"][0].dtype == torch.uint8
    assert batch["images"][0].is_contiguous(memory_format=torch.channels_last)
    keys = [key for key in ("images", "pretext") if key in batch]
    parameters = batch["photometric"][0] if augment_on == "device" else None
    finished = task.finish({key: batch[key][0] for key in keys}, parameters)
    for key in keys:
        assert finished[key].shape == whole[key][0].shape and finished[key].dtype == torch.float32
        if augment_on == "workers":
            torch.testing.assert_close(finished[key], whole[key][0], atol=1e-5, rtol=0)
        else:  # float operations instead of 8-bit ones: in units of a standard deviation
            assert (finished[key] - whole[key][0]).abs().mean() < 0.12


def test_a_batch_is_split_by_image_in_order():
    images, pretext = torch.arange(7).view(7, 1, 1, 1), torch.arange(14).view(14, 1, 1, 1)
    target = torch.arange(10, 17)
    parts = list(split_batch({"images": images, "pretext": pretext}, target, 3))
    assert [len(indices) for _, indices, _ in parts] == [2, 3, 2] and sum(
        share for *_, share in parts
    ) == pytest.approx(1)
    assert torch.cat([some["images"] for some, _, _ in parts]).flatten().tolist() == list(range(7))
    assert torch.cat([some["pretext"] for some, _, _ in parts]).flatten().tolist() == list(range(14))
    assert torch.equal(torch.cat([indices for _, indices, _ in parts]), target)


def test_a_batch_smaller_than_its_parts_is_filled_up_with_what_does_not_count():
    parts = list(split_batch(torch.arange(2).view(2, 1, 1, 1), torch.tensor([5, 6]), 4))
    assert [indices.tolist() for _, indices, _ in parts] == [[5], [6], [IGNORED], [IGNORED]]
    assert [share for *_, share in parts] == [0.5, 0.5, 0, 0]
    assert all(len(some) == 1 for some, _, _ in parts)


@pytest.mark.parametrize("contrast", ["nce", "infonce"])
@pytest.mark.parametrize("negatives", ["per_image", "shared", "all"])
def test_the_parts_of_a_batch_have_its_loss_its_gradient_and_its_bank(contrast, negatives):
    torch.manual_seed(0)
    image, pretext, target = torch.randn(8, 16), torch.randn(8, 16), torch.randperm(40)[:8]

    def run(bounds: list[tuple[int, int]]):
        loss = PIRLLoss(40, contrast=contrast, negatives=negatives, num_negatives=9, embedding_dim=16, seed=1)
        one, two = image.clone().requires_grad_(), pretext.clone().requires_grad_()
        loss.hold_updates(len(bounds) > 1)
        total = 0.0
        for start, end in bounds:
            some = slice(start, end)
            part = loss([one[some], two[some]], target[some]) * (end - start) / 8
            part.backward()
            total += part.item()
        loss.hold_updates(False)
        return total, one.grad, two.grad, loss.memory_bank.rows, loss.steps

    whole, parts = run([(0, 8)]), run([(0, 3), (3, 7), (7, 8)])
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    for one, two in zip(whole[1:4], parts[1:4], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert whole[4] == parts[4] == 1


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return function(*arguments, **(keywords or {}))


def test_augmenting_needs_no_value_of_the_device():
    """On the meta device, asking for a value raises; on a GPU it would wait."""
    settings = PhotometricSettings(random_photometric=0.5, blur=0.5, blur_sigma_low=0.01, blur_sigma_high=0.03)
    views = torch.empty(32, 3, 24, 24, device="meta")
    assert photometric.apply(views, photometric.draw(32, settings)).shape == views.shape


def test_finishing_a_batch_on_the_device_waits_for_nothing(make_photo):
    task = PRETEXT_TRANSFORMS["rotation_transform"](
        image_crop_size=32,
        pretext_crop_size=32,
        augment_on="device",
        normalize_on="device",
        photometric={
            "random_photometric": 0.7,
            "grayscale": 0.5,
            "blur": 0.7,
            "blur_sigma_low": 0.01,
            "blur_sigma_high": 0.03,
        },
    )
    batch = batch_of(task, [make_photo(number) for number in range(4)], range(4))
    with Waits() as waits:
        task.finish({key: batch[key][0] for key in ("images", "pretext")}, batch["photometric"][0])
    assert waits.count == 0


def test_the_log_reads_losses_of_many_steps_at_once_and_says_where_the_run_is(plain):
    folder, printed, _ = plain
    assert "epoch 1 of 1, iteration 5 of 6: loss " in printed and " images/s, " in printed and " left" in printed
    rows = list(csv.DictReader((folder / "progress.csv").open()))
    assert [row["iteration"] for row in rows] == ["1", "5", "6"]
    for row in rows:
        assert np.isfinite(float(row["loss"])) and 0 <= float(row["input_wait_share"]) <= 1
        assert float(row["memory_mb"]) > 50
        # The loss reports on the steps that are logged; the end of an epoch may come between.
        assert row["iteration"] == "6" or -1 <= float(row["image/positive_similarity"]) <= 1
    assert "Infinite Model output" not in printed


@pytest.mark.slow
def test_the_memory_of_a_long_run_stays_what_it_was(photo_folder, tmp_path):
    launch(
        tmp_path / "run", photo_folder, "config.OPTIMIZER.num_epochs=100", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        "config.LOG_FREQUENCY=20", "config.CHECKPOINT.CHECKPOINT_FREQUENCY=20", "config.CHECKPOINT.KEEP_LAST=2",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))
    assert int(rows[-1]["iteration"]) == 1200
    memory = {int(row["iteration"]): float(row["memory_mb"]) for row in rows}
    early = max(value for iteration, value in memory.items() if 200 <= iteration <= 400)
    late = max(value for iteration, value in memory.items() if iteration > 1000)
    assert late < early * 1.02, memory  # less than 20 kB a step


@pytest.mark.slow
def test_a_terminal_gets_a_live_line(photo_folder, tmp_path):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 150))
    command = [
        sys.executable,
        "-m",
        "pirl_plugin.launch.launcher",
        *TINY,
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
    ]
    with subprocess.Popen(
        [*command, f"config.CHECKPOINT.DIR={tmp_path}/run"], stdout=subprocess.DEVNULL, stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(controller, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == 0
    text = shown.decode(errors="replace")
    assert "\r" in text and "epoch 1/1" in text and "6/6" in text and " images/s, input " in text


def test_weights_and_biases_get_the_same_figures_where_it_is_installed(monkeypatch, tmp_path):
    """A stand-in for wandb, which is not among the tested packages."""
    started = []
    stand_in = types.SimpleNamespace(init=lambda **arguments: started.append(arguments) or "run")
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = compose(["config=pretrain/pirl/jigsaw_8node"], check=False)
    assert start_wandb("photos", config, tmp_path / "run1") == "run"
    assert started[0]["project"] == "photos" and started[0]["config"]["LOSS"]["name"] == "pirl_loss"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb_project is 'photos', but .* not installed; .*pip install wandb"):
        start_wandb("photos", config, tmp_path / "run1")


def test_rows_beyond_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("iteration,loss\n1,3.0\n5,2.0\n9,1.0\n")
    keep_rows(path, 5)
    assert path.read_text().split() == ["iteration,loss", "1,3.0", "5,2.0"]
    path.write_text("iteration,loss\n1,3.0\n2,2.0,8\n3")  # of another loss, and torn
    keep_rows(path, 5)
    assert path.read_text().split() == ["iteration,loss", "1,3.0"]
    path.write_text("")
    keep_rows(path, 5)
    assert path.read_text() == ""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(photo_folder, tmp_path):
    printed, _ = launch(
        tmp_path / "run",
        photo_folder,
        "config.OPTIMIZER.param_schedulers.lr.start_value=1e6",
        "config.OPTIMIZER.param_schedulers.lr.end_value=1e5",
        "config.OPTIMIZER.weight_decay=1",
        fails=True,
    )
    assert "FloatingPointError: The loss of iteration" in printed and "before a checkpoint of it" in printed
    (file,) = (tmp_path / "run").glob("not_finite_iteration*_rank0.txt")
    indices = np.loadtxt(file, dtype=int)
    assert len(set(indices)) == 8 and indices.max() < 48
    assert not list((tmp_path / "run").glob("model_*.torch"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.CHECKPOINT.KEEP_LAST=0", "KEEP_LAST is 0; it must be a whole number at least 1"),
        ("config.CHECKPOINT.CHECKPOINT_FREQUENCY=0", "CHECKPOINT_FREQUENCY is 0"),
        ("config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=abc", "CHECKPOINT_ITER_FREQUENCY is 'abc'"),
        ("config.MODEL.AMP_PARAMS.USE_AMP=True", "set it to false, because pirl_train_step uses"),
        ("config.DATA.TRAIN.USE_DEBUGGING_SAMPLER=True", "pirl_task has its own sampler"),
        (
            f"{STEP}.accumulation_steps=9",
            "BATCHSIZE_PER_REPLICA 8 has at most",
        ),
        (f"{STEP}=abc", "PIRL_TRAIN_STEP is 'abc'; it must be a mapping"),
        (f"{STEP}.precision=float16", "needs a GPU"),
        (f"{STEP}.wandb_project=photos", "not installed; install it with: pip install wandb"),
        (
            f"{TRAINER}.TRAIN_STEP_NAME=standard_train_step {TRAINER}.PIRL_TRAIN_STEP.precision=bfloat16",
            "has settings that only",
        ),
        (f"{TRAINER}.TASK_NAME=self_supervision_task", "TRAIN_STEP_NAME pirl_train_step needs pirl_task"),
    ],
)
def test_configs_that_the_step_cannot_do_are_refused(override, message, photo_folder):
    with pytest.raises(ConfigError, match=message):
        compose([*TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", *override.split()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16"}, r"precision is 'bf16' .*it must be one of float32, bfloat16, float16"),
        ({"accumulation_steps": 0}, "accumulation_steps is 0; it must be a whole number at least 1"),
        ({"channels_last": "no"}, "channels_last is 'no'; it must be true or false"),
        ({"acumulation_steps": 2}, r"did you mean accumulation_steps\?"),
        ({"wandb_project": 3}, "wandb_project is 3"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        StepSettings.from_config(settings)


@pytest.mark.parametrize(("fills", "epoch", "loss", "said"), [
    (True, 0, 0.0, "no loss yet (fill_first: the first epoch fills the memory bank)"),
    (True, 0, 0.5, "loss 0.5000"), (True, 1, 0.0, "loss 0.0000"), (False, 0, 0.0, "loss 0.0000"),
])  # fmt: skip
def test_a_bank_that_is_being_filled_is_not_a_loss_of_0(fills, epoch, loss, said):
    bank = types.SimpleNamespace(fill_first=fills)
    task = types.SimpleNamespace(base_loss=types.SimpleNamespace(memory_bank=bank), train_phase_idx=epoch)
    assert ProgressHook._loss_in_words(task, loss) == said
