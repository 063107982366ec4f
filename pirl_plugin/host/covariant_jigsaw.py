"""For the covariant Jigsaw baseline: VISSL's shuffling of patches, with PIRL's permutation sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classy_vision.dataset.transforms import register_transform
from vissl.data.ssl_transforms import ssl_transforms_wrapper
from vissl.data.ssl_transforms.shuffle_img_patches import ShuffleImgPatches

from pirl_plugin.pretext.permutations import permutation_set
from pirl_plugin.validation import check_integer, check_keys, keyword_arguments

NAME = "shuffle_patches_transform"
ssl_transforms_wrapper.DEFAULT_TRANSFORM_TYPES["TRANSFORMS_WITH_LABELS"].append(NAME)


@register_transform(NAME)
class ShufflePatchesTransform(ShuffleImgPatches):
    """VISSL's ShuffleImgPatches with a set T of pirl_plugin.pretext.permutations instead of a downloaded file.

    Its label is the number of the permutation in T.

    Args:
        num_patches: n.
        num_permutations: |T|, which is also the number of classes of the head.
        permutation_seed: which set; as in jigsaw_patch_transform.
    """

    def __init__(self, num_patches: int = 9, num_permutations: int = 2000, permutation_seed: int = 0) -> None:
        check_integer(num_patches, f"{NAME}.num_patches", 1)
        check_integer(permutation_seed, f"{NAME}.permutation_seed", 0)
        super().__init__(perm_file="")
        self.perms = permutation_set(num_patches, num_permutations, permutation_seed)
        self.perm_loaded = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ShufflePatchesTransform:
        """Build from one entry of TRANSFORMS."""
        settings = {key: value for key, value in config.items() if key not in ("name", "indices")}
        check_keys(settings, keyword_arguments(cls) - {"perm_file"}, NAME)
        return cls(**settings)
