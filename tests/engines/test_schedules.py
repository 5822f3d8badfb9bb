# SPDX-License-Identifier: Apache-2.0
"""Values of the schedules at the points that a reader can work out."""

from __future__ import annotations

import math

import pytest
import torch

from monai_ssl.engines import polynomial_schedule, sawtooth_cosine, step_schedule, warmup_cosine


def test_warmup_cosine_values():
    schedule = warmup_cosine(0.1, final_factor=0.2)
    assert [schedule(step, 100) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule(10, 100) == 1.0
    assert schedule(55, 100) == pytest.approx(0.6)
    assert schedule(100, 100) == pytest.approx(0.2)
    assert schedule(99, 100) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 89 / 90)) / 2)


def test_warmup_in_steps_replaces_the_fraction():
    assert warmup_cosine(0.5, warmup_steps=4)(3, 100) == 1.0
    assert warmup_cosine(0.5, warmup_steps=0)(0, 100) == 1.0


def test_a_training_of_warmup_alone_never_divides_by_zero():
    assert [warmup_cosine(1.0)(step, 3) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_a_final_factor_above_one_rises():
    values = [warmup_cosine(final_factor=10.0)(step, 10) for step in range(11)]
    assert values == sorted(values)
    assert values[0] == 1
    assert values[-1] == pytest.approx(10)


def test_polynomial_values():
    schedule = polynomial_schedule(0.9)
    assert [schedule(step, 10) for step in range(11)] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(11)])
    assert polynomial_schedule(1.0, warmup_steps=2)(0, 10) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="power"):
        polynomial_schedule(0)


def test_sawtooth_ramps_twice_and_without_a_first_stage_is_the_plain_one():
    schedule = sawtooth_cosine(5, warmup_steps=10)
    assert [schedule(step, 105) for step in (0, 4, 5, 14, 15, 60, 105)] == pytest.approx([0.2, 1, 0.1, 1, 1, 0.5, 0])
    plain, same = warmup_cosine(0.1), sawtooth_cosine(0, 0.1)
    assert [same(step, 50) for step in range(50)] == [plain(step, 50) for step in range(50)]
    assert sawtooth_cosine(5)(4, 5) == 1 and sawtooth_cosine(9)(3, 5) == pytest.approx(4 / 9)
    with pytest.raises(ValueError, match="first_steps"):
        sawtooth_cosine(-1)


def test_step_schedule_is_c2l():
    schedule = step_schedule((0.5, 2 / 3, 5 / 6))
    values = [schedule(epoch, 120) for epoch in range(120)]
    assert values[:60] == [1.0] * 60
    assert values[60:80] == pytest.approx([0.1] * 20)
    assert values[80:100] == pytest.approx([0.01] * 20)
    assert values[100:] == pytest.approx([0.001] * 20)


def test_step_schedule_warms_up_and_can_stay_constant():
    assert [step_schedule((), warmup_steps=2)(step, 10) for step in range(4)] == [0.5, 1, 1, 1]


def test_as_a_lambda_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = warmup_cosine(warmup_steps=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, 10))
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0])


@pytest.mark.parametrize(
    "build",
    [
        lambda: warmup_cosine(5),
        lambda: warmup_cosine(-0.1),
        lambda: warmup_cosine(warmup_steps=-1),
        lambda: warmup_cosine(final_factor=-1),
        lambda: step_schedule((120, 160)),
        lambda: step_schedule((0.8, 0.6)),
        lambda: step_schedule(gamma=0),
    ],
)
def test_out_of_range(build):
    with pytest.raises(ValueError, match=r"must|milestones"):
        build()
