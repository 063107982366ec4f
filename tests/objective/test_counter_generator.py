import numpy as np
import torch
from scipy import stats

from pirl_plugin.objective.counter_generator import keys, mix, normal


def test_normal_numbers_are_normal_and_independent_of_each_other():
    numbers = normal(keys(torch.arange(20_000), seed=7), 10).numpy().astype(np.float64)
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(numbers.T) - np.eye(10)
    assert np.abs(correlations).max() < 0.03  # 4 / sqrt(20,000)
    neighbours = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01
    moments = [numbers.mean(), numbers.std() - 1, stats.skew(numbers, axis=None), stats.kurtosis(numbers, axis=None)]
    assert np.abs(moments).max() < 0.03


def test_numbers_depend_on_key_and_counter_alone():
    whole = normal(keys(torch.arange(50), 3), 9)
    assert torch.equal(normal(keys(torch.tensor([41, 7]), 3), 9), whole[[41, 7]])
    assert torch.equal(normal(keys(torch.arange(50), 3), 4), whole[:, :4])
    assert not torch.equal(normal(keys(torch.arange(50), 4), 9), whole)
    assert not torch.equal(normal(keys(torch.arange(50), 3, step=-1), 9), whole)


def test_they_are_the_quantiles_of_the_generators_own_bits():
    """Against PyTorch's signed arithmetic, and the quantile function itself."""
    from pirl_plugin.objective.counter_generator import GAMMA

    state = keys(torch.arange(6), 11)
    bits = mix(state.unsqueeze(1) + torch.arange(1, 3) * GAMMA).numpy().view(np.uint16).reshape(6, 8)
    expected = stats.norm.ppf((bits.astype(np.float64) + 0.5) / 2**16)
    np.testing.assert_allclose(normal(state, 8).numpy(), expected, rtol=1e-5, atol=1e-6)
