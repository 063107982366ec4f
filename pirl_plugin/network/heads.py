"""The heads f and g (Section 2.3) that turn trunk features into embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pirl_plugin.validation import ConfigError, check_boolean, check_choice, check_integer

BRANCHES = ("image", "jigsaw", "rotation", "view")


def projection(in_channels: int, embedding_dim: int, use_mlp: bool) -> nn.Module:
    """Linear(in, d), or Linear(in, in) - ReLU - Linear(in, d)."""
    if not use_mlp:
        return nn.Linear(in_channels, embedding_dim)
    return nn.Sequential(
        nn.Linear(in_channels, in_channels), nn.ReLU(inplace=True), nn.Linear(in_channels, embedding_dim)
    )


class PIRLHead(nn.Module):
    """One branch of PIRL's heads. The branches share nothing but the trunk.

    - image, f(v_I): one projection of the image's features.
    - jigsaw, g(v_It): a projection of each patch's features; an image's patch vectors, concatenated in the
      order of the permutation, go through a second Linear.
    - rotation, view, g(v_It): one projection of the transformed image's features.

    The output is not normalised: the loss uses cosine similarity.

    Args:
        branch: image, jigsaw, rotation or view.
        in_channels: C, features of the trunk (2048 for ResNet-50).
        embedding_dim: d of all projections.
        num_patches: n, patches per image (jigsaw only).
        use_mlp: a hidden layer of C units with ReLU in the projection (not in the paper; VISSL's MLP head).
        patch_relu: a ReLU after each patch's projection (jigsaw only; not in the paper; VISSL's MLP head).
        batch_norm: normalise each of the d numbers to mean 0 and variance 1 over a GPU's batch (not in the paper). A
            small network that cannot yet tell images apart lowers its loss by making all embeddings alike, and small
            data sets stay there (docs/small_data_sets.md); this prevents it. Eval mode uses running averages.

    Raises:
        ConfigError: for an unknown branch or a value out of range.

    Example:
        >>> f, g = PIRLHead("image", in_channels=512), PIRLHead("jigsaw", in_channels=512)
        >>> f(torch.randn(4, 512)).shape, g(torch.randn(4 * 9, 512)).shape
        (torch.Size([4, 128]), torch.Size([4, 128]))
    """

    def __init__(
        self,
        branch: str,
        in_channels: int = 2048,
        embedding_dim: int = 128,
        num_patches: int = 9,
        use_mlp: bool = False,
        patch_relu: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.branch = check_choice(branch, BRANCHES, "pirl_heads.branch")
        self.in_channels = check_integer(in_channels, "pirl_heads.in_channels", 1)
        self.embedding_dim = check_integer(embedding_dim, "pirl_heads.embedding_dim", 1)
        self.num_patches = check_integer(num_patches, "pirl_heads.num_patches", 1) if branch == "jigsaw" else 1
        self.projection = projection(in_channels, embedding_dim, check_boolean(use_mlp, "pirl_heads.use_mlp"))
        self.patch_relu = check_boolean(patch_relu, "pirl_heads.patch_relu")
        if patch_relu and branch != "jigsaw":
            raise ConfigError(f"pirl_heads.patch_relu is true, but the branch {branch!r} has no patches.")
        if branch == "jigsaw":
            self.combine = nn.Linear(num_patches * embedding_dim, embedding_dim)
        self.batch_norm = check_boolean(batch_norm, "pirl_heads.batch_norm")
        if batch_norm:  # no learned scale or shift: they would let the embeddings become alike again
            self.normalization = nn.BatchNorm1d(embedding_dim, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """features [B * n, C] or [B * n, C, 1, 1] (n = 1 but for jigsaw) -> embeddings [B, d].

        Raises:
            ValueError: if the features do not fit the head.
        """
        if isinstance(features, list):
            (features,) = features
        features = torch.flatten(features, start_dim=1)
        if features.shape[1] != self.in_channels:
            raise ValueError(
                f"The trunk gives {features.shape[1]} features per view, but pirl_heads.in_channels "
                f"({self.branch} branch) is {self.in_channels}."
            )
        if len(features) % self.num_patches:
            raise ValueError(
                f"pirl_heads.num_patches is {self.num_patches}, but the batch holds {len(features)} patches: "
                f"the pretext transform yields another number of patches per image."
            )
        embeddings = self.projection(features)
        if self.branch == "jigsaw":
            embeddings = embeddings.relu() if self.patch_relu else embeddings
            embeddings = self.combine(embeddings.reshape(-1, self.num_patches * self.embedding_dim))
        if not self.batch_norm:
            return embeddings
        if self.training and len(embeddings) < 2:  # a batch with a single readable image has no variance
            norm = self.normalization
            return functional.batch_norm(embeddings, norm.running_mean, norm.running_var, eps=norm.eps)
        return self.normalization(embeddings)
