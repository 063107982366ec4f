"""Reading by worker processes gives what reading in this one does, and leaves no trace."""

import json
import os

import numpy as np
import pytest
import torch

from pirl_plugin.commands.__main__ import main as pirl
from pirl_plugin.data.image_files import list_images
from pirl_plugin.evaluation.invariance import Encoders, embed_pairs, transformation
from pirl_plugin.evaluation.layers import embed_layers
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.devices import MOST_WORKERS, Compute
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.image_batches import in_order, made_batches
from pirl_plugin.network.weights import Architecture, Trunk
from pirl_plugin.validation import ConfigError

CPU = torch.device("cpu")


class Unsendable(Exception):
    def __init__(self, first: str, second: str) -> None:  # pickle calls it with one argument
        super().__init__(first + second)


@pytest.fixture
def files(photo_folder, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    photos = list_images(photo_folder)[:9]
    return [*photos[:4], broken, *photos[4:]]


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return Trunk(Architecture(18, 0.125, "small")).eval().network


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_neither_features_nor_their_order_nor_what_is_named(files, trunk, workers):
    seen, found = [], []
    for compute in (None, Compute(CPU, workers)):
        named, done = [], []
        how = {
            "batch_size": 4,
            "progress": lambda *state, done=done: done.append(state),
            "on_unreadable": lambda file, error, named=named: named.append((file, type(error).__name__)),
            "compute": compute,
        }
        found.append(embed(trunk, files, center_view(32), **how))
        found.append(embed_layers(trunk, files, center_view(32), ["flatten"], **how)["flatten"])
        seen.append((named, done))
    assert seen[0] == seen[1] and seen[0][0] == [(files[4], "UnidentifiedImageError")] * 2
    assert seen[0][1] == [(4, 10), (8, 10), (10, 10)] * 2
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    assert np.isnan(found[0]).all(1).tolist() == [place == 4 for place in range(10)]
    assert len(np.unique(found[0], axis=0)) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_which_no_image_can_be_read_is_nan_and_the_error_is_raised_where_nobody_asked(files, trunk, workers):
    bad, compute = files[4], Compute(CPU, workers)
    found = embed(trunk, [bad, bad, *files[:3]], center_view(32), "flatten", 2, None, lambda *_: None, compute)
    assert np.isnan(found[:2]).all() and not np.isnan(found[2:]).any()
    with pytest.raises(OSError, match="cannot identify image file"):
        embed(trunk, files, center_view(32), compute=compute)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_that_no_other_process_could_receive_arrives_in_its_words(workers):
    def make(place):
        if place == 1:
            raise Unsendable("cut", " short")
        return torch.tensor(float(place)), torch.tensor([place, -place])

    batches = list(made_batches(make, in_order(5, 2), workers))
    assert [places for places, _, _ in batches] == [[0], [2, 3], [4]]
    assert batches[1][1][0].tolist() == [2, 3] and batches[1][1][1].tolist() == [[2, -2], [3, -3]]
    ((place, error),) = batches[0][2]
    assert place == 1 and str(error).endswith("cut short") and "Unsendable" in f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("workers", [0, 1])
def test_measuring_leaves_the_global_random_state_alone(files, trunk, workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    embed(trunk, files[:3], center_view(32), compute=Compute(CPU, workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_pairs_are_the_same_with_workers(files, photo_folder):
    config = compose(["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"])
    task, encoders = transformation(config.DATA.TRAIN.TRANSFORMS[0]), Encoders(config, None)
    found = [
        embed_pairs(encoders, task, files, 2, 1, 4, on_unreadable=lambda *_: None, compute=Compute(CPU, workers))
        for workers in (0, 2)
    ]
    assert found[0][0].shape == (18, 128)
    for left, right in zip(*found, strict=True):  # a worker resizes with one thread, and so rounds otherwise
        np.testing.assert_allclose(left, right, atol=1e-4)
        assert np.abs(left - np.roll(right, 1, axis=0)).max() > 0.1


def test_bfloat16_is_near_float32_and_not_it(files, trunk):
    exact, near = (
        embed(trunk, files[:4], center_view(32), compute=Compute(CPU, bfloat16=bfloat16)) for bfloat16 in (False, True)
    )
    assert near.dtype == np.float32 and 0 < np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


def test_by_default_a_gpu_is_fed_by_workers_and_a_cpu_keeps_its_cores(monkeypatch):
    from argparse import Namespace

    from pirl_plugin.network import devices

    options = Namespace(device=None, workers=None, bfloat16=False)
    assert Compute.of_options(options) == Compute(CPU, 0) or torch.cuda.is_available()
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert Compute.of_options(options) == Compute(torch.device("cuda"), MOST_WORKERS)
    options.workers = -1
    with pytest.raises(ConfigError, match="--workers is -1"):
        Compute.of_options(options)


def test_the_commands_take_device_workers_and_number_format(photo_folder, tmp_path):
    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            pirl(list(arguments))
        return ended.value.code

    torch.save(Trunk(Architecture(18, 0.125, "small")).state_dict(), tmp_path / "x.pth")
    how = ["--device", "cpu", "--workers", "1"]
    spectra = []
    for name, more in (("plain", how), ("bfloat16", [*how, "--bfloat16"])):
        output = ["--output", str(tmp_path / name), "--size", "32"]
        spread = ("analysis", "spread", str(tmp_path / "x.pth"), "--images", str(photo_folder))
        assert command(*spread, *output, *more) is None
        (result,) = json.loads((tmp_path / f"{name}.json").read_text())["models"].values()
        spectra.append(result["spectrum"])
    assert spectra[0] != spectra[1] and spectra[0] == pytest.approx(spectra[1], abs=0.02)
    embedding = ("embed", str(tmp_path / "x.pth"), str(photo_folder), "--output", str(tmp_path / "f.npy"))
    assert command(*embedding, *how) is None
    assert len(np.load(tmp_path / "f.npy")) == len(list_images(photo_folder))
    assert "--device is 'cuda:9', which this machine cannot use" in command(*embedding, "--device", "cuda:9")
