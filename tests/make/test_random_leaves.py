"""A sample of random leaves and functions (``random_leaves``): the bits of eager JAX, all of them."""

import pytest
import random_leaves


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_random_leaves_have_the_bits_of_eager_jax(first):
    for seed in range(first, first + 10):
        random_leaves.check_leaf(seed)


@pytest.mark.parametrize("first", range(0, 10, 5))
def test_random_functions_have_the_bits_of_eager_jax_whole_and_in_part(first):
    for seed in range(first, first + 5):
        random_leaves.check_function(seed)


# What was found by them, once.
@pytest.mark.parametrize("seed", [36, 51, 91])
def test_functions_that_were_wrong_once_are_right(seed):
    random_leaves.check_function(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1100, 25))
def test_many_random_leaves_have_the_bits_of_eager_jax(first):
    for seed in range(first, first + 25):
        random_leaves.check_leaf(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1040, 10))
def test_many_random_functions_have_the_bits_of_eager_jax(first):
    for seed in range(first, first + 10):
        random_leaves.check_function(seed)
