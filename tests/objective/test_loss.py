import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.objective import contrast
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.objective.negatives import draw_negatives
from pirl_plugin.validation import ConfigError

IMAGES, DIM = 40, 16


def make_loss(**settings) -> PIRLLoss:
    return PIRLLoss(**{"num_train_samples": IMAGES, "num_negatives": 12, "embedding_dim": DIM, **settings})


def batch(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    image, pretext = torch.randn(2, size, DIM, generator=generator)
    return image.requires_grad_(), pretext.requires_grad_(), torch.randperm(IMAGES, generator=generator)[:size]


def equation_5(loss, image, pretext, target):
    """L = lambda L(m_I, g) + (1 - lambda) L(m_I, f), an image at a time, from the loss's own draws."""
    drawn = draw_negatives(target, IMAGES, loss.num_negatives, loss.seed, loss.steps)
    bank, total = loss.memory_bank.rows, 0
    for weight, embedding in ((1 - loss.lambda_, image), (loss.lambda_, pretext)):
        for query, index, others in zip(embedding, target, drawn, strict=True):
            cosine = lambda i: torch.cosine_similarity(query, bank[i], dim=0)  # noqa: B023, E731
            positive = cosine(index) / loss.temperature
            negatives = torch.stack([cosine(i) for i in others]) / loss.temperature
            form = getattr(contrast, loss.form.name)
            total = total + weight * form(positive[None], negatives[None])[0]
    return total / len(target)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("form", ["nce", "infonce"])
def test_value_and_gradients_are_those_of_equation_5(form, lambda_):
    results = []
    for function in (lambda m, *b: m([b[0], b[1]], b[2]), equation_5):
        loss = make_loss(contrast=form, lambda_=lambda_)
        image, pretext, target = batch()
        value = function(loss, image, pretext, target)
        value.backward()
        grads = [torch.zeros_like(image) if e.grad is None else e.grad for e in (image, pretext)]
        results.append((value.detach(), *grads))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_the_bank_moves_to_the_image_embedding_and_never_to_the_pretext_one():
    loss = make_loss()
    image, pretext, target = batch()
    before = loss.memory_bank.rows.clone()
    loss([image, pretext], target)
    expected = before.clone()
    expected[target] = normalize(0.5 * before[target] + 0.5 * normalize(image.detach(), dim=1), dim=1)
    torch.testing.assert_close(loss.memory_bank.rows, expected)


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_the_bank_is_left_alone_outside_training(how):
    loss = make_loss()
    image, pretext, target = batch()
    before = loss.memory_bank.rows.clone()
    if how == "eval":
        loss.eval()([image, pretext], target)
    else:
        with torch.no_grad():
            loss([image, pretext], target)
    assert torch.equal(loss.memory_bank.rows, before)


@pytest.mark.parametrize("form", FORMS)
def test_images_that_were_not_read_count_nowhere(form):
    image, pretext, target = batch()
    some = make_loss(contrast=form)
    target_with_gaps = target.clone()
    target_with_gaps[[1, 4]] = -1
    before = some.memory_bank.rows.clone()
    value = some([image, pretext], target_with_gaps)
    value.backward()
    assert image.grad[[1, 4]].abs().sum() == 0 and pretext.grad[[1, 4]].abs().sum() == 0
    assert torch.equal(some.memory_bank.rows[target[[1, 4]]], before[target[[1, 4]]])
    assert not torch.equal(some.memory_bank.rows[target[0]], before[target[0]])


def test_a_batch_of_which_nothing_was_read_gives_zero_and_changes_nothing():
    loss = make_loss(contrast="npid")
    image, pretext, _ = batch()
    before = loss.memory_bank.rows.clone()
    value = loss([image, pretext], torch.full((6,), -1))
    value.backward()
    assert value == 0 and torch.equal(loss.memory_bank.rows, before)
    assert image.grad.abs().sum() == 0 and loss.log_z.isnan().all()


def test_with_fill_first_an_image_counts_from_its_second_visit():
    loss = make_loss(memory_bank={"fill_first": True})
    image, pretext, target = batch()
    first = loss([image, pretext], target[[0, 1, 2, 0, 1, 2]])
    assert first == 0
    second = loss([image, pretext], target)
    second.backward()
    assert (image.grad[:3].abs().sum(1) > 0).all() and image.grad[3:].abs().sum() == 0
    assert int(loss.memory_bank.updated.sum()) == 6


def test_indices_outside_the_bank_or_of_another_number_are_refused():
    image, pretext, target = batch()
    target[3] = IMAGES
    with pytest.raises(ValueError, match=r"image index 40, but its bank has 40 rows"):
        make_loss()([image, pretext], target)
    with pytest.raises(ValueError, match=r"\(5,\) image indices for 6 embeddings"):
        make_loss()([image, pretext], target[:5])
    for other in (torch.int32, torch.float32):  # int32 would draw other negatives
        with pytest.raises(ValueError, match=f"image indices of {other}; they must be torch.int64"):
            make_loss()([image, pretext], target.to(other))
    for few in (image[:, :4], image[:0]):
        with pytest.raises(ValueError, match=r"embeddings \[\d, \d+\]; it takes \[images, \d+\], as its bank"):
            make_loss()([few, pretext], target)


def test_a_batch_of_one_works():
    image, pretext, target = batch(size=1)
    assert torch.isfinite(make_loss()([image, pretext], target))


def test_lambda_zero_needs_no_pretext_views():
    image, pretext, target = batch()
    alone = make_loss(lambda_=0.0)(image, target)
    both = make_loss(lambda_=0.0)([image, pretext], target)
    torch.testing.assert_close(alone, both)
    with pytest.raises(ConfigError, match="no embedding of the pretext views"):
        make_loss()(image, target)


def test_a_resumed_loss_draws_what_the_uninterrupted_one_draws():
    whole, first, second = make_loss(), make_loss(), make_loss()
    for step in range(4):
        image, pretext, target = batch(step)
        expected = whole([image, pretext], target)
        if step == 2:
            second.load_state_dict(first.state_dict())
        got = (first if step < 2 else second)([image, pretext], target)
        assert torch.equal(expected, got)
    assert torch.equal(whole.memory_bank.rows, second.memory_bank.rows)


def test_z_is_set_by_the_first_batch_and_then_follows():
    loss = make_loss(contrast="npid", z_momentum=0.75)
    image, pretext, target = batch()
    drawn = draw_negatives(target, IMAGES, 12, loss.seed, loss.steps)
    negatives = torch.einsum("bd,bnd->bn", normalize(image, dim=1), loss.memory_bank.lookup(drawn)) / 0.07
    loss([image, pretext], target)
    first = loss.log_z.clone()
    torch.testing.assert_close(first[0], contrast.estimate_log_z(negatives, IMAGES), rtol=1e-5, atol=1e-5)
    drawn = draw_negatives(target, IMAGES, 12, loss.seed, loss.steps)
    negatives = torch.einsum("bd,bnd->bn", normalize(image, dim=1), loss.memory_bank.lookup(drawn)) / 0.07
    loss([image, pretext], target)
    expected = 0.75 * first[0] + 0.25 * contrast.estimate_log_z(negatives, IMAGES)
    torch.testing.assert_close(loss.log_z[0], expected, rtol=1e-5, atol=1e-5)


def train(form: str, steps: int = 300, lr: float = 1.0, **settings) -> list[float]:
    """Losses of some steps of free embeddings on 64 images: what small data does to a loss."""
    torch.manual_seed(0)
    loss = PIRLLoss(64, contrast=form, num_negatives=48, embedding_dim=16, **settings)
    image = torch.nn.Parameter(torch.randn(64, 16) + 1)
    pretext = torch.nn.Parameter(torch.randn(64, 16) + 1)
    optimizer = torch.optim.SGD([image, pretext], lr=lr, momentum=0.9)
    values = []
    for step in range(steps):
        target = torch.randperm(64, generator=torch.Generator().manual_seed(step))[:16]
        value = loss([image[target], pretext[target]], target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values


@pytest.mark.parametrize("form", FORMS)
def test_no_form_rises_on_small_data(form):
    values = train(form)
    assert sum(values[-20:]) / 20 < 0.8 * sum(values[:5]) / 5


def test_a_frozen_z_lets_the_loss_rise_on_small_data():
    def rise(seed: int, momentum: float) -> float:
        losses = train("npid", 60, 0.05, z_momentum=momentum, seed=seed)
        return max(losses) / losses[0]

    frozen, following = ([rise(seed, momentum) for seed in range(5)] for momentum in (1.0, 0.9))
    assert np.mean(frozen) > 2 and max(following) < 1.6
    assert all(first > second for first, second in zip(frozen, following, strict=True))


@pytest.mark.parametrize("start", ["fill_first", "an unread batch"])
def test_z_waits_for_the_first_batch_that_counts(start):
    loss = make_loss(contrast="npid", memory_bank={"fill_first": start == "fill_first"})
    image, pretext, target = batch()
    first = loss([image, pretext], target if start == "fill_first" else torch.full((6,), -1))
    second = loss([image, pretext], target)
    assert first == 0 and loss.log_z.isfinite().all()
    # With Z = 1 the loss would be near N log(exp(s)), in the hundreds.
    assert float(second) < 30


def test_autocast_does_not_reach_the_bank():
    image, pretext, target = batch()
    plain, automatic = make_loss(), make_loss()
    plain([image, pretext], target)
    with torch.autocast("cpu", torch.bfloat16):
        automatic([image, pretext], target)
    assert torch.equal(plain.memory_bank.rows, automatic.memory_bank.rows)


def test_a_bank_of_ones_own_can_have_keys_of_its_own():
    from pirl_plugin.objective.memory_bank import MEMORY_BANKS, MemoryBank, register_memory_bank

    @register_memory_bank("scaled_bank")
    class ScaledBank(MemoryBank):
        def __init__(self, num_rows, dim, scale=1.0, **common):
            super().__init__(num_rows, dim, **common)
            self.scale = scale

    try:
        bank = make_loss(memory_bank={"name": "scaled_bank", "scale": 2.0, "momentum": 0.25}).memory_bank
        assert bank.scale == 2.0 and bank.momentum == 0.25
    finally:
        MEMORY_BANKS._parts.pop("scaled_bank")


def test_the_report_gives_similarities_and_the_share_of_negatives_above_the_positive():
    loss = make_loss()
    image, pretext, target = batch()
    loss([image, pretext], target)
    assert set(loss.report) == {
        f"{term}/{key}"
        for term in ("image", "pretext")
        for key in ("positive_similarity", "negative_similarity", "negatives_above_positive")
    }
    assert all(-1 <= float(value) <= 1 for value in loss.report.values())


def test_embeddings_that_are_not_finite_show_in_the_loss_and_stay_out_of_the_bank():
    loss = make_loss()
    image, pretext, target = batch()
    before = loss.memory_bank.rows.clone()
    with torch.no_grad():
        image[2] = torch.nan
    assert not torch.isfinite(loss([image, pretext], target))
    rows = loss.memory_bank.rows
    assert rows.isfinite().all() and torch.equal(rows[target[2]], before[target[2]])
    assert not torch.equal(rows[target[0]], before[target[0]])


@pytest.mark.parametrize(
    ("negatives", "num_negatives", "said"),
    [("shared", 20, True), ("shared", 19, False), ("per_image", 5, True), ("all", 20, False)],
)
def test_the_log_says_where_all_costs_no_more(caplog, negatives, num_negatives, said):
    caplog.set_level("INFO")
    loss = make_loss(negatives=negatives, num_negatives=num_negatives)
    assert "negatives: all" not in caplog.text  # configs are tried out on two images
    image, pretext, target = batch()
    loss([image, pretext], target)
    assert ("negatives: all" in caplog.text) == said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_negatives": 40}, "num_negatives is 40, but the data set has 40 images, which leaves at most 39"),
        ({"contrast": "ncee"}, r"contrast is 'ncee' \(did you mean nce\?\)"),
        ({"temperature": 0}, "must be a number at least 0.025"),
        ({"lambda_": 1.5}, "at most 1"),
        ({"memory_bank": {"name": "memory_bnk"}}, "did you mean memory_bank"),
        ({"memory_bank": {"momentun": 0.5}}, "did you mean momentum"),
        ({"lambda_": -0.1}, "at least 0"),
        ({"z_momentum": 1.5}, "z_momentum is 1.5; it must be a number .*at most 1"),
        ({"z_momentum": -0.1}, "z_momentum is -0.1; it must be a number at least 0"),
        ({"seed": -1}, "seed is -1; it must be a whole number at least 0"),
        ({"report_frequency": 0}, "report_frequency is 0; it must be a whole number at least 1"),
        ({"num_negatives": 0}, "num_negatives .* is 0; it must be a whole number at least 1"),
        ({"num_train_samples": 1, "num_negatives": 1}, "is 1; it must be a whole number at least 2"),
        ({"num_negativs": 3}, "did you mean num_negatives"),
        ({"num_negatives": 3.5}, "whole number"),
        ({"memory_bank": {"fill_first": "no"}}, "fill_first is 'no'; it must be true or false"),
        ({"memory_bank": "sharded_memory_bank"}, "must be a mapping of keys to values"),
    ],
)
def test_bad_configs_are_refused(config, message):
    base = {"name": "pirl_loss", "num_train_samples": IMAGES, "num_negatives": 12, "embedding_dim": DIM}
    with pytest.raises(ConfigError, match=message):
        PIRLLoss.from_config({**base, **config})


