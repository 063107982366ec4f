"""A contrast form of one's own: its plain definition alone trains, alone and over ranks."""

import logging
import math

import pytest
import torch
from torch import nn

from pirl_plugin.distributed import Alone
from pirl_plugin.objective import contrast
from pirl_plugin.objective.closed_forms import by_autograd
from pirl_plugin.objective.forms import FORMS, ContrastForm, register_form
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.validation import ConfigError


@pytest.fixture
def own_form():
    """A function that registers a form for one test."""
    names = []

    def register(name, definition):
        names.append(name)
        return register_form(name)(definition)

    yield register
    for name in names:
        FORMS._parts.pop(name, None)


def logistic(positive, negatives):
    return nn.functional.softplus(-positive) + nn.functional.softplus(negatives).mean(dim=1)


@pytest.mark.parametrize("negatives", ["per_image", "shared", "all"])
@pytest.mark.parametrize("form", ["nce", "infonce"])
def test_a_definition_alone_gives_the_loss_and_gradients_of_the_closed_form(own_form, form, negatives):
    own_form(f"plain_{form}", getattr(contrast, form))
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 6, 8, generator=generator)
    target, results = torch.tensor([3, 0, 7, -1, 7, 12]), []
    for name in (form, f"plain_{form}"):
        loss = PIRLLoss(40, contrast=name, negatives=negatives, num_negatives=15, embedding_dim=8, temperature=0.2)
        image, pretext = embeddings.clone().requires_grad_().unbind()
        image.retain_grad(), pretext.retain_grad()
        value = loss([image, pretext], target)
        value.backward()
        results.append((value.detach(), image.grad, pretext.grad, loss.report, loss.memory_bank.rows))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_an_unknown_form_is_refused_and_never_trained_as_another(own_form):
    with pytest.raises(ConfigError, match=r"contrast is 'triplet'; it must be one of nce, npid, infonce"):
        PIRLLoss(40, contrast="triplet", num_negatives=15)
    own_form("logistic", logistic)
    loss = PIRLLoss(40, contrast="logistic", negatives="all", embedding_dim=4, temperature=1.0)
    image = nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    rows = loss.memory_bank.rows.clone()
    scores = image @ rows.T
    keep = ~torch.eye(40, dtype=torch.bool)[:3]
    expected = logistic(scores.diagonal(), scores.masked_fill(~keep, -math.inf)).mean()
    torch.testing.assert_close(loss([image, image], torch.arange(3)), expected)


def test_the_log_says_that_a_form_without_a_closed_form_is_slower(own_form, caplog):
    own_form("logistic", logistic)
    embeddings = torch.randn(2, 3, 128, requires_grad=True)
    with caplog.at_level(logging.INFO):
        for name in ("nce", "logistic"):
            PIRLLoss(400, contrast=name, num_negatives=15)(list(embeddings), torch.arange(3))
    (line,) = [record.getMessage() for record in caplog.records if "closed form" in record.getMessage()]
    assert "'logistic'" in line


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        (lambda p, n: (p - n.mean(1)).square(), "must be finite"),  # it reads the -inf of one that does not count
        (lambda p, n: n.clamp(min=-9) - p.unsqueeze(1), "one loss each"),
    ],
)
def test_a_definition_that_cannot_train_is_refused_before_training(own_form, definition, sentence):
    own_form("wrong", definition)
    with pytest.raises(ConfigError, match=sentence):
        PIRLLoss(40, contrast="wrong", num_negatives=15)


def test_scores_of_any_shape_come_back_in_it():
    positive, negatives = torch.randn(2, 3), torch.randn(2, 3, 5)
    loss, of_positive, of_negatives = by_autograd(contrast.infonce, positive, negatives.clone(), Alone())
    expected = FORMS["infonce"].loss_and_weights(positive, negatives.clone())
    for got, wanted in zip((loss, of_positive, of_negatives), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_every_form_of_ours_has_a_slow_reference_and_a_closed_form():
    for form in FORMS.values():
        assert isinstance(form, ContrastForm) and form.definition is getattr(contrast, form.name)
        assert form.closed_form is not None


def test_a_form_that_leaves_its_negatives_out_is_taken_at_its_word(own_form):
    own_form("attraction", lambda positive, negatives: -positive)
    image = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = PIRLLoss(40, contrast="attraction", negatives="all", embedding_dim=8, temperature=1.0, lambda_=0.0)
    positives = loss.memory_bank.rows[:3].clone()
    expected = -(nn.functional.normalize(image, dim=1) * positives).sum(1).mean()
    torch.testing.assert_close(loss(image, torch.arange(3)), expected)


def test_a_cell_that_is_run_again_registers_its_form_again(own_form):
    def hinge(positive, negatives):
        return (negatives - positive.unsqueeze(1)).clamp(min=0).mean(1)

    own_form("own_hinge", hinge)
    again = type(hinge)(hinge.__code__, hinge.__globals__, hinge.__name__)
    again.__qualname__, again.__module__ = hinge.__qualname__, hinge.__module__
    own_form("own_hinge", again)
    assert FORMS["own_hinge"].definition is again
    with pytest.raises(ConfigError, match=r"already a contrast form named 'nce', of pirl_plugin.objective.contrast"):
        register_form("nce")(hinge)


def test_a_form_with_z_needs_a_closed_form():
    with pytest.raises(ConfigError, match="uses Z and has no closed form"):
        ContrastForm("half", logistic, uses_z=True)
