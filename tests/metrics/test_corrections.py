# SPDX-License-Identifier: Apache-2.0
"""Corrections for several comparisons against the step procedures and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from monai_ssl.metrics import benjamini_hochberg, holm


def holm_rejects(p: np.ndarray, level: float) -> np.ndarray:
    """The step-down procedure as written: go on until the first that fails."""
    rejected = np.zeros(len(p), dtype=bool)
    for step, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] > level / (len(p) - step):
            break
        rejected[place] = True
    return rejected


@pytest.mark.parametrize("seed", range(4))
def test_holm_rejects_what_the_procedure_rejects(seed):
    p = np.random.default_rng(seed).random(12) ** 4
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2):
        assert ((adjusted <= level) == holm_rejects(p, level)).all()
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 12 * p)).all()


@pytest.mark.parametrize("seed", range(4))
def test_benjamini_hochberg_is_scipys(seed):
    p = np.random.default_rng(seed).random(15) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()


def test_undefined_tests_are_not_counted():
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert len(holm([])) == 0


@pytest.mark.parametrize("wrong", [[1.2], [-0.1], [[0.1, 0.2]]])
@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_bad_input_is_named(correct, wrong):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        correct(wrong)
