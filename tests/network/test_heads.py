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
    with pytest.raises(ValueError, match=r"gives 7 features per view, but pirl_heads.in_channels .* is 8"):
        PIRLHead("image", in_channels=8)(torch.randn(2, 7))
    with pytest.raises(ValueError, match="num_patches is 9, but the batch holds 8 patches"):
        PIRLHead("jigsaw", in_channels=8)(torch.randn(8, 8))


def test_an_unknown_branch_is_refused():
    with pytest.raises(ConfigError, match=r"branch is 'jigsa' \(did you mean jigsaw\?\)"):
        PIRLHead("jigsa")


@pytest.mark.parametrize("branch", ["image", "jigsaw", "rotation"])
def test_with_batch_norm_embeddings_have_mean_0_and_variance_1_over_the_batch(branch):
    torch.manual_seed(0)
    plain, normalised = (PIRLHead(branch, 8, 4, num_patches=3, batch_norm=on) for on in (False, True))
    assert not normalised.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in normalised.named_parameters()]
    features = torch.randn(24 * plain.num_patches, 8) + 5  # all alike, but for a little
    raw, got = plain(features), normalised(features)
    torch.testing.assert_close(got, (raw - raw.mean(0)) / (raw.var(0, unbiased=False) + 1e-5).sqrt())
    for _ in range(200):
        normalised(features)
    torch.testing.assert_close(normalised.eval()(features), got, rtol=0.05, atol=0.05)


def test_the_only_image_of_its_batch_that_could_be_read_is_normalised_by_the_running_averages():
    head = PIRLHead("image", 8, 4, batch_norm=True)
    for _ in range(50):
        head(torch.randn(16, 8) + 3)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    alone = torch.randn(1, 8)
    got = head(alone)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    torch.testing.assert_close(got, head.eval()(alone))