def test_the_ends_of_every_range_are_allowed():
    for key, ends in {
        "lambda_": (0, 1), "z_momentum": (0, 1), "seed": (0,), "report_frequency": (1,), "temperature": (0.025,),
        "num_negatives": (1, IMAGES - 1),
    }.items():  # fmt: skip
        for end in ends:
            loss = make_loss(**{key: end})
            assert getattr(loss, key) == end
    PIRLLoss(num_train_samples=2, num_negatives=1, embedding_dim=DIM)


def test_steps_are_counted_one_by_one_and_parts_of_a_batch_as_one():
    loss = make_loss()
    image, pretext, target = batch()
    for number in (1, 2):
        loss([image, pretext], target)
        assert loss.steps == number
    loss.hold_updates(True)
    loss([image, pretext], target)
    loss([image, pretext], target)
    assert loss.steps == 2
    loss.hold_updates(False)
    assert loss.steps == 3


@pytest.mark.parametrize("form", FORMS)
def test_an_image_that_was_not_read_has_no_gradient_even_where_its_embedding_is_not_a_number(form):
    image, pretext, target = batch()
    target[2] = -1
    gradients = []
    for value in (1.0, torch.nan):
        loss = make_loss(contrast=form)
        leaves = [
            embeddings.detach().clone().index_fill_(0, torch.tensor([2]), value) for embeddings in (image, pretext)
        ]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        loss(leaves, target).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first[2], torch.zeros_like(first[2]))
        assert torch.equal(first, second)


@pytest.mark.parametrize("negatives", ["per_image", "shared"])
def test_the_negatives_that_are_drawn_depend_on_the_seed(negatives):
    def value(seed: int) -> float:
        loss = make_loss(seed=seed, negatives=negatives, num_negatives=3)
        loss.memory_bank.rows.copy_(make_loss(seed=0).memory_bank.rows)  # the bank's first rows do, too
        image, pretext, target = batch()
        return float(loss([image, pretext], target))

    assert value(0) == value(0) and len({value(seed) for seed in range(4)}) == 4
