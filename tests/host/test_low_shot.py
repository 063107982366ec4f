"""Low-shot SVMs with VISSL's trainer: the mean AP over the classes, for each cost."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pirl_plugin.host.low_shot import LowShotTrainer
from pirl_plugin.launch.launcher import compose


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_precision_is_over_the_classes_at_each_cost_on_the_test_images(tmp_path, normalize):
    config = compose(["config=benchmark/svm/voc07_low_shot", "config.SVM.costs.costs_list=[0.001,1.0]",
                      f"config.SVM.normalize={normalize}", "config.SVM.force_retrain=True"], check=False)  # fmt: skip
    random = np.random.default_rng(0)
    labels = {split: random.integers(0, 3, 60) for split in ("train", "test")}
    features = {split: 3 * np.eye(8)[classes] + random.normal(size=(60, 8)) for split, classes in labels.items()}
    targets = {split: np.where(np.eye(3)[classes] > 0, 1, 0) for split, classes in labels.items()}
    trainer = LowShotTrainer(config.SVM, layer="res5", output_dir=str(tmp_path))
    trainer.train(features["train"].copy(), targets["train"], 1, 20)
    trainer.test(features["test"].copy(), targets["test"], 1, 20)
    (written,) = tmp_path.rglob("test_ap_sample1_k20.npy")
    found = np.load(written)
    assert found.shape == (1, len(trainer.costs_list))
    assert found[0].max() > 0.8 and found[0].min() > 0
    wrong = LowShotTrainer(config.SVM, layer="res5", output_dir=str(tmp_path))
    wrong.cls_list = trainer.cls_list
    wrong.test(features["test"].copy(), np.roll(targets["test"], 1, axis=1), 1, 20)
    assert np.load(written).max() < found[0].max() - 0.2
    assert average_precision_score(targets["test"][:, 0], features["test"][:, 0]) > 0.8  # the signal is there
