"""What this machine cannot do is said in a sentence before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pirl_plugin.launch.launcher import compose
from pirl_plugin.launch.machine_check import batch_bytes, check_machine, check_temporary_folder
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = "config=pretrain/pirl/jigsaw_small_images_cpu"


def small(photo_folder, *overrides):
    return compose([SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", *overrides])


def test_batches_that_do_not_fit_into_shared_memory_are_refused(photo_folder, tmp_path):
    config = small(photo_folder, "config.DATA.NUM_DATALOADER_WORKERS=1", f"config.CHECKPOINT.DIR={tmp_path}")
    assert batch_bytes(config) == 32 * (3 * 32 * 32 + 9 * 3 * 12 * 12)  # 8-bit: the step normalises
    check_machine(config)
    config.DATA.TRAIN.BATCHSIZE_PER_REPLICA = 10**9
    with pytest.raises(ConfigError, match=r"NUM_DATALOADER_WORKERS is 1, whose batches need \d+ MB .* --shm-size"):
        check_machine(config)
    config.DATA.NUM_DATALOADER_WORKERS = 0
    check_machine(config)


@pytest.mark.parametrize(("letters", "refused"), [(75, False), (76, True)])
def test_a_temporary_folder_whose_sockets_would_have_too_long_a_path_is_refused(letters, refused, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * (letters - 1))
    if refused:
        with pytest.raises(ConfigError, match=r"has 76 letters, .* at most 75, such as /tmp"):
            check_temporary_folder()
    else:
        check_temporary_folder()


def test_the_longest_temporary_folder_that_is_let_through_works(tmp_path):
    """A forkserver is started in it, as loader workers are."""
    (tmp_path / "start.py").write_text(
        "import multiprocessing\nif __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('forkserver').Process(target=print)\n"
        "    process.start()\n    process.join()\n    print(process.exitcode)\n"
    )
    folder = Path("/tmp") / f"{os.getpid()}".rjust(70, "x")
    assert len(str(folder)) == 75
    folder.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, tmp_path / "start.py"], capture_output=True, text=True, timeout=500,
            env={**os.environ, "TMPDIR": str(folder)},
        )  # fmt: skip
    finally:
        folder.rmdir()
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", SMALL, "config.CHECKPOINT.DIR=/etc/passwd/run"], "/etc/passwd/run cannot be used: Not a directory"),
        (["embed", "w.pth", "{photos}", "--output", "/etc/passwd/f.npy"], "/etc/passwd cannot be used: "),
        (
            ["embed", "{weights}", "{photos}", "--output", "f.npy", "--device", "cuda:77"],
            "--device is 'cuda:77', which",
        ),
        (["embed", "{weights}", "{photos}", "--output", "f.npy", "--device", "gpu"], "--device is 'gpu', which"),
    ],
)
def test_places_and_devices_that_are_not_there_are_named(command, message, photo_folder, tmp_path):
    import torch
    from torchvision import models

    torch.save(models.resnet18().state_dict(), tmp_path / "weights.pth")
    words = [word.format(photos=photo_folder, weights=tmp_path / "weights.pth") for word in command]
    if words[0] == "train":
        words.insert(2, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]")
    done = subprocess.run(
        [sys.executable, "-m", "pirl_plugin.commands", *words], capture_output=True, text=True, timeout=500,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(f"Error: {message}"), done.stderr


def test_a_folder_for_the_output_is_made(photo_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pirl_plugin.commands", "sample-images", str(photo_folder), "--count", "5",
         "--output", tmp_path / "new" / "folder" / "list.txt"],
        capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "new" / "folder" / "list.txt").read_text().splitlines()) == 5


def test_a_full_disk_at_the_start_is_a_sentence(photo_folder, tmp_path):
    """A limit on the size of files is the nearest to a full disk that any user can have."""
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pirl_plugin.launch import launcher\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        f"launcher.main([{SMALL!r}, 'config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]', 'config.CHECKPOINT.DIR=run'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("Error: "), done.stderr[-1500:]


def test_nccl_without_gpus_is_refused(photo_folder):
    config = small(photo_folder, "config.DISTRIBUTED.BACKEND=nccl")
    with pytest.raises(ConfigError, match=r"BACKEND is 'nccl', which is for GPUs, but MACHINE.DEVICE is 'cpu'; set it"):
        check_machine(config)
