"""Figures 4 and 5: distances under the pretext transformation, and the quality of each layer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.evaluation.figures import draw_gallery, draw_invariance, draw_lines, draw_spectrum
from pirl_plugin.evaluation.invariance import (
    Encoders,
    distances,
    distances_between_images,
    embed_pairs,
    figures_of,
    pairs_of_checkpoint,
    transformation,
)
from pirl_plugin.evaluation.layers import embed_layers, layer_accuracies, pooled
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.figures import new_figure, save
from pirl_plugin.launch import composition
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.features import center_view
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.network.trunks import STAGES
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = "config=pretrain/pirl/jigsaw_small_images_cpu"


@pytest.fixture(scope="module")
def config(photo_folder):
    return compose([SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"])


def test_distances_are_those_of_unit_vectors():
    image, other = np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([[5.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(distances(image, other), [0, np.sqrt(2)])
    np.testing.assert_allclose(sorted(distances_between_images(image, other)), [np.sqrt(2), 2])
    corners = np.eye(50)
    np.testing.assert_allclose(distances_between_images(corners, corners), np.sqrt(2))  # never an image with itself
    thrice = np.concatenate([np.eye(5)] * 3)  # nor with another draw of itself
    np.testing.assert_allclose(distances_between_images(thrice, thrice, draws=3), np.sqrt(2))
    assert figures_of(thrice, thrice, draws=3)["mean_between_images"] == pytest.approx(np.sqrt(2))


def test_full_invariance_is_zero_and_none_at_all_is_one():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4000, 64))
    assert figures_of(image, image)["relative"] == 0
    unrelated = figures_of(image, rng.normal(size=(4000, 64)))
    assert unrelated["relative"] == pytest.approx(1, abs=0.01)
    assert unrelated["mean"] == pytest.approx(np.sqrt(2), abs=0.01)


def test_nothing_is_random_in_the_transformation_but_t(config, photo_folder):
    file = list_images(photo_folder)[0]
    task = transformation({**config.DATA.TRAIN.TRANSFORMS[0], "num_permutations": 1, "patch_size": 14})
    first, second = (task.views(load_rgb(file), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    # The views are those of the whole image: the patches, put together, are the image at 42 pixels.
    patches = first[1].view(3, 3, 3, 14, 14).permute(2, 0, 3, 1, 4).reshape(3, 42, 42)
    whole = center_view(42)(load_rgb(file).resize((42, 42), Image.Resampling.BILINEAR))
    assert float((patches - whole).abs().mean()) < 0.1


def test_one_image_has_no_distance_to_others(config, photo_folder, tmp_path):
    encoders, task = Encoders(config, None), transformation(config.DATA.TRAIN.TRANSFORMS[0])
    files = list_images(photo_folder)[:1]
    for given in (files, [*files, tmp_path / "missing.png"]):
        with pytest.raises(ConfigError, match=f"Only {files[0]} can be read; distances between images need at least"):
            embed_pairs(encoders, task, given, on_unreadable=lambda *_: None)


def test_the_heads_are_those_of_the_checkpoint(config, tmp_path):
    trunk, heads = build_trunk(config, seed=3), nn.ModuleList()
    torch.manual_seed(5)
    heads.extend(PIRLHead(**arguments) for _, arguments in config.MODEL.HEAD.PARAMS)
    model = {"trunk": trunk.state_dict(), "heads": heads.state_dict()}
    encoders = Encoders(config, {"classy_state_dict": {"base_model": {"model": model}}}, statistics="running")
    images, views = torch.randn(2, 3, 32, 32), torch.randn(2, 9, 3, 12, 12)
    heads.eval()
    with torch.no_grad():
        first, second = encoders(images, views)
        torch.testing.assert_close(first, heads[0](trunk(images, ["flatten"])[0]))
        torch.testing.assert_close(second, heads[1](trunk(views.flatten(0, 1), ["flatten"])[0]))
        at_trunk = Encoders(config, {"classy_state_dict": {"base_model": {"model": model}}}, "trunk", "running")
        mean = torch.stack([trunk(one, ["flatten"])[0].mean(0) for one in views])
        torch.testing.assert_close(at_trunk(images, views)[1], mean, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_batch_are_each_kind_of_views_own(config):
    encoders = Encoders(config, None, "trunk", "batch")
    images, views = torch.randn(6, 3, 32, 32), torch.randn(6, 9, 3, 12, 12)
    with torch.no_grad():
        reference = build_trunk(config, seed=0).train()
        torch.testing.assert_close(encoders(images, views)[0], reference(images, ["flatten"])[0])


def test_pairs_are_the_same_again_and_of_as_many_draws_as_asked(config, photo_folder):
    files = list_images(photo_folder)[:10]
    encoders, task = Encoders(config, None, statistics="running"), transformation(config.DATA.TRAIN.TRANSFORMS[0])
    first = embed_pairs(encoders, task, files, draws=2, seed=1, batch_size=4)
    again = embed_pairs(encoders, task, files, draws=2, seed=1, batch_size=4)
    assert first[0].shape == first[1].shape == (20, 128)
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_allclose(first[0][:10], first[0][10:], atol=1e-6)  # the image is the same, t is not
    assert np.abs(first[1][:10] - first[1][10:]).max() > 1e-4


def test_networks_without_pirls_heads_are_refused(photo_folder):
    npid = ["config=pretrain/npid/npid_plus_plus_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]
    with pytest.raises(ConfigError, match="use the level trunk for other networks"):
        Encoders(compose(npid), None)


def test_layers_are_pooled_to_the_number_of_dimensions_and_come_by_their_names(config, photo_folder):
    assert pooled(torch.zeros(1, 64, 56, 56), 9000).shape == (1, 64 * 11 * 11)
    assert pooled(torch.zeros(1, 2048, 7, 7), 9000).shape == (1, 2048 * 2 * 2)
    assert pooled(torch.zeros(1, 128, 4, 4), 9000).shape == (1, 128 * 4 * 4)
    trunk, files = build_trunk(config), list_images(photo_folder)[:5]
    found = embed_layers(trunk, files, center_view(32), ("flatten", "res5", "conv1"), 2048, batch_size=2)
    batch = torch.stack([center_view(32)(load_rgb(file)) for file in files])
    with torch.no_grad():
        for layer, features in found.items():
            (alone,) = trunk(batch, [layer])
            alone = pooled(alone, 2048) if alone.dim() == 4 else alone
            np.testing.assert_allclose(features, alone.numpy(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_tells_classes_apart_is_the_better_one(photo_folder):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    good, bad = labels[:, None] + 0.1 * rng.normal(size=(80, 3)), rng.normal(size=(80, 3))
    features = {"res4": good.astype(np.float32), "res5": bad.astype(np.float32)}
    accuracies = layer_accuracies(features, labels, features, labels)
    assert accuracies["res4"] == 1 and accuracies["res5"] < 0.8


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_noise_is_not_made_to_look_like_a_peak():
    axes = new_figure(4, 3).subplots()
    draw_lines(axes, {"three": {"1": [0.50, 0.52, 0.54], "2": [0.51, 0.53, 0.55]}, "one": {"1": [0.6]}}, "t", "x")
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["three", "one, one seed"]
    bars = [bar for container in axes.containers for bar in container[2]]
    assert len(bars) == 2  # of the points with several seeds
    (segment,) = bars[0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [50, 54])  # mean 52, deviation 2
    line = next(line for line in axes.get_lines() if line.get_label() == "three")
    np.testing.assert_allclose(line.get_ydata(), [52, 53])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    np.testing.assert_allclose(axes.get_xticks(), line.get_xdata())


@pytest.mark.parametrize(("level", "title"), [("heads", "f(v_I) to g(v_It)"), ("trunk", "the trunk's features of I")])
def test_figure_4_says_what_it_compares(level, title):
    axes = new_figure(4, 3).subplots()
    draw_invariance(axes, {"a": [1] * 10}, np.linspace(0, 2, 11), level=level)
    assert title in axes.get_title("left")


def test_figures_are_drawn(tmp_path):
    edges = np.linspace(0, 2, 11)
    painters = {
        "4": lambda axes: draw_invariance(axes, {"a": [0, 1, 2, 3, 0, 0, 0, 0, 0, 0], "b": [1] * 10}, edges),
        "5": lambda axes: draw_lines(axes, {"a": {"conv1": [0.1, 0.2], "res5": [0.4]}}, "title", "layer"),
        "7": lambda axes: draw_lines(axes, {"a": {"100": [0.1], "2000": [0.3]}}, "title", "|T|", logarithmic=True),
        "s": lambda axes: draw_spectrum(axes, {"a": [0.7, 0.2, 0.1], "b": [0.4, 0.3, 0.3]}),
    }
    for name, paint in painters.items():
        figure = new_figure(4, 3)
        paint(figure.subplots())
        drawn = pixels(save(figure, tmp_path / f"{name}.png"))
        assert drawn.std() > 5, name
    images = [[np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)]] * 2
    assert pixels(draw_gallery(tmp_path / "gallery.png", images, "title")).std() > 20


@pytest.mark.slow
def test_the_analyses_run_on_checkpoints_from_a_shell(photo_folder, held_out_folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("pirl/jigsaw_small_images_cpu", "jigsaw/covariant_small_images_cpu"):
        run = tmp_path / name.split("/")[0]
        done = subprocess.run(
            [
                sys.executable, "-m", "pirl_plugin.launch.launcher", f"config=pretrain/{name}",
             "config.OPTIMIZER.num_epochs=1",
             f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={run}",
             "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=24"],
            env=environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    pirl, jigsaw = (str(tmp_path / name / "model_final_checkpoint_phase0.torch") for name in ("pirl", "jigsaw"))

    def analyse(*arguments: str) -> subprocess.CompletedProcess:
        script = ROOT / "extra_scripts" / "analysis.py"
        return subprocess.run(
            [sys.executable, script, *arguments, "--output", str(tmp_path / arguments[0])],
            env=environment, capture_output=True, text=True, timeout=500,
        )  # fmt: skip

    images = ["--images", str(photo_folder)]
    commands = [
        ["invariance", pirl, jigsaw, *images, "--level", "trunk", "--pretext-of", pirl, "--names", "PIRL", "Jigsaw"],
        ["layers", pirl, "--train", str(photo_folder), "--test", str(held_out_folder)],
        ["neighbors", jigsaw, *images, "--queries", "3", "--neighbors", "4"],
        ["spread", pirl, jigsaw, *images],
    ]
    for command in commands:
        done = analyse(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert pixels(tmp_path / f"{command[0]}.png").std() > 5
    models = json.loads((tmp_path / "invariance.json").read_text())["models"]
    assert set(models) == {"PIRL", "Jigsaw"} and sum(models["PIRL"]["histogram"]) == 48
    assert set(json.loads((tmp_path / "layers.json").read_text())["models"][pirl]) == set(STAGES)
    gallery = json.loads((tmp_path / "neighbors.json").read_text())["queries"]
    assert all(len(found) == 4 and query not in found for query, found in gallery.items()) and len(gallery) == 3
    refused = analyse("invariance", jigsaw, *images)
    assert refused.returncode != 0 and refused.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert len(labelled_images(photo_folder)[0]) == 48


def test_a_checkpoints_pairs_are_of_one_draw_an_image_unless_more_are_asked_for(tmp_path, photo_folder):
    overrides = ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]
    config = composition.compose([*overrides, f"config.CHECKPOINT.DIR={tmp_path}"], write_config=True).config
    heads = nn.ModuleList(PIRLHead(**arguments) for _, arguments in config.MODEL.HEAD.PARAMS)
    model = {"trunk": build_trunk(config).state_dict(), "heads": heads.state_dict()}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, tmp_path / "checkpoint.torch")
    files = list_images(photo_folder)[:6]
    for more, count in (({}, 6), ({"draws": 3}, 18)):
        first, second = pairs_of_checkpoint(tmp_path / "checkpoint.torch", files, **more)
        assert len(first) == len(second) == count
