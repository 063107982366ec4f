"""VISSL's loaders with broken files: what is measured is what could be read."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pirl_plugin.host.readable_batches import ReadableBatches, unreadable_in


class Samples(Dataset):
    """As VISSL's: image i is all i; those in `broken` are grey and say so."""

    def __init__(self, count: int, broken: set[int]) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        bad = index in self.broken
        image = torch.full((3, 2, 2), -1.0 if bad else float(index))
        return {"data": [image], "data_valid": [-1 if bad else 1], "data_idx": [index], "label": [index % 3]}


@pytest.mark.parametrize("skip_empty", [True, False])
def test_broken_images_are_left_out_with_their_labels_and_indices(skip_empty):
    broken = {1, 4, 5, 6, 7}  # the second batch whole
    loader = ReadableBatches(DataLoader(Samples(10, broken), batch_size=4), skip_empty)
    batches = list(loader)
    indices = [index for batch in batches for index in batch["data_idx"][0].tolist()]
    images = [float(image.mean()) for batch in batches for image in batch["data"][0]]
    labels = [label for batch in batches for label in batch["label"][0].tolist()]
    kept = [] if skip_empty else [4]
    expected = sorted({*range(10)} - broken | {*kept})
    assert indices == expected and labels == [index % 3 for index in expected]
    assert images == [-1.0 if index in broken else index for index in expected]
    assert loader.unreadable == broken and loader.kept == {*kept} and unreadable_in(loader) == broken
    assert (
        len(loader) == len(iter(loader)) == 3
        and isinstance(loader.dataset, Samples)
        and len(batches) == (2 if skip_empty else 3)
    )


def test_batches_without_a_broken_image_are_handed_on_as_they_are():
    plain = DataLoader(Samples(6, set()), batch_size=3)
    for ours, theirs in zip(ReadableBatches(plain), plain, strict=True):
        for key in theirs:
            np.testing.assert_array_equal(ours[key][0], theirs[key][0])
    assert unreadable_in(plain) == set()
