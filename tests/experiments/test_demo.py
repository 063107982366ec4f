import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.experiments import demo, demo_data
from pirl_plugin.experiments.demo import run
from pirl_plugin.experiments.demo_data import (
    HELD_OUT_SHARE,
    TRAIN_SHARE,
    DemoData,
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
    progress_line,
)
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.run_networks import build_trunk
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


def in_place_of_the_launcher(monkeypatch, folder: Path, code: str) -> Path:
    """A process that logs as the launcher does, for other times; returns the file of its arguments, a line a start."""
    launcher = folder / "launcher"
    launcher.write_text(f"""#!{sys.executable}
import sys, time
def log(epoch, iteration, loss="loss 2.5"):
    print(f"epoch {{epoch}} of 9, iteration {{iteration}} of 80: {{loss}}, 1 images/s, 0:00:09 left", flush=True)
with open({str(folder / "started")!r}, "a") as file:
    print(*sys.argv[1:], file=file)
starts = len(open({str(folder / "started")!r}).readlines())
time.sleep(0.5)  # imports
print("{STARTED} [train]", flush=True)
{code}""")
    launcher.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(launcher))
    return folder / "started"


LONG = """
for step in range(40):
    time.sleep(0.1)
    log(1 if step < 2 else 2, step + 1)
"""


def test_a_run_is_stopped_at_its_latest_time_from_its_first_step_on(tmp_path, monkeypatch):
    in_place_of_the_launcher(monkeypatch, tmp_path, LONG)
    state, clock = Pretraining(2), Clock(1.0)
    assert _train([], tmp_path / "pretrain.log", 1, state, clock) == "late"
    assert LATEST <= clock.spent < 2.5
    assert state.losses[0] == (1, 2.5) and len(state.losses) < 25


