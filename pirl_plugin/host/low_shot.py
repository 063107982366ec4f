"""VISSL's low-shot SVMs, with the test step adapted to current NumPy."""

from __future__ import annotations

import numpy as np
from vissl.utils.io import load_file
from vissl.utils.svm_utils.evaluate import get_precision_recall
from vissl.utils.svm_utils.svm_low_shot_trainer import SVMLowShotTrainer


class LowShotTrainer(SVMLowShotTrainer):
    """Like VISSL's, whose `test` assigns an array of one number to a cell (svm_low_shot_trainer.py:178)."""

    def test(self, features: np.ndarray, targets: np.ndarray, sample_num: int, low_shot_kvalue: int) -> None:
        """Write the mean AP over the classes for each cost [1, costs] to test_ap_sample<S>_k<K>.npy.

        Args:
            features: float [images, dimensions].
            targets: int [images, classes], 1, 0 or -1 (ignored).
            sample_num, low_shot_kvalue: of the trained SVMs.
        """
        if self.normalize:
            features = self._normalize_features(features)
        suffix = f"sample{sample_num}_k{low_shot_kvalue}"
        precision = np.zeros((1, len(self.costs_list)))
        for number, cost in enumerate(self.costs_list):
            of_classes = []
            for name in self.cls_list:
                model = load_file(self._get_svm_low_shot_model_filename(name, cost, suffix))
                scores, labels = self._get_cls_feats_labels(name, model.decision_function(features), targets)
                of_classes.append(np.asarray(get_precision_recall(labels, scores)[3]).item())
            precision[0, number] = np.mean(of_classes)
        np.save(f"{self.output_dir}/test_ap_{suffix}.npy", precision)
