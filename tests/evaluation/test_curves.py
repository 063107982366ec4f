"""Curves of runs, from the files that a run writes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pirl_plugin.commands.__main__ import main
from pirl_plugin.evaluation.curves import PANELS, draw_curves, series
from pirl_plugin.validation import ConfigError

LOSS, RATE, RANK, SPREAD, KNN, SPEED = PANELS


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "run"
    write(
        folder / "progress.csv",
        [{"iteration": i, "loss": 0 if i == 0 else 10 - i, "learning_rate": 0.1, "images_per_second": 50}
         for i in range(4)],
    )  # fmt: skip
    write(
        folder / "monitor.csv",
        [{"iteration": 1, "effective_rank": 12.5, "spread": 0.9, "knn_accuracy": ""},
         {"iteration": 3, "effective_rank": 13, "spread": 0.8, "knn_accuracy": 0.25}],
    )  # fmt: skip
    return folder


def test_values_are_those_of_the_files_and_the_epoch_that_fills_the_bank_has_no_loss(run_folder):
    assert series(run_folder, LOSS) == ([1, 2, 3], [9.0, 8.0, 7.0])
    assert series(run_folder, RANK) == ([1, 3], [12.5, 13.0])
    assert series(run_folder, KNN) == ([3], [25.0])


def test_only_the_columns_that_are_asked_for_are_drawn(run_folder, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("pirl_plugin.evaluation.curves.save", lambda figure, path: figures.append(figure) or path)
    draw_curves([run_folder], tmp_path / "curves.png", ["spread", "loss"])
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figures[0].axes] == [LOSS.title, SPREAD.title]
    with pytest.raises(ConfigError, match=r"--only is .los. .did you mean loss"):
        draw_curves([run_folder], tmp_path / "curves.png", ["los"])


def test_a_line_cut_by_a_kill_is_left_out(run_folder):
    with (run_folder / "progress.csv").open("a") as file:
        file.write("4,6")
    assert series(run_folder, LOSS)[0] == [1, 2, 3, 4] and series(run_folder, SPEED)[0] == [0, 1, 2, 3]


def test_only_what_was_measured_gets_a_plot_and_every_run_a_line(run_folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    write(other / "progress.csv", [{"iteration": 1, "loss": 3, "learning_rate": 0.1, "images_per_second": 5}])
    figures = []
    monkeypatch.setattr("pirl_plugin.evaluation.curves.save", lambda figure, path: figures.append(figure) or path)
    draw_curves([run_folder, other], tmp_path / "curves.png")
    draw_curves([other], tmp_path / "curves.png")
    both, alone = (figure.axes for figure in figures)
    assert [axes.get_title(loc="left") for axes in both] == [panel.title for panel in PANELS]
    assert len(alone) == 3
    assert [line.get_label() for line in both[0].lines] == ["run", "other"]
    assert list(both[0].lines[0].get_ydata()) == [9, 8, 7] and list(both[0].lines[1].get_ydata()) == [3]


def test_the_command_draws_a_picture(run_folder, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["curves", str(run_folder), "--output", str(tmp_path / "new" / "curves.png")])
    assert not ended.value.code
    assert np.asarray(Image.open(tmp_path / "new" / "curves.png").convert("L")).std() > 1


def test_what_cannot_be_drawn_is_refused(run_folder, tmp_path):
    (run_folder / "monitor.csv").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"No run has logged spread; --only takes loss, "):
        draw_curves([run_folder], tmp_path / "curves.png", ["spread"])
    with pytest.raises(ConfigError, match=r"--output is .*c\.xyz; it must end in \.png"):
        draw_curves([run_folder], tmp_path / "c.xyz")


def test_a_folder_without_a_run_is_refused_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing_here has no progress\.csv"):
        draw_curves([tmp_path / "nothing_here"], tmp_path / "curves.png")