def test_a_run_out_of_time_continues_with_its_last_complete_epoch_if_it_has_one(tmp_path, monkeypatch, capsys):
    in_place_of_the_launcher(monkeypatch, tmp_path, LONG)
    with pytest.raises(ConfigError, match=r"did not end within 1.2 times --budget-minutes 0.0166667: give more"):
        pretrain([], tmp_path, tmp_path / "run", 1, 2, budget_seconds=1.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.torch").touch()
    assert pretrain([], tmp_path, tmp_path / "run", 1, 2, budget_seconds=1.0).epochs == 2
    assert "out of time: continuing with the last complete epoch" in capsys.readouterr().out


def test_a_slower_machine_than_expected_resumes_with_a_schedule_of_fewer_epochs(tmp_path, monkeypatch, capsys):
    started = in_place_of_the_launcher(monkeypatch, tmp_path, """
if starts == 1:
    log(1, 1, "no loss yet (fill_first)")
    time.sleep(0.5)
    log(1, 4, "no loss yet (fill_first)")
log(2, 5)
if starts == 1:
    time.sleep(30)
log(3, 9, "loss 1.25")
""")  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    state = pretrain(["config=a"], tmp_path, tmp_path / "run", 1, 9, budget_seconds=2.0)
    assert state.epochs in (2, 3, 4)  # of about 0.5 s
    assert state.losses == [(5, 2.5), (5, 2.5), (9, 1.25)]
    calls = [line.split()[-2:] for line in started.read_text().splitlines()]
    assert calls == [["config=a", f"config.OPTIMIZER.num_epochs={epochs}"] for epochs in (9, state.epochs)]
    printed = capsys.readouterr().out
    assert f"this machine is slower than measured: {state.epochs} epochs" in printed
    assert "epoch 1, iteration 1, filling the memory bank, 0:00:09 left" in printed
    assert "epoch 2, iteration 5, loss 2.500" in printed


def test_a_machine_as_fast_as_expected_trains_all_its_epochs(tmp_path, monkeypatch):
    started = in_place_of_the_launcher(monkeypatch, tmp_path, "log(1, 4)\ntime.sleep(0.1)\nlog(2, 5)\nlog(9, 80)\n")
    assert pretrain([], tmp_path, tmp_path / "run", 1, 9, budget_seconds=60.0).epochs == 9
    assert len(started.read_text().splitlines()) == 1


def test_a_run_that_fails_shows_the_end_of_its_log(tmp_path, monkeypatch):
    in_place_of_the_launcher(monkeypatch, tmp_path, "print(*map(str, range(10)), sep='\\n')\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"failed; the end of .*pretrain.log:\n5\n6\n7\n8\n9$"):
        pretrain([], tmp_path, tmp_path / "run", 1, 9, budget_seconds=60.0)


def test_long_work_says_how_much_is_done_and_how_long_the_rest_takes(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 10.0, 0.0, 4.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show = progress_line("copied")
    show(2, 5)
    show(5, 5)
    assert capsys.readouterr().out.split("\r") == ["", "      copied 2 of 5, 6 s left   ",
                                                   "      copied 5 of 5, 0 s left   \n"]  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    show = progress_line("copied")
    show(2, 5)
    show(5, 5)
    assert capsys.readouterr().out == "\r      copied 5 of 5, 0 s left   \n"


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
    for given, told in (
        ((float("nan"), 64, 0), "--budget-minutes is nan"),
        ((5, 3, 0), "--images is 3"),
        ((5, 64, -1), "--seed"),
    ):
        with pytest.raises(ConfigError, match=told):
            run(tmp_path / "never", None, *given)
    with pytest.raises(ConfigError, match="budget-minutes is"):
        run(tmp_path, None, 0.1, 100, 0)


def blind_network(config, epochs: int = 3) -> dict:
    """A checkpoint of a network that sees nothing, where the untrained one sees colours."""
    trunk = build_trunk(config, seed=8)
    torch.nn.init.zeros_(trunk._feature_blocks["conv1"].weight)
    model = {"trunk": trunk.state_dict(), "heads": {}}
    return {"classy_state_dict": {"base_model": {"model": model}}, "train_phase_idx": epochs - 1}


def coloured_tiles(folder: Path, with_classes: bool) -> DemoData:
    """Twenty-four training tiles and nine others held out: of three colours, or each of its own."""
    files, labels, random = {}, {}, np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 9)):
        (folder / split).mkdir(parents=True)
        labels[split] = np.arange(count) % 3
        files[split] = [folder / split / f"{number:02d}.png" for number in range(count)]
        for file, label in zip(files[split], labels[split], strict=True):
            colour = 135 * np.eye(3, dtype=int)[label] if with_classes else random.integers(0, 200, 3)
            pixels = random.integers(0, 120 if with_classes else 50, (40, 40, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    names = ["red", "green", "blue"] if with_classes else []
    classes = (labels["train"], labels["test"]) if with_classes else (None, None)
    return DemoData(folder / "train", files["train"], files["test"], *classes, names, [])


@pytest.mark.parametrize("with_classes", [True, False])
def test_the_demo_compares_its_network_with_the_untrained_one(tmp_path, with_classes):
    data = coloured_tiles(tmp_path, with_classes)
    config = compose([f"config={demo.CONFIG}", f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}]"])
    results, (train, test) = demo.evaluate(config, blind_network(config), data)
    assert (len(train), len(test)) == (24, 9)
    assert np.ptp(train, axis=0).max() == np.ptp(test, axis=0).max() == 0  # the network's, which sees nothing
    if with_classes:
        assert set(results["PIRL"]) == {"kNN (k = 4)", "linear"}
        assert all(results["untrained"][name] == 1 and value < 0.5 for name, value in results["PIRL"].items())
    else:
        assert results["PIRL"] == {"instance retrieval": pytest.approx(1 / 9)}
        assert results["untrained"]["instance retrieval"] > 0.3


def test_the_demo_trains_as_much_as_its_time_allows_and_writes_what_came_out(tmp_path, monkeypatch, capsys):
    asked = {}

    def pretrain(overrides, output, run, processes, epochs, budget_seconds):  # its own tests are above
        config = compose(overrides)
        batch = processes * config.DATA.TRAIN.BATCHSIZE_PER_REPLICA
        asked.update(batch=batch, epochs=epochs, seconds=budget_seconds, seed=config.SEED_VALUE)
        asked["images"] = len(list(Path(config.DATA.TRAIN.DATA_PATHS[0]).rglob("*.png")))
        run.mkdir()
        torch.save(blind_network(config), run / "model_phase2.torch")
        (run / "checkpoint.torch").symlink_to("model_phase2.torch")
        return Pretraining(epochs, [(5, 2.5), (6, 2.25)], True)

    monkeypatch.setattr(demo, "pretrain", pretrain)
    monkeypatch.setattr(demo, "seconds_per_image", lambda processes: 0.02)
    results = run(tmp_path / "out", None, 0.5, 128, 4)
    assert asked == {"batch": 32, "epochs": 11, "seconds": 30, "seed": 4, "images": 128}  # 11 x 128 x 0.02 s
    assert (results["epochs"], results["train_images"], results["seed"]) == (3, 128, 4)
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    assert (tmp_path / "out/demo.png").stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert "50 images/s expected" in printed and "128 to train on, 32 held out" in printed
    assert f"Network: {tmp_path}/out/pirl_demo/run/model_phase2.torch" in printed
    (name,) = (name for name in results["PIRL"] if name.startswith("kNN"))
    assert results["untrained"][name] > results["PIRL"][name]
    run(tmp_path / "out", None, 0.5, 4000, 4)  # more than can be trained six times
    assert (asked["images"], asked["epochs"]) == (240, 6)


def test_the_machines_speed_is_measured_with_one_thread_for_each_process():
    threads = torch.get_num_threads()
    seconds = {processes: demo.seconds_per_image(processes) for processes in (1, 4)}
    assert torch.get_num_threads() == threads
    assert 1.3 < seconds[1] / seconds[4] < 12


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no checkpoint in .*: the time budget was too small"):
        demo.newest_checkpoint(tmp_path)


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
