import itertools
import math

import numpy as np
import pytest
from scipy.stats import chisquare

from pirl_plugin.pretext.permutations import permutation_set, unrank
from pirl_plugin.validation import ConfigError


def test_unranking_gives_itertools_lexicographic_order():
    expected = np.array(list(itertools.permutations(range(5))), dtype=np.uint8)
    assert (unrank(np.arange(120), 5) == expected).all()


@pytest.mark.parametrize("size", [1, 2, 100, 2000, math.factorial(7)])
def test_a_set_has_exactly_its_size_without_repeats(size):
    permutations = permutation_set(7, size)
    assert permutations.shape == (size, 7)
    assert len(np.unique(permutations, axis=0)) == size
    assert (np.sort(permutations, axis=1) == np.arange(7)).all()


def test_all_nine_factorial_permutations_can_be_had():
    permutations = permutation_set(9, math.factorial(9))
    codes = permutations.astype(np.int64) @ (10 ** np.arange(9))
    assert len(np.unique(codes)) == 362_880


def test_one_permutation_is_the_identity():
    assert (permutation_set(9, 1) == np.arange(9)).all()


def test_the_seed_decides_and_smaller_sets_start_larger_ones():
    assert (permutation_set(9, 100, 3) == permutation_set(9, 100, 3)).all()
    assert not (permutation_set(9, 100, 3) == permutation_set(9, 100, 4)).all()
    assert (permutation_set(9, 2000, 3)[:100] == permutation_set(9, 100, 3)).all()


def test_every_permutation_but_the_identity_is_chosen_equally_often():
    counts = np.zeros(24)
    for seed in range(1200):
        for row in permutation_set(4, 3, seed)[1:]:
            counts[int(sum(np.sum(row[i + 1 :] < row[i]) * math.factorial(3 - i) for i in range(4)))] += 1
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3


def test_a_grid_of_sixteen_gives_different_permutations_too():
    assert len(np.unique(permutation_set(16, 500), axis=0)) == 500


@pytest.mark.parametrize("size", [0, math.factorial(9) + 1])
def test_a_set_larger_than_n_factorial_is_refused(size):
    with pytest.raises(ConfigError, match="1 to 9! = 362880"):
        permutation_set(9, size)
