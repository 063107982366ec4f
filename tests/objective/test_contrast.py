"""The losses against references written from the equations, in double precision, one image at a time."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from pirl_plugin.objective import contrast
from pirl_plugin.objective.forms import FORMS


def reference_nce(positive, negatives, keep):
    """Eq. 3-4, as read in contrast.nce's docstring."""
    losses = []
    for s_positive, s_negatives, kept in zip(positive, negatives, keep, strict=True):
        chosen = s_negatives[kept]
        total = s_positive.exp() + chosen.exp().sum()
        loss = -torch.log(s_positive.exp() / total)
        for s in chosen:
            loss = loss - torch.log(1 - s.exp() / total)
        losses.append(loss)
    return torch.stack(losses)


def reference_infonce(positive, negatives, keep):
    return torch.stack(
        [-torch.log(p.exp() / (p.exp() + n[k].exp().sum())) for p, n, k in zip(positive, negatives, keep, strict=True)]
    )


def reference_npid(positive, negatives, keep, z, num_rows):
    losses = []
    for p, n, k in zip(positive, negatives, keep, strict=True):
        chosen = n[k]
        noise = len(chosen) / num_rows
        p_share = (p.exp() / z) / (p.exp() / z + noise)
        loss = -torch.log(p_share)
        for s in chosen:
            loss = loss - torch.log(1 - (s.exp() / z) / (s.exp() / z + noise))
        losses.append(loss)
    return torch.stack(losses)


def scores(seed, batch=4, num_negatives=7, tau=0.07, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    positive = (torch.rand(batch, generator=generator, dtype=torch.float64) * 2 - 1) / tau
    negatives = (torch.rand(batch, num_negatives, generator=generator, dtype=torch.float64) * 2 - 1) / tau
    keep = torch.rand(batch, num_negatives, generator=generator) < 0.7
    keep[:, 0] = True
    return positive.to(dtype), negatives.to(dtype), keep


def forms(num_rows=50):
    log_z = torch.tensor(math.log(300.0), dtype=torch.float64)
    return {
        "nce": (contrast.nce, reference_nce),
        "infonce": (contrast.infonce, reference_infonce),
        "npid": (
            lambda p, n, k: contrast.npid(p, n, log_z, num_rows, k),
            lambda p, n, k: reference_npid(p, n, k, log_z.exp(), num_rows),
        ),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_values_and_gradients_equal_the_equations(form, masked, seed):
    positive, negatives, keep = scores(seed, tau=0.5)
    if not masked:
        keep = torch.ones_like(keep)
    ours, reference = forms()[form]
    results = []
    for function in (ours, reference):
        p, n = positive.clone().requires_grad_(), negatives.clone().requires_grad_()
        loss = function(p, n, keep) if function is reference or masked else function(p, n, None)
        loss.sum().backward()
        results.append((loss.detach(), p.grad, n.grad))
    for ours_result, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours_result, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_passes(form):
    positive, negatives, keep = scores(11, tau=0.3)
    ours, _ = forms()[form]
    assert gradcheck(lambda p, n: ours(p, n, keep), (positive.requires_grad_(), negatives.requires_grad_()), atol=1e-6)


def test_nce_stays_finite_and_right_when_one_negative_takes_everything():
    # In float32, 1 - share is 0 here; the loss is still -log of the tiny rest.
    positive = torch.tensor([-14.0], requires_grad=True)
    negatives = torch.tensor([[14.2, -14.0, -13.0]], requires_grad=True)
    loss = contrast.nce(positive, negatives)
    loss.sum().backward()
    expected = reference_nce(positive.double(), negatives.double(), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(positive.grad).all() and torch.isfinite(negatives.grad).all()


def test_nce_is_close_to_infonce_plus_one_minus_share_when_all_shares_are_small():
    positive, negatives = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 5000, dtype=torch.float64)
    share = 1 / 5001
    expected = contrast.infonce(positive, negatives) + (1 - share)
    torch.testing.assert_close(contrast.nce(positive, negatives), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_scores_are_summed_in_float32(form, dtype):
    positive, negatives, keep = scores(3, num_negatives=300, tau=0.2, dtype=dtype)
    ours, _ = forms()[form]
    loss = ours(positive, negatives, keep)
    assert loss.dtype == torch.float32
    exact = ours(positive.double(), negatives.double(), keep)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_z_is_the_data_sets_size_times_the_mean_of_the_exponentials():
    _, negatives, keep = scores(5)
    estimate = contrast.estimate_log_z(negatives, 50, keep)
    torch.testing.assert_close(estimate.exp(), 50 * negatives[keep].exp().mean())
    torch.testing.assert_close(contrast.estimate_log_z(negatives, 50).exp(), 50 * negatives.exp().mean())
