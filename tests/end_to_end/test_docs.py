"""What the documents say is run as they say it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pirl_plugin.launch.launcher import compose

ROOT = Path(__file__).resolve().parents[2]


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def follow(page: str, folder: Path, photos: Path) -> str:
    """Write the files of a page of docs/ into a folder, run its commands there; what they printed."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name, content in re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "photos").symlink_to(photos)
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return run(commands, folder)


@pytest.mark.slow
def test_add_a_pretext_task_works_as_written(tmp_path, photo_folder):
    follow("add_a_pretext_task.md", tmp_path, photo_folder)
    printed = run("PIRL_PLUGIN_MODULES=$PWD/mirror.py pirl show-pretext photos/class0/000.jpg --output mirror.png "
                  "--tasks mirror_transform", tmp_path)  # fmt: skip
    assert "mirror.png: mirror_transform" in printed
    checkpoint = torch.load(tmp_path / "runs" / "mirror" / "model_final_checkpoint_phase0.torch", weights_only=True)
    assert int(checkpoint["loss"]["memory_bank.updated"].sum()) == 32  # one batch of the 48 photos


@pytest.mark.slow
def test_add_a_contrast_form_works_as_written(tmp_path, photo_folder):
    printed = follow("add_a_contrast_form.md", tmp_path, photo_folder)
    assert "the contrast 'hinge' has no closed form" in printed
    losses = re.findall(r"epoch 2 of 2, .* loss ([\d.]+)", printed)
    assert losses and 0 < float(losses[-1]) < 40  # hinges: cosines / tau are within 1 / .07, the margin is 2


@pytest.mark.slow
def test_add_a_memory_bank_works_as_written(tmp_path, photo_folder):
    printed = follow("add_a_memory_bank.md", tmp_path, photo_folder)
    assert "settling_bank of float32" in printed and "Memory bank identical" in printed
    checkpoint = torch.load(tmp_path / "runs" / "settling" / "model_final_checkpoint_phase1.torch", weights_only=True)
    assert int(checkpoint["loss"]["memory_bank.steps"]) == 2


@pytest.mark.slow
def test_add_an_evaluation_works_as_written(tmp_path, photo_folder, make_photo):
    for number in range(16):
        folder = tmp_path / "held_out" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        make_photo(100 + number, 48, 40).save(folder / f"{number}.jpg")
    printed = follow("add_an_evaluation.md", tmp_path, photo_folder)
    table = printed[printed.index("held-out accuracy") :]
    assert "class_means" in table.splitlines()[0] and "linear" not in table


def test_a_module_that_is_not_there_is_refused_in_one_sentence():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIRL_PLUGIN_MODULES": "/no/such/task.py"}
    done = subprocess.run(
        [sys.executable, "-c", "import pirl_plugin.launch.start"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert (
        done.stderr.startswith("Error: PIRL_PLUGIN_MODULES names '/no/such/task.py'") and done.stderr.count("\n") == 1
    )


def test_every_key_that_vissls_yaml_becomes_is_a_key_of_ours():
    text = (ROOT / "docs" / "from_vissl.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"`((?:DATA|MODEL|LOSS)\.[\w.]+)`", "\n".join(line.split("|")[2] for line in rows_of(text))))
    assert len(keys) > 20
    config = compose(["config=pretrain/pirl/jigsaw_8node"], check=False)
    for key in sorted(keys):
        node = config
        for part in key.split("."):
            node = node[int(part)] if part.isdigit() else node[part]  # KeyError: the table is out of date


def rows_of(text: str) -> list[str]:
    """The rows of the Markdown tables of a text, without headings."""
    return [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| VISSL's |"))
    ]


@pytest.mark.slow
def test_archives_work_as_written(tmp_path, photo_folder):
    printed = follow("archives.md", tmp_path, photo_folder)
    assert len((tmp_path / "features.txt").read_text().splitlines()) == 48 and "photos.tar" in printed
    assert len(list(tmp_path.glob(".photos.tar.*.npy"))) == 1
