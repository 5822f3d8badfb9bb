# SPDX-License-Identifier: Apache-2.0
"""No batch holds a study twice, no image is forgotten, and a run goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ssl.data import StudySampler


def studies_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 7 - 3, sizes))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[1] * 40, [3, 1, 2, 5] * 12, [4] * 25, [30] + [1] * 50])
def test_a_batch_of_all_processes_holds_a_study_once(sizes, world):
    studies = studies_of(sizes)
    batch = 4
    seen = np.zeros(len(studies), dtype=int)
    for epoch in range(40):
        parts = []
        for rank in range(world):
            sampler = StudySampler(studies, batch, seed=1, rank=rank, world=world)
            sampler.set_epoch(epoch)
            parts.append(np.array(list(sampler)))
            assert len(parts[-1]) == len(sampler) and len(sampler) % batch == 0
        codes = np.stack(parts, axis=1).ravel()
        assert (codes // len(studies) == epoch).all()
        items = codes % len(studies)
        assert len(set(items.tolist())) == len(items), "an image comes once"
        for together in studies[items].reshape(-1, batch * world):
            assert len(set(together.tolist())) == batch * world
        seen[items] += 1
    # What is left out of an epoch does not fill a batch, or belongs to a study larger than the epoch has batches.
    kept = np.minimum(np.unique(studies, return_counts=True)[1], len(items) // (batch * world)).sum()
    assert 0 <= kept - len(items) < batch * world
    assert seen.min() > 0, "another rest each time"


def test_order_depends_on_seed_and_epoch_only():
    studies = studies_of([2] * 20)
    orders = [list(StudySampler(studies, 5, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == list(StudySampler(studies * 3 + 1, 5)), "not on the studies' numbers"
    sampler = StudySampler(studies, 5)
    sampler.set_epoch(3)
    assert sorted(sampler) == list(range(120, 160)) and list(sampler) != [code + 120 for code in orders[0]]


def test_all_pairs_of_different_studies_meet():
    studies = studies_of([2] * 6)
    met = np.zeros((12, 12), dtype=bool)
    sampler = StudySampler(studies, 3, seed=0)
    for epoch in range(60):
        sampler.set_epoch(epoch)
        for together in np.array(list(sampler)).reshape(-1, 3) % 12:
            met[np.ix_(together, together)] = True
    assert (met == ((studies[:, None] != studies) | np.eye(12, dtype=bool))).all()


@pytest.mark.parametrize("world", [1, 2])
def test_it_resumes_in_the_middle(world):
    studies = studies_of([2, 3, 1] * 10)
    sampler = StudySampler(studies, 4, seed=5, rank=world - 1, world=world)
    sampler.set_epoch(2)
    rest = list(sampler)[8:]
    state = json.loads(json.dumps(sampler.state_dict() | {"position": 8}))
    fresh = StudySampler(studies, 4, seed=5, rank=world - 1, world=world)
    fresh.load_state_dict(state)
    fresh.set_epoch(2)
    assert list(fresh) == rest
    fresh.load_state_dict(state | {"position": 10})
    assert list(fresh) == rest, "a batch that was begun is read again"
    with pytest.raises(ValueError, match="the sampler's studies was"):
        StudySampler(studies[::-1], 4, seed=5, rank=world - 1, world=world).load_state_dict(state)
    with pytest.raises(ValueError, match="the sampler's seed was 5 and is 6"):
        StudySampler(studies, 4, seed=6, rank=world - 1, world=world).load_state_dict(state)
    whole = StudySampler(studies, 4 * world, seed=5)  # one process with the same batch over all
    whole.load_state_dict(state)
    assert whole.position == 8 * world


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0, 1], 3), "2 studies cannot fill a batch of 3"),
        (([0, 1, 2], 2, 0, 0, 2), r"3 studies cannot fill a batch of 4 \(2 in each of 2 processes\)"),
        (([0, 1], 0), "batch_size is 0"),
        (([0, 1], 1, -1), "seed -1"),
        (([0.5, 1.0], 1), "one integer for each item"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudySampler(*arguments)
