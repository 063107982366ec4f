"""The fused contrasts against autograd on the plain ones: values and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from pirl_plugin.objective import contrast, fused_contrast
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.fused_contrast import contrast_per_image, contrast_shared

IMAGES, DIM, TAU = 60, 16, 0.2


def plain(form, positive, negatives, keep, threshold, num_rows=IMAGES):
    if form == "npid":
        counts = keep.sum(-1).to(positive.dtype)
        log_z = threshold - counts.log() + math.log(num_rows)
        return torch.stack(
            [
                contrast.npid(p[None], n[None], z, num_rows, k[None])[0]
                for p, n, k, z in zip(positive, negatives, keep, log_z, strict=True)
            ]
        )
    return getattr(contrast, form)(positive, negatives, keep)


def score_sets():
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(5, 40, generator=generator, dtype=torch.float64) * 3
    peaked = ordinary.clone()
    peaked[:, 3] += 25  # a negative takes nearly everything
    winning = ordinary.clone()
    winning[:, 0] += 25  # the positive does
    tied = ordinary.clone()
    tied[:, 5] = tied[:, 9] = tied.max(1).values + 12
    coldest = torch.full_like(ordinary, -40)  # as far apart as the lowest temperature allows
    coldest[:, 3] = 40
    return {"ordinary": ordinary, "peaked": peaked, "winning": winning, "tied": tied, "coldest": coldest}


@pytest.mark.parametrize("name", list(score_sets()))
@pytest.mark.parametrize("form", FORMS)
def test_the_closed_forms_are_the_derivatives_of_the_plain_losses(form, name):
    scores = score_sets()[name]
    positive, negatives = scores[:, 0].clone().requires_grad_(), scores[:, 1:].clone().requires_grad_()
    keep = torch.ones_like(negatives, dtype=torch.bool)
    keep[:, 7] = False
    threshold = torch.full((5,), 1.5, dtype=torch.float64)
    expected = plain(form, positive, negatives, keep, threshold)
    expected.sum().backward()
    masked = negatives.detach().masked_fill(~keep, -math.inf)
    loss, positive_weight, weights = FORMS[form].loss_and_weights(positive.detach(), masked, threshold)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(positive_weight, positive.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(weights, negatives.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", list(score_sets()))
@pytest.mark.parametrize("form", FORMS)
def test_the_closed_forms_keep_their_digits_in_float32(form, name):
    scores = score_sets()[name]
    threshold = torch.full((5,), 1.5, dtype=torch.float64)
    exact = FORMS[form].loss_and_weights(scores[:, 0].clone(), scores[:, 1:].clone(), threshold)
    single = FORMS[form].loss_and_weights(scores[:, 0].float(), scores[:, 1:].float(), threshold.float())
    for ours, expected in zip(single, exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=2e-4, atol=1e-5)


def bank(dtype=torch.float32):
    rows = normalize(torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    return rows.to(dtype)


def problem(terms=2, batch=7, num_negatives=23, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    queries = normalize(torch.randn(terms, batch, DIM, generator=generator), dim=-1).to(dtype).requires_grad_()
    own = torch.randperm(IMAGES, generator=generator)[:batch]
    per_image = torch.randint(IMAGES, (batch, num_negatives), generator=generator)
    per_image = torch.where(per_image == own[:, None], (per_image + 1) % IMAGES, per_image)
    shared = torch.randint(IMAGES, (num_negatives,), generator=generator)
    shared[4] = own[2]  # one image's own row is in the draw
    return queries, own, per_image, shared


def plain_losses(form, queries, rows, own, drawn, threshold):
    """Everything gathered, autograd through everything."""
    rows = rows.to(queries.dtype)
    numbers = torch.arange(IMAGES) if drawn is None else drawn
    numbers = numbers.expand(len(own), -1) if numbers.dim() == 1 else numbers
    keep = numbers != own[:, None]
    losses = []
    for term, query in enumerate(queries):
        positive = (query * rows[own]).sum(1) / TAU
        negatives = torch.einsum("bd,bnd->bn", query, rows[numbers]) / TAU
        losses.append(plain(form, positive, negatives, keep, None if threshold is None else threshold[term]))
    return torch.stack(losses)


@pytest.fixture(params=[None, 2000], ids=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(fused_contrast, "CHUNK_BYTES", request.param)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["per_image", "shared", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_mode_equals_the_plain_one(form, mode, bank_dtype, terms, chunks):
    queries, own, per_image, shared = problem(terms)
    rows = bank(bank_dtype)
    drawn = {"per_image": per_image, "shared": shared, "all": None}[mode]
    threshold = torch.linspace(-1, 1, terms)[:, None].expand(terms, len(own)) if form == "npid" else None
    upstream = torch.rand(terms, len(own), generator=torch.Generator().manual_seed(3))

    expected = plain_losses(form, queries, rows, own, drawn, threshold)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), queries)
    positives = rows[own].float()
    if mode == "per_image":
        got = contrast_per_image(FORMS[form], queries, positives, rows, per_image, TAU, threshold)
    else:
        table = rows if drawn is None else rows[drawn]
        got = contrast_shared(FORMS[form], queries, positives, table, drawn, own, TAU, threshold)
    (gradient,) = torch.autograd.grad((got * upstream).sum(), queries)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_in_double(form):
    queries, own, per_image, shared = problem(batch=3, num_negatives=9, dtype=torch.float64)
    rows = bank(torch.float64)
    limit = torch.tensor([0.3, -0.4], dtype=torch.float64) if form == "npid" else None
    wide = None if limit is None else limit[:, None].expand(2, 3)
    for function in (
        lambda q: contrast_per_image(FORMS[form], q, rows[own], rows, per_image, TAU, wide),
        lambda q: contrast_shared(FORMS[form], q, rows[own], rows[shared], shared, own, TAU, wide),
        lambda q: contrast_shared(FORMS[form], q, rows[own], rows, None, own, TAU, wide),
    ):
        assert torch.autograd.gradcheck(function, queries)


def test_autocast_does_not_reach_the_sums():
    queries, own, per_image, _ = problem()
    rows = bank()
    expected = contrast_per_image(FORMS["nce"], queries, rows[own], rows, per_image, TAU)
    with torch.autocast("cpu", torch.bfloat16):
        got = contrast_per_image(FORMS["nce"], queries, rows[own], rows, per_image, TAU)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_no_tensor_of_batch_by_negatives_by_dim_is_ever_made_and_rows_are_read_once(monkeypatch):
    monkeypatch.setattr(fused_contrast, "CHUNK_BYTES", 4 * 23 * DIM * 2)  # room for the rows of two images
    queries, own, per_image, _ = problem()
    rows = bank()
    with Operations() as seen:
        contrast_per_image(FORMS["nce"], queries, rows[own], rows, per_image, TAU).sum().backward()
    sizes = [size for name, size in seen.calls if "index_select" in name]
    assert sum(sizes) == per_image.numel() * DIM
    assert max(size for _, size in seen.calls) <= 2 * 23 * DIM


class Operations(TorchDispatchMode):
    """Records every operation with the size of what it returns."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.calls.append((str(function), result.numel()))
        return result


def test_blocks_of_a_bfloat16_bank_are_never_all_brought_to_float32(monkeypatch):
    monkeypatch.setattr(fused_contrast, "CHUNK_BYTES", 4 * 10 * DIM)
    queries, own, _, _ = problem(batch=3)
    positives, rows = bank()[own], bank(torch.bfloat16)
    with Operations() as seen:
        contrast_shared(FORMS["nce"], queries, positives, rows, None, own, TAU)
    assert max(size for name, size in seen.calls if "_to_copy" in name) == 10 * DIM
