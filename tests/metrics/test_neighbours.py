# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from monai_ssl.metrics import area_under_roc, knn_auc, knn_scores


def draw(rows=30, dim=6, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def classes(rows, count=3, seed=5):
    return torch.randint(count, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_scikit_learn_with_the_same_weights(k, temperature):
    queries, bank, labels = draw(11, seed=1), draw(), classes(30)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    reference.fit(bank.double().numpy(), labels.numpy())
    scores = knn_scores(queries, bank, labels, k=k, temperature=temperature, chunk_size=4)
    np.testing.assert_allclose(scores.numpy(), reference.predict_proba(queries.double().numpy()), rtol=1e-3, atol=1e-5)


def test_two_neighbours_by_hand():
    bank = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), dim=1)
    scores = knn_scores(torch.tensor([[2.0, 0.0]]), bank, torch.tensor([0, 1, 1]), k=2, temperature=0.5)
    first, second = np.exp(1 / 0.5), np.exp(np.sqrt(0.5) / 0.5)
    assert scores[0].tolist() == pytest.approx([first / (first + second), second / (first + second)])


def test_unlabelled_samples_are_no_neighbours():
    queries, bank, labels = draw(8, seed=1), draw(), classes(30)
    some = labels.clone()
    some[::3] = -1
    kept = some >= 0
    torch.testing.assert_close(knn_scores(queries, bank, some, k=7), knn_scores(queries, bank[kept], some[kept], k=7))
    with pytest.raises(ValueError, match="no sample of the bank is labelled"):
        knn_scores(queries, bank, torch.full((30,), -1))


def test_more_neighbours_than_samples_and_order_do_not_matter():
    queries, bank, labels = draw(8, seed=1), draw(), classes(30)
    everything = knn_scores(queries, bank, labels, k=30)
    torch.testing.assert_close(knn_scores(queries, bank, labels, k=500), everything)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        knn_scores(queries, bank[order], labels[order], k=5), knn_scores(queries, bank, labels, k=5)
    )
    assert knn_scores(queries, bank, labels, num_classes=5).shape == (8, 5)


def test_low_temperature_does_not_overflow():
    bank = draw()
    scores = knn_scores(bank.half(), bank, classes(30), k=5, temperature=0.001)
    torch.testing.assert_close(scores, F.one_hot(classes(30)).float())  # the sample itself outweighs all others


def test_neighbours_of_the_same_group_do_not_count():
    bank, labels = draw(), classes(30)
    groups = torch.arange(30) // 3
    scores = knn_scores(bank, bank, labels, k=5, query_groups=groups, bank_groups=groups)
    for i in (0, 13, 29):
        others = groups != groups[i]
        expected = knn_scores(bank[i : i + 1], bank[others], labels[others], num_classes=3, k=5)
        torch.testing.assert_close(scores[i : i + 1], expected)


def test_without_any_usable_neighbour_the_frequency_is_returned():
    bank, labels = draw(4), torch.tensor([0, 0, 0, 1])
    one = torch.zeros(4, dtype=torch.long)
    scores = knn_scores(bank, bank, labels, k=2, query_groups=one, bank_groups=one)
    torch.testing.assert_close(scores, torch.tensor([[0.75, 0.25]]).expand(4, 2))


def test_several_findings_with_unknown_ones():
    queries, bank = draw(8, seed=1), draw()
    findings = torch.randint(2, (30, 2), generator=torch.Generator().manual_seed(2)).float()
    single = knn_scores(queries, bank, findings[:, 0].long(), k=6)
    torch.testing.assert_close(knn_scores(queries, bank, findings, k=6)[:, 0], single[:, 1])
    findings[4, 1] = float("nan")
    findings[5] = -1
    scores = knn_scores(queries, bank, findings, k=29)  # all samples of which anything is known
    kept = torch.tensor([i for i in range(30) if i not in (4, 5)])
    expected = knn_scores(queries, bank[kept], findings[kept, 1].long(), k=28)[:, 1]
    torch.testing.assert_close(scores[:, 1], expected)


def test_auc_separates_clusters_and_is_chance_for_a_collapsed_encoder():
    labels = classes(60)
    bank = F.one_hot(labels).float() + 0.2 * draw(60, 3)
    query_labels = classes(40, seed=6)
    queries = F.one_hot(query_labels).float() + 0.2 * draw(40, 3, seed=7)
    assert knn_auc(queries, query_labels, bank, labels, k=5) > 0.99
    flat = torch.ones(40, 3)
    assert knn_auc(flat, query_labels, torch.ones(60, 3), labels.sort().values, k=5) == 0.5


def test_auc_leaves_out_unlabelled_queries():
    queries, bank, labels, query_labels = draw(20, seed=1), draw(), classes(30, 2), classes(20, 2, seed=8)
    some = query_labels.clone()
    some[:6] = -1
    expected = area_under_roc(query_labels[6:].numpy(), knn_scores(queries[6:], bank, labels, k=5)[:, 1].numpy())
    assert knn_auc(queries, some, bank, labels, k=5) == pytest.approx(expected)


def test_auc_names_a_class_that_is_missing_from_the_queries():
    queries, bank, labels = draw(20, seed=1), draw(), classes(30)
    few = classes(20, 2)
    with pytest.raises(ValueError, match="class 2 has no positive sample among 20"):
        knn_auc(queries, few, bank, labels)
    with pytest.warns(UserWarning, match="class 2 has no positive"):
        assert 0 <= knn_auc(queries, few, bank, labels, undefined="warn") <= 1


def test_refuses_what_cannot_be():
    x, labels = draw(), classes(30)
    with pytest.raises(ValueError, match="do not fit together"):
        knn_scores(x[:, :3], x, labels)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_scores(x, x, labels, k=0)
    with pytest.raises(ValueError, match="temperature positive"):
        knn_scores(x, x, labels, temperature=0)
    with pytest.raises(ValueError, match="labels must have shape"):
        knn_scores(x, x, labels[:5])
    with pytest.raises(ValueError, match="must be integers"):
        knn_scores(x, x, labels.float())
    with pytest.raises(ValueError, match=r"must lie in -1 \.\. 1"):
        knn_scores(x, x, labels, num_classes=2)
    with pytest.raises(ValueError, match="must be 0, 1, or -1 or NaN"):
        knn_scores(x, x, torch.full((30, 2), 2))
    with pytest.raises(ValueError, match="belong together"):
        knn_scores(x, x, labels, query_groups=labels)
