# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_ssl.metrics import precision_at_k, recall_at_k


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
