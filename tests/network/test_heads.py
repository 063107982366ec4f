import pytest
import torch

from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.validation import ConfigError


def test_the_jigsaw_branch_projects_each_patch_and_joins_them_in_their_order():
    head = PIRLHead("jigsaw", in_channels=8, embedding_dim=4, num_patches=3)
    features = torch.randn(6, 8)
    expected = []
    for image in range(2):
        patches = [head.projection(features[image * 3 + place]) for place in range(3)]
        expected.append(head.combine(torch.cat(patches)))
    torch.testing.assert_close(head(features), torch.stack(expected))
    swapped = features.clone()
    swapped[[0, 1]] = features[[1, 0]]
    assert not torch.allclose(head(swapped)[0], head(features)[0])


@pytest.mark.parametrize("branch", ["image", "rotation"])
def test_the_other_branches_are_one_linear_as_in_the_paper(branch):
    head = PIRLHead(branch, in_channels=8, embedding_dim=4)
    assert sum(p.numel() for p in head.parameters()) == 8 * 4 + 4
    features = torch.randn(5, 8)
    torch.testing.assert_close(head(features), head.projection(features))
    torch.testing.assert_close(head(features[:, :, None, None]), head(features))


def test_the_papers_jigsaw_head_has_the_papers_sizes():
    head = PIRLHead("jigsaw")
    assert head.projection.weight.shape == (128, 2048) and head.combine.weight.shape == (128, 1152)


def test_the_mlp_has_one_hidden_layer_with_relu():
    head = PIRLHead("image", in_channels=8, embedding_dim=4, use_mlp=True)
    first, relu, second = head.projection
    assert first.weight.shape == (8, 8) and isinstance(relu, torch.nn.ReLU) and second.weight.shape == (4, 8)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"gives 7 features a view, but pirl_heads.in_channels .* is 8"):
        PIRLHead("image", in_channels=8)(torch.randn(2, 7))
    with pytest.raises(ValueError, match="num_patches is 9, but the batch holds 8 patches"):
        PIRLHead("jigsaw", in_channels=8)(torch.randn(8, 8))


def test_an_unknown_branch_is_refused():
    with pytest.raises(ConfigError, match=r"branch is 'jigsa' \(did you mean jigsaw\?\)"):
        PIRLHead("jigsa")
