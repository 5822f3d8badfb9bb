# SPDX-License-Identifier: Apache-2.0
"""The linear probe in closed form: right answers, unknown labels, and no dependence on scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.metrics import ridge_auc, ridge_scores


def problem(classes: int = 3, count: int = 60, dim: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 3 * torch.randn(classes, dim, generator=generator)
    return centres[labels] + torch.randn(count, dim, generator=generator), labels


def test_separable_classes_are_told_apart():
    x, labels = problem()
    assert ridge_auc(x[30:], labels[30:], x[:30], labels[:30]) > 0.99
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    assert ridge_auc(x[30:], shuffled[30:], x[:30], shuffled[:30]) < 0.8


def test_scores_are_those_of_the_normal_equations():
    x, labels = problem(classes=2, count=40, dim=3)
    bank, queries = x[:30].double().numpy(), x[30:].double().numpy()
    bank, queries = (bank - (mean := bank.mean(0))) / (scale := bank.std(0)), (queries - mean) / scale
    wanted = np.eye(2)[labels[:30].numpy()]
    expected = []
    for penalty in 30 * 10.0 ** np.arange(-4, 3):
        weights = np.linalg.solve(bank.T @ bank + penalty * np.eye(3), bank.T @ (wanted - wanted.mean(0)))
        expected.append(queries @ weights + wanted.mean(0))
    got = ridge_scores(x[30:], x[:30], labels[:30]).numpy()
    assert min(np.abs(got - scores).max() for scores in expected) < 1e-5


def test_neither_scale_nor_shift_of_a_feature_matters():
    x, labels = problem()
    moved = x * torch.logspace(-3, 3, 8) + torch.arange(8.0)
    torch.testing.assert_close(
        ridge_scores(x[30:], x[:30], labels[:30]), ridge_scores(moved[30:], moved[:30], labels[:30]), atol=1e-4, rtol=0
    )
    x[:, 0] = 5.0  # a dead feature
    assert ridge_scores(x[30:], x[:30], labels[:30]).isfinite().all()


def test_unknown_labels_are_left_out():
    x, labels = problem(classes=2)
    findings = torch.stack([labels, 1 - labels], 1).float()
    findings[:10, 0] = float("nan")
    findings[20:25] = -1
    known = torch.cat([torch.arange(10, 20), torch.arange(25, 30)])
    got = ridge_scores(x[30:], x[:30], findings[:30])
    torch.testing.assert_close(got[:, 0], ridge_scores(x[30:], x[known], findings[known, :1])[:, 0])
    classes = labels.clone()
    classes[:10] = -1
    torch.testing.assert_close(
        ridge_scores(x[30:], x[:30], classes[:30], 2), ridge_scores(x[30:], x[10:30], classes[10:30], 2)
    )


def test_errors():
    x, labels = problem()
    with pytest.raises(ValueError, match="has a label"):
        ridge_scores(x, x, torch.full((60,), -1), 2)
    with pytest.raises(ValueError, match="queries and bank"):
        ridge_scores(x[:, :4], x, labels)
