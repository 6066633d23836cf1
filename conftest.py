"""Tests, fixtures and examples of docstrings draw the same random numbers, whichever ran before them.

`SECATEUR_TEST_SEED=1 pytest` draws others. What a module of tests draws while it is imported has a seed of its own or
depends on what was imported before.
"""

import os
import random
import zlib

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Each fixture starts from the seed of its name."""
    start_random_numbers(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Each test and each example of a docstring starts from one seed."""
    start_random_numbers("test")


def start_random_numbers(of):
    """The name counts: a fixture and its test that both draw must not draw the same."""
    import numpy
    import torch

    seed = zlib.crc32((of + os.environ.get("SECATEUR_TEST_SEED", "")).encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
