"""Files broken in every way: the run goes on without them, names exactly those, and leaves their rows alone."""

import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from pirl_plugin.data.file_lists import read_list
from pirl_plugin.data.image_files import load_pixels
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.objective.memory_bank import initial_rows

ROOT = Path(__file__).resolve().parents[2]


def png_bomb() -> bytes:
    """A PNG that says it has 900 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 90)) + chunk(b"IEND", b"")
    )


def jpeg_bomb(whole: bytes) -> bytes:
    """A JPEG whose frame header says 65,000 x 65,000."""
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + struct.pack(">HH", 65_000, 65_000) + whole[place + 4 :]


def break_file(path: Path, kind: int) -> None:
    whole = path.read_bytes()
    if kind == 0:
        path.write_bytes(whole[: len(whole) // 2])  # truncated
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.write_bytes(b"<html>404 Not Found</html>" * 40)  # no image
    elif kind == 3:
        path.write_bytes(png_bomb())
    elif kind == 4:
        path.write_bytes(jpeg_bomb(whole))
    elif kind == 5:
        path.unlink()  # vanished since the list was made
    elif kind == 6:
        path.unlink()
        path.mkdir()  # cannot be read, whoever reads
    elif kind == 7:
        path.unlink()
        path.symlink_to("nowhere.jpg")
    elif kind == 8:
        path.write_bytes(b"\xff\xd8\xff" + os.urandom(300))  # begins as a JPEG
    else:
        path.write_bytes(b"GIF89a" + whole[6:40])  # another format, cut off


@pytest.mark.parametrize("bomb", ["png", "jpeg"])
def test_decompression_bombs_are_not_decoded(bomb, tmp_path, make_photo):
    make_photo(1).save(tmp_path / "x.jpg", quality=90)
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(png_bomb() if bomb == "png" else jpeg_bomb(whole))
    with pytest.raises(Image.DecompressionBombError):
        load_pixels(tmp_path / "x.jpg")


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
         "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", "config.LOSS.pirl_loss.memory_bank.fill_first=False",
         "config.OPTIMIZER.num_epochs=1", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=20",
         f"config.DATA.TRAIN.DATA_PATHS=[{folder}/photos.txt]", f"config.CHECKPOINT.DIR={folder}/run", *overrides],
        capture_output=True, text=True, timeout=500, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_of_500_files_the_60_that_are_broken_are_named_and_never_change_the_bank(tmp_path, photo_folder):
    originals, photos = sorted(photo_folder.rglob("*.jpg")), tmp_path / "photos"
    photos.mkdir()
    files = [photos / f"{number:03d}.jpg" for number in range(500)]
    for number, path in enumerate(files):
        shutil.copy(originals[number % len(originals)], path)
    (tmp_path / "photos.txt").write_text("".join(f"{path}\n" for path in files))
    broken = files[3:500:8][:60]
    for number, path in enumerate(broken):
        break_file(path, number % 10)
    done = run(tmp_path, "config.DATA.NUM_DATALOADER_WORKERS=1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "60 of 500 images could not be read in this epoch" in done.stdout
    assert "... and 40 more; all are in" in done.stdout
    named = (tmp_path / "run" / "unreadable_rank0.txt").read_text().split()
    assert named == sorted(str(path) for path in broken)
    loss = load_checkpoint(tmp_path / "run" / "model_final_checkpoint_phase0.torch")["loss"]
    first = initial_rows(500, 128, seed=0)
    unchanged = [str(files[i]) for i in range(500) if torch.equal(loss["memory_bank.rows"][i], first[i])]
    assert unchanged == named and int(loss["memory_bank.updated"].sum()) == 440

    worker = "config.DATA.NUM_DATALOADER_WORKERS=1"  # which must not keep the run from ending
    share = "config.DATA.TRAIN.LARGEST_UNREADABLE_SHARE=0.1"
    stopped = run(tmp_path, worker, share, f"config.CHECKPOINT.DIR={tmp_path}/other")
    assert stopped.returncode == 1
    last = stopped.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("Error: 60 of 500 images could not be read") and "LARGEST_UNREADABLE_SHARE 0.1 allows" in last
    )
    assert not list((tmp_path / "other").glob("model_*.torch"))


@pytest.mark.slow
def test_with_a_data_limit_and_workers_the_broken_files_are_named_whatever_their_names_are(tmp_path, photo_folder):
    originals, photos = sorted(photo_folder.rglob("*.jpg")), tmp_path / "photos"
    photos.mkdir()
    for number in range(96):
        shutil.copy(originals[number % len(originals)], photos / f"{number:03d}.jpg")
    broken = [os.fsdecode(name) for name in (b"latin1-\xe9.jpg", b"line\nbreak.jpg")]
    for number in range(0, 96, 5):
        broken.append(f"{number:03d}.jpg")
    for name in broken:
        (photos / name).write_bytes(b"no image")
    done = run(
        tmp_path, f"config.DATA.TRAIN.DATA_PATHS=[{photos}]", "config.DATA.TRAIN.DATA_LIMIT=80",
        "config.DATA.TRAIN.DATA_LIMIT_SAMPLING.SEED=5", "config.DATA.NUM_DATALOADER_WORKERS=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    named = {os.path.basename(name) for name in read_list(tmp_path / "run" / "unreadable_rank0.txt")}
    assert named <= set(broken) and len(named) > 8
    assert f"{len(named)} of 80 images could not be read" in done.stdout
