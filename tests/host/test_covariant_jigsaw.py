import pytest
import torch
from vissl.data.ssl_transforms.ssl_transforms_wrapper import DEFAULT_TRANSFORM_TYPES, SSLTransformsWrapper

from pirl_plugin.host.covariant_jigsaw import ShufflePatchesTransform
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.pretext.permutations import permutation_set
from pirl_plugin.validation import ConfigError


@pytest.mark.parametrize("size", [1, 100, 2000])
def test_the_baseline_shuffles_by_the_permutations_that_pirl_draws_from(size):
    baseline = ShufflePatchesTransform.from_config({"name": "x", "num_permutations": size, "permutation_seed": 3})
    pirl = JigsawPatchTransform(num_permutations=size, permutation_seed=3)
    ours = {tuple(pirl.draw_permutation(torch.Generator().manual_seed(seed)).tolist()) for seed in range(300)}
    theirs = set(map(tuple, baseline.perms.tolist()))
    assert len(theirs) == size and ours <= theirs


def test_the_label_says_which_permutation_was_applied():
    """Through VISSL's wrapper, as the loader calls it."""
    settings = {"name": "shuffle_patches_transform", "num_permutations": 50, "permutation_seed": 1}
    wrapper = SSLTransformsWrapper([0], transform_types=DEFAULT_TRANSFORM_TYPES, **settings)
    patches = [torch.full((3, 2, 2), float(number)) for number in range(9)]
    for _ in range(10):
        sample = wrapper({"data": [patches], "label": [-1], "data_idx": [0], "data_valid": [1]})
        order, label = sample["data"][0][:, 0, 0, 0].long().tolist(), int(sample["label"][0])
        assert order == permutation_set(9, 50, 1)[label].tolist()


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="did you mean num_permutations"):
        ShufflePatchesTransform.from_config({"name": "x", "num_permutation": 10})
    with pytest.raises(ConfigError, match="have 1 to 9! = 362880"):
        ShufflePatchesTransform(num_permutations=400_000)
