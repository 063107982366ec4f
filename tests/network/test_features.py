import os

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.data.image_files import list_images
from pirl_plugin.evaluation.quick import labelled_images, table
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.network.weights import Architecture, Trunk
from pirl_plugin.validation import ConfigError


@pytest.fixture(scope="module")
def config(photo_folder):
    return compose(["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"])


def checkpoint_of(trunk):
    return {"classy_state_dict": {"base_model": {"model": {"trunk": trunk.state_dict(), "heads": {}}}}}


def test_features_of_a_file_that_cannot_be_read_are_nan_and_no_others(photo_folder, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    files = [*list_images(photo_folder)[:3], broken, *list_images(photo_folder)[3:5]]
    trunk, named = Trunk(Architecture(18, 0.125, "small")).eval(), []
    features = embed(trunk.network, files, center_view(32), on_unreadable=lambda file, error: named.append(file))
    assert named == [broken] and np.isnan(features[3]).all()
    rest = embed(trunk.network, [file for file in files if file != broken], center_view(32))
    np.testing.assert_allclose(np.delete(features, 3, axis=0), rest, rtol=1e-5, atol=1e-6)
    with pytest.raises(OSError, match="cannot identify"):
        embed(trunk.network, files, center_view(32))


def test_a_network_in_training_computes_in_eval_mode_and_has_its_modes_again(photo_folder):
    files, trunk = list_images(photo_folder)[:9], Trunk(Architecture(18, 0.125, "small")).network.train()
    trunk._feature_blocks["layer1"].eval()  # frozen
    modes = [module.training for module in trunk.modules()]
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    few, many = (embed(trunk, files, center_view(32), batch_size=size) for size in (2, 9))
    np.testing.assert_allclose(few, many, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    with pytest.raises(OSError, match="cannot identify"):
        embed(trunk, [__file__], center_view(32))
    assert [module.training for module in trunk.modules()] == modes
    with pytest.raises(ConfigError, match="There are no images to embed"):
        embed(trunk, [], center_view(32))


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_long_image_is_seen_in_its_middle_without_being_resized_whole(turned):
    levels = np.zeros((4, 30_000, 3), dtype=np.uint8)
    levels[:, 14_990:15_010] = 255  # all that a view of twice its height should see
    image = Image.fromarray(levels.transpose(1, 0, 2) if turned else levels)
    view = center_view(224, (0, 0, 0), (1, 1, 1))(image)
    assert view.shape == (3, 224, 224) and view.min() > 0.99
    usual = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 320, 3), dtype=np.uint8))
    resized = usual.resize((16 * 256, 256), Image.Resampling.BILINEAR)
    middle = np.asarray(resized.crop((1936, 16, 2160, 240)))
    np.testing.assert_allclose(center_view(224, (0, 0, 0), (1, 1, 1))(usual).permute(1, 2, 0) * 255, middle, atol=1)


def test_a_checkpoints_trunk_gives_the_features_of_the_network_that_wrote_it(config, tmp_path, photo_folder):
    original = build_trunk(config, seed=3)
    torch.save(checkpoint_of(original), tmp_path / "x.torch")
    loaded = build_trunk(config, load_checkpoint(tmp_path / "x.torch"), seed=4)
    files, _ = labelled_images(photo_folder, limit=12)
    view = center_view(32)
    features = embed(loaded, files, view, batch_size=5)
    assert features.shape == (12, 128) and features.dtype == np.float32
    np.testing.assert_array_equal(features, embed(original, files, view, batch_size=5))
    assert not np.allclose(features, embed(build_trunk(config, seed=4), files, view))


def test_building_a_network_leaves_the_global_random_state_alone(config):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_trunk(config, seed=9)
    assert torch.equal(torch.rand(1), expected)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_files_that_are_no_safe_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint file"):
        load_checkpoint("missing.torch")
    torch.save({"x": RunsCode()}, "evil.torch")
    with pytest.raises(ConfigError, match="can be read safely"):
        load_checkpoint("evil.torch")
    assert not (tmp_path / "pwned").exists()
    torch.save({"a": torch.zeros(5)}, "other.torch")
    with pytest.raises(ConfigError, match="no classy_state_dict"):
        load_checkpoint("other.torch")
    (tmp_path / "cut.torch").write_bytes((tmp_path / "other.torch").read_bytes()[:100])
    with pytest.raises(ConfigError, match="can be read safely"):
        load_checkpoint("cut.torch")


def test_weights_of_another_architecture_are_refused(config, photo_folder):
    wide = compose(
        [
            "config=pretrain/pirl/jigsaw_small_images_cpu",
            f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
            "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.5",
        ]
    )
    with pytest.raises(ConfigError, match="does not fit the trunk pirl_resnet of its config"):
        build_trunk(config, checkpoint_of(build_trunk(wide)))


def test_labels_are_the_sub_folders_in_order(photo_folder, tmp_path):
    files, labels = labelled_images(photo_folder)
    assert len(files) == 48 and np.bincount(labels).tolist() == [12] * 4
    assert all(f"class{label}" in file for file, label in zip(files, labels, strict=True))
    with pytest.raises(ConfigError, match="0 sub-folders"):
        labelled_images(tmp_path)


def test_the_table_shows_per_cent_and_the_difference():
    text = table({"untrained": {"kNN": 0.25, "linear": 0.3}, "PIRL": {"kNN": 0.5, "linear": 0.275}})
    rows = [line.split() for line in text.splitlines()]
    assert rows[1][1:] == ["25.0", "30.0"] and rows[2][1:] == ["50.0", "27.5"] and rows[3][1:] == ["+25.0", "-2.5"]


def test_different_classes_in_train_and_test_are_refused(tmp_path, make_photo):
    from pirl_plugin.evaluation.quick import evaluate_checkpoint

    for split, classes in (("train", "abc"), ("test", "ac")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            make_photo(1).save(tmp_path / split / name / "x.jpg")
    with pytest.raises(ConfigError, match="must have the same class folders; only one has b"):
        evaluate_checkpoint(tmp_path / "x.torch", tmp_path / "train", tmp_path / "test")
