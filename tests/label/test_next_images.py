# SPDX-License-Identifier: Apache-2.0
"""Plans: the answers are the strategy's own order, what was labelled meanwhile and its copies are left out."""

from __future__ import annotations

import numpy as np
import pytest

from monai_ssl.label import STRATEGIES, LabelPool, NextImages, choose_images


@pytest.fixture
def pool() -> LabelPool:
    rng = np.random.default_rng(0)
    features = np.repeat(np.eye(4), 10, axis=0) * 3 + rng.normal(size=(40, 4))
    duplicate_of = np.full(40, -1)
    duplicate_of[[5, 6]] = 4
    scores = {kind: rng.random(40) for kind in ("margin", "entropy", "epistemic")}
    labelled = np.arange(40) == 11
    return LabelPool.of_features(features, labelled, duplicate_of=duplicate_of, uncertainty=scores)


@pytest.mark.parametrize("name", STRATEGIES)
def test_labelling_all_answers_offers_every_image_once(name, pool):
    images, taken = NextImages(pool, ahead=7), []
    while (row := images.answer(name, taken)) is not None:
        taken.append(row)
    assert sorted(taken) == [row for row in range(40) if row not in (5, 6, 11)]
    assert taken[:7] == choose_images(name, pool, 7).tolist()


def test_the_answer_stays_until_it_is_labelled_and_skips_what_others_labelled(pool):
    images = NextImages(pool, ahead=10)
    first, second = images.extend("core_set")[:2].tolist()
    assert images.answer("core_set") == images.answer("core_set") == first
    assert images.answer("core_set", [first, second]) == images.plans["core_set"][2]


def test_a_labelled_copy_closes_its_image(pool):
    images = NextImages(pool, plans={"random": np.array([4, 9])})
    assert images.answer("random") == 4
    assert images.answer("random", [6]) == 9, "6 shows the same as 4"


def test_a_plan_is_extended_without_repeating_itself(pool):
    images = NextImages(pool, ahead=10)
    images.extend("typicality")
    plan = images.extend("typicality", taken=[0])
    assert len(plan) == 20 and len(set(plan.tolist())) == 20
