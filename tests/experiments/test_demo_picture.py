"""The demo's picture marks neighbours by class and shows where the loss begins."""

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from pirl_plugin import figures
from pirl_plugin.experiments.demo_data import DemoData
from pirl_plugin.experiments.demo_picture import GAP, NEIGHBORS, SIDE, draw_losses, draw_neighbors

GREEN, RED = "#1a7f37", "#cf222e"


@pytest.fixture
def data(tmp_path):
    """Sixteen grey training images, eight a class, and five others held out."""
    files = {"train": [], "test": []}
    for split, count in (("train", 16), ("test", 5)):
        for number in range(count):
            files[split].append(tmp_path / f"{split}{number}.png")
            Image.new("RGB", (8, 8), (10 * number, 0, 200 * (split == "test"))).save(files[split][-1])
    labels = np.repeat([0, 1], 8), np.array([0, 1, 1, 0, 1])
    return DemoData(tmp_path, files["train"], files["test"], *labels, ["a", "b"], [])


def features_of(labels: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[labels]


def test_neighbours_of_the_same_class_are_green_and_others_red_and_dashed(data):
    axes = figures.new_figure(5, 5).subplots()
    seen = np.array([0, 1, 0, 0, 1])  # the third held-out image looks like the other class
    draw_neighbors(axes, data, features_of(data.train_labels), features_of(seen))
    assert len(axes.patches) == 5 * NEIGHBORS
    for patch in axes.patches:
        x, y = patch.get_xy()
        row, column = round((y + 0.5) / (SIDE + GAP)), round((x + 0.5) / (SIDE + GAP))
        assert 1 <= column <= NEIGHBORS and patch.get_width() == patch.get_height() == SIDE
        wrong = row == 2
        assert matplotlib.colors.to_hex(patch.get_edgecolor()) == (RED if wrong else GREEN)
        assert (patch.get_linestyle() != "solid") == wrong
    (sheet,) = (image.get_array() for image in axes.images)
    assert sheet.shape == (5 * SIDE + 4 * GAP, (NEIGHBORS + 1) * SIDE + NEIGHBORS * GAP, 3)
    assert (sheet[:: SIDE + GAP, 0, 2] == 200).all()  # the queries come first; training images have no blue
    assert (sheet[::SIDE + GAP, SIDE + GAP::SIDE + GAP, 2] == 0).all()  # fmt: skip


def test_without_classes_nothing_is_marked(data):
    axes = figures.new_figure(5, 5).subplots()
    plain = DemoData(data.train_folder, data.train_files, data.test_files, None, None, [], [])
    draw_neighbors(axes, plain, features_of(data.train_labels), features_of(data.test_labels))
    assert len(axes.images) == 1 and not axes.patches


def test_the_loss_begins_where_the_bank_is_filled(data):
    axes = figures.new_figure(5, 5).subplots()
    draw_losses(axes, [(125, 9.5), (145, 9.0), (165, 8.0)])
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [125, 145, 165] and line.get_ydata().tolist() == [9.5, 9.0, 8.0]
    (filling,) = axes.patches
    assert (filling.get_x(), filling.get_width()) == (0, 125) and axes.get_xlim()[0] == 0
    assert axes.get_title(loc="left") == "Training loss (Eq. 5)" and axes.get_ylabel() == "loss"
    draw_losses(figures.new_figure(5, 5).subplots(), [])  # of a run that was too short
