# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from monai_ssl.metrics import (
    chance_at_k,
    first_relevant_rank,
    hit_rate_at_k,
    precision_at_k,
    recall_at_k,
    retrieval_score,
)


def draw(queries=12, items=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(queries, items, generator=generator), torch.rand(queries, items, generator=generator) < 0.3


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_counting_one_by_one(k):
    similarity, relevant = draw()
    for i in range(len(similarity)):
        first = sorted(range(20), key=lambda j: -similarity[i, j])[:k]
        found = sum(bool(relevant[i, j]) for j in first)
        assert precision_at_k(similarity, relevant, k)[i].item() == pytest.approx(found / k)
        assert recall_at_k(similarity, relevant, k)[i].item() == pytest.approx(found / int(relevant[i].sum()))


def test_perfect_order_and_everything_retrieved():
    relevant = draw()[1]
    assert (recall_at_k(relevant.float(), relevant, 20) == 1).all()
    count = int(relevant[0].sum())
    assert precision_at_k(relevant.float(), relevant, count)[0] == 1
    assert precision_at_k(-relevant.float(), relevant, 1).sum() == 0


def test_a_collapsed_encoder_scores_chance():
    _, relevant = draw()
    chance = relevant.float().mean(dim=1)
    torch.testing.assert_close(precision_at_k(torch.ones(12, 20), relevant, 3), chance)
    torch.testing.assert_close(recall_at_k(torch.ones(12, 20), relevant, 5), torch.full((12,), 0.25))


def test_ties_at_the_last_place_count_their_expected_value():
    similarity = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]])
    relevant = torch.tensor([[True, True, False, False, True]])
    assert precision_at_k(similarity, relevant, 2).item() == pytest.approx((1 + 1 / 3) / 2)
    order = torch.tensor([4, 2, 1, 0, 3])
    assert precision_at_k(similarity[:, order], relevant[:, order], 2).item() == pytest.approx((1 + 1 / 3) / 2)


def test_items_can_be_taken_out():
    similarity, relevant = draw()
    out = torch.zeros_like(relevant)
    out[:, :4] = True
    value = precision_at_k(similarity.masked_fill(out, -torch.inf), relevant & ~out, 5)
    torch.testing.assert_close(value, precision_at_k(similarity[:, 4:], relevant[:, 4:], 5))


def test_a_query_without_relevant_items():
    similarity, relevant = draw(2)
    relevant[1] = False
    assert precision_at_k(similarity, relevant, 3)[1] == 0
    assert recall_at_k(similarity, relevant, 3).isnan().tolist() == [False, True]


def test_refuses_what_cannot_be():
    similarity, relevant = draw()
    with pytest.raises(ValueError, match="k must lie between 1 and the number of items, 20"):
        precision_at_k(similarity, relevant, 21)
    with pytest.raises(ValueError, match="do not fit together"):
        recall_at_k(similarity, relevant[:, :3], 1)
    with pytest.raises(ValueError, match="do not fit together"):
        recall_at_k(similarity, relevant.float(), 1)
    with pytest.raises(ValueError, match="NaN"):
        precision_at_k(torch.full((12, 20), float("nan")), relevant, 1)


def test_hits_and_ranks_equal_counting_one_by_one():
    similarity, relevant = draw()
    for i in range(len(similarity)):
        order = sorted(range(20), key=lambda j: -similarity[i, j])
        first = next(place for place, j in enumerate(order, 1) if relevant[i, j])
        assert first_relevant_rank(similarity, relevant)[i] == first
        for k in (1, 3, 20):
            assert hit_rate_at_k(similarity, relevant, k)[i] == float(first <= k)


def test_hits_and_ranks_among_ties_are_expectations():
    """One item is surely first; the other four are tied in every order."""
    similarity = torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0]])
    relevant = torch.tensor([[False, True, True, False, False]])
    orders = [(0, *order) for order in itertools.permutations(range(1, 5))]
    ranks = [min(order.index(1), order.index(2)) + 1 for order in orders]
    assert first_relevant_rank(similarity, relevant).item() == pytest.approx(sum(ranks) / len(ranks))
    for k in range(1, 6):
        share = sum(rank <= k for rank in ranks) / len(ranks)
        assert hit_rate_at_k(similarity, relevant, k).item() == pytest.approx(share)
    nothing = torch.zeros_like(relevant)
    assert hit_rate_at_k(similarity, nothing, 2).isnan() and first_relevant_rank(similarity, nothing).isnan()


