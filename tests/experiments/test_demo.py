import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pirl_plugin.experiments import demo_data
from pirl_plugin.experiments.demo_data import (
    HELD_OUT_SHARE,
    TRAIN_SHARE,
    bundled_photos,
    cut_tiles,
    make_bundled_data,
    make_own_data,
)
from pirl_plugin.experiments.demo_training import (
    LATEST,
    STARTED,
    Clock,
    Pretraining,
    _train,
    affordable_epochs,
    pretrain,
)
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_bundled_photos_are_all_there():
    photos = bundled_photos()
    assert len(photos) == 16
    assert all(photo.mode == "RGB" and min(photo.size) >= 96 for photo in photos.values())


def test_held_out_tiles_come_from_another_part_of_the_photo_with_a_gap():
    from PIL import Image

    # Red says from which column a pixel comes.
    columns = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 400, 3))
    photo = Image.fromarray(np.ascontiguousarray(columns))
    train = [np.asarray(tile) for tile in cut_tiles(photo, 60, 0.0, TRAIN_SHARE, 0)]
    test = [np.asarray(tile) for tile in cut_tiles(photo, 60, 1 - HELD_OUT_SHARE, 1.0, 0)]
    assert TRAIN_SHARE + HELD_OUT_SHARE < 1
    assert max(tile.max() for tile in train) < min(tile.min() for tile in test) - 5


def test_bundled_data_has_one_class_a_photo(tmp_path):
    data = make_bundled_data(tmp_path, 64, 32)
    assert len(data.train_files) == 64 and len(data.test_files) == 32
    assert np.bincount(data.train_labels).tolist() == [4] * 16
    assert all(path.is_file() for path in data.train_files + data.test_files)


def own_photos(folder, make_photo, classes, count=100):
    for number in range(count):
        target = folder / (f"c{number % classes}" if classes else "")
        target.mkdir(parents=True, exist_ok=True)
        make_photo(number, 200, 150).save(target / f"{number}.jpg")
    (target / "broken.jpg").write_bytes(b"no image")


@pytest.mark.parametrize("classes", [0, 4])
def test_own_photos_are_copied_small_and_the_unreadable_named(tmp_path, make_photo, classes):
    own_photos(tmp_path / "mine", make_photo, classes)
    data = make_own_data(tmp_path / "mine", tmp_path / "copies", 1000, 20)
    assert len(data.train_files) + len(data.test_files) == 100 and len(data.test_files) in (19, 20)
    assert len(data.unreadable) == 1 and "broken.jpg" in data.unreadable[0]
    if classes:
        assert data.class_names == ["c0", "c1", "c2", "c3"] and len(data.train_labels) == len(data.train_files)
    else:
        assert data.train_labels is None


def test_too_few_photos_are_refused(tmp_path, make_photo):
    own_photos(tmp_path / "mine", make_photo, 0, count=10)
    with pytest.raises(ConfigError, match="10 readable photos of 11 files; the demo needs at least 80"):
        make_own_data(tmp_path / "mine", tmp_path / "copies", 1000, 20)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_the_demo_keeps_its_budget_and_shows_its_results(tmp_path, make_photo, own):
    extra = []
    if own:
        own_photos(tmp_path / "mine", make_photo, 0)
        extra = ["--data", str(tmp_path / "mine")]
    result = subprocess.run(
        [sys.executable, "-m", "pirl_plugin.commands", "demo", "--budget-minutes", "0.5", "--images", "160", *extra],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    results = json.loads((tmp_path / "demo_output" / "results.json").read_text())
    assert results["minutes"] < 3
    with (tmp_path / "demo_output/pirl_demo/run/progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert results["epochs"] == int(rows[-1]["epoch"]) or "out of time" in result.stdout  # of a machine under load
    assert float(rows[-1]["learning_rate"]) < 0.015 * 0.1 or "out of time" in result.stdout  # to its end
    measures = set(results["PIRL"])
    assert measures == ({"instance retrieval"} if own else {"kNN (k = 5)", "linear"})
    assert all(f"{100 * value:.1f}" in result.stdout for value in results["PIRL"].values())
    assert (tmp_path / "demo_output" / "demo.png").stat().st_size > 20_000
    assert ("could not be read" in result.stdout) == own


def test_as_many_epochs_are_trained_as_the_first_one_allows():
    assert affordable_epochs(first_epoch=30, budget=120) == 4
    assert affordable_epochs(30, 119) == 3
    with pytest.raises(ConfigError, match=r"An epoch takes 0.5 minutes here, .* is 0.99; give at least 1.0"):
        affordable_epochs(30, 59.4)


def test_a_run_is_stopped_at_its_latest_time_from_its_first_step_on(tmp_path, monkeypatch):
    launcher = tmp_path / "launcher"  # in its place, a process that logs as it does, for longer than the budget
    launcher.write_text(f"""#!{sys.executable}
import time
time.sleep(0.5)  # imports
print("{STARTED} [train]", flush=True)
for step in range(40):
    time.sleep(0.1)
    print(f"epoch 1 of 2, iteration {{step + 1}} of 80: loss 2.5, 1 images/s, 0:00:09 left", flush=True)
""")
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    state, clock = Pretraining(2), Clock(1.0)
    assert _train([], tmp_path / "pretrain.log", 1, state, clock) == "late"
    assert LATEST <= clock.spent < 2.5
    assert state.losses[0] == (1, 2.5) and len(state.losses) < 25


@pytest.mark.slow
def test_two_epochs_that_do_not_fit_are_refused_and_imports_are_not_counted(tmp_path, photo_folder):
    overrides = [
        "config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}/run",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"give at least|did not end within"):
        pretrain(overrides, tmp_path, tmp_path / "run", 1, 20, budget_seconds=0.2)
    trained = pretrain(overrides, tmp_path, tmp_path / "run2", 1, 2, budget_seconds=60)  # starting takes longer
    assert trained.epochs == 2 and len(trained.losses) >= 1


def test_a_budget_too_small_for_anything_is_refused(tmp_path):
    from pirl_plugin.experiments.demo import run

    with pytest.raises(ConfigError, match="budget-minutes is"):
        run(tmp_path, None, 0.1, 100, 0)


def test_the_demo_deletes_only_what_a_demo_wrote(tmp_path):
    from pirl_plugin.experiments.demo import fresh_work_folder

    work = fresh_work_folder(tmp_path, None)
    (work / "old").touch()
    assert fresh_work_folder(tmp_path, None) == work and not (work / "old").exists()
    with pytest.raises(ConfigError, match="which the demo empties"):
        fresh_work_folder(tmp_path, work / "data")
    (work / ".written_by_pirl_demo").unlink()
    (work / "precious").touch()
    with pytest.raises(ConfigError, match="was not made by a demo"):
        fresh_work_folder(tmp_path, None)
    assert (work / "precious").exists()


def test_the_demos_training_and_held_out_tiles_are_of_other_parts_of_the_photos(tmp_path, monkeypatch):
    columns = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 400, 3))
    photo = Image.fromarray(np.ascontiguousarray(columns))  # red says from which column a pixel comes
    monkeypatch.setattr(demo_data, "bundled_photos", lambda: {"a": photo, "b": photo})
    data = make_bundled_data(tmp_path, 60, 40)
    train, test = ([np.asarray(Image.open(file)) for file in files] for files in (data.train_files, data.test_files))
    assert max(tile.max() for tile in train) < min(tile.min() for tile in test) - 5
    assert [file.parent.name for file in data.test_files] == [data.class_names[label] for label in data.test_labels]
    assert {file.parent.parent.name for file in data.train_files} == {"train"}