@pytest.mark.parametrize("measure", ["precision", "recall", "hit_rate"])
def test_chance_is_what_random_orders_give(measure):
    relevant = torch.zeros(4000, 12, dtype=torch.bool)
    relevant[:, :3] = True
    similarity = torch.rand(relevant.shape, generator=torch.Generator().manual_seed(0))
    similarity[:, 11] = -torch.inf
    score = retrieval_score(similarity, relevant, 4, measure, n=100)
    assert score.value.value == pytest.approx(score.chance, abs=0.02)
    assert score.over_chance.low < 0 < score.over_chance.high
    expected = {"precision": 3 / 11, "recall": 4 / 11, "hit_rate": 1 - (8 * 7 * 6 * 5) / (11 * 10 * 9 * 8)}
    assert score.chance == pytest.approx(expected[measure])
    assert chance_at_k(similarity, relevant, 4, measure)[0].item() == pytest.approx(expected[measure])


def test_the_retrieval_set_of_convirt():
    """200 of 1,600 candidates are right: random embeddings score 12.5 %, an oracle of the class 100 %."""
    candidates, queries = torch.arange(1600) // 200, torch.arange(80) // 10
    relevant = queries[:, None] == candidates
    oracle = torch.nn.functional.one_hot(queries).float() @ torch.nn.functional.one_hot(candidates).float().T
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(1680, 64, generator=generator))
    chance = embeddings[1600:] @ embeddings[:1600].T
    for k in (5, 10, 100):
        score = retrieval_score(oracle, relevant, k, other=chance, n=200)
        assert (score.value.value, score.chance) == (1.0, 0.125)
        assert score.other.low < 0.125 < score.other.high and score.over_other.p_value < 0.05
        assert score.over_other.value == pytest.approx(1 - score.other.value)


def test_groups_of_queries_are_resampled_together():
    """Each patient has four queries that are right or wrong together."""
    right = (torch.arange(30) % 2 == 0).repeat_interleave(4)
    relevant = torch.zeros(120, 5, dtype=torch.bool)
    relevant[:, 0] = True
    similarity = torch.where(right[:, None], relevant.float(), (~relevant).float())
    alone = retrieval_score(similarity, relevant, 1, n=500)
    together = retrieval_score(similarity, relevant, 1, groups=torch.arange(30).repeat_interleave(4).numpy(), n=500)
    assert (alone.groups, together.groups, together.queries) == (120, 30, 120)
    assert together.value.high - together.value.low > 1.6 * (alone.value.high - alone.value.low)


def test_resampling_the_items_asks_in_other_galleries():
    """The interval of a random ranking is that of a share among k items."""
    similarity = torch.rand(1, 400, generator=torch.Generator().manual_seed(3))
    relevant = (torch.arange(400) % 4 == 0)[None]
    score = retrieval_score(similarity, relevant, 100, item_groups=range(400), n=400)
    assert score.chance == pytest.approx(0.25) and score.groups == 400
    half = 1.96 * (0.25 * 0.75 / 100) ** 0.5
    assert score.value.high - score.value.low == pytest.approx(2 * half, rel=0.25)
    assert score.over_chance.low < 0 < score.over_chance.high
    with pytest.raises(ValueError, match="groups of the queries or of the items"):
        retrieval_score(similarity, relevant, 3, item_groups=range(400), groups=[0])
    with pytest.raises(ValueError, match="4 groups do not fit 400 items"):
        retrieval_score(similarity, relevant, 3, item_groups=range(4))


def test_queries_without_an_answer_are_left_out_and_counted():
    similarity, relevant = draw()
    relevant[:2] = False
    score = retrieval_score(similarity, relevant, 3, n=50)
    assert (score.queries, score.left_out) == (10, 2)
    assert score.value.value == pytest.approx(precision_at_k(similarity, relevant, 3)[2:].mean().item())
    with pytest.raises(ValueError, match="none of the 12 queries has a relevant item"):
        retrieval_score(similarity, torch.zeros_like(relevant), 3)
    with pytest.raises(ValueError, match="no measure 'accuracy'; there are precision"):
        retrieval_score(similarity, relevant, 3, "accuracy")
    with pytest.raises(ValueError, match="3 groups do not fit 12 queries"):
        retrieval_score(similarity, relevant, 3, groups=[0, 1, 2])
