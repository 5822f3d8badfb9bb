# SPDX-License-Identifier: Apache-2.0
"""Positives from metadata, and no own patient among the negatives, in every method with negatives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from monai_ssl.losses import group_nt_xent, nt_xent
from monai_ssl.methods import C2L, MoCoV2, MoCoV3, SimCLR, SSLMethod, partners, relatives

GROUPS = [4, 7, 4, 4, -1, 7, 9, -1]
METHODS = {
    "simclr": lambda **options: SimCLR(Flat(), embedding_dim=16, **options),
    "moco_v2": lambda **options: MoCoV2(Flat(), embedding_dim=16, queue_size=24, **options),
    "moco_v2, in batch": lambda **options: MoCoV2(
        Flat(), embedding_dim=16, queue_size=24, in_batch_negatives=True, **options
    ),
    "moco_v3": lambda **options: MoCoV3(Flat(), embedding_dim=16, hidden_features=24, **options),
    "c2l, student": lambda **options: C2L(
        Flat(), embedding_dim=16, queue_size=24, terms=["homogeneous"], keys="student", temperature=0.2, **options
    ),
    "c2l, teacher": lambda **options: C2L(
        Flat(),
        embedding_dim=16,
        queue_size=24,
        terms=["homogeneous"],
        temperature=0.2,
        enqueue="end_of_step",
        **options,
    ),
}


class Flat(nn.Module):
    num_features, spatial_dims, in_channels = 32, 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def make(name: str, **options) -> SSLMethod:
    torch.manual_seed(0)
    return METHODS[name](**options)


def make_batch(groups: list[int] | None = GROUPS, seed: int = 0, **more: list[int]) -> dict:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(2)]
    batch = {"views": views, "index": torch.arange(8), "generator": generator}
    if groups is not None:
        more = {"group_id": groups, **more}
    return batch | {name: torch.tensor(values) for name, values in more.items()}


# ---- who belongs to whom


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_partners_are_others_of_the_group_each_chosen_once(seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    groups = torch.tensor(GROUPS)
    partner = partners(groups, generator)
    assert sorted(partner.tolist()) == list(range(8))
    for i, j in enumerate(partner.tolist()):
        assert groups[i] == groups[j]
        has_company = groups[i] >= 0 and (groups == groups[i]).sum() > 1
        assert (i != j) == has_company, "oneself only without company"


def test_partners_of_pairs_of_everybody_and_of_nobody():
    assert partners(torch.tensor([3, 3, 5, 5])).tolist() == [1, 0, 3, 2]
    assert partners(torch.zeros(4, dtype=torch.long)).tolist() == [1, 2, 3, 0]
    assert partners(torch.arange(4)).tolist() == partners(torch.full((4,), -1)).tolist() == [0, 1, 2, 3]
    assert partners(torch.tensor([5])).tolist() == [0]


def test_random_partners_change_and_every_other_one_is_met():
    generator, met = torch.Generator().manual_seed(0), [set() for _ in range(5)]
    for _ in range(60):
        for i, j in enumerate(partners(torch.zeros(5, dtype=torch.long), generator).tolist()):
            met[i].add(j)
    assert [sorted(others) for others in met] == [[j for j in range(5) if j != i] for i in range(5)]


def test_relatives_are_what_the_options_ask_for():
    batch = make_batch(positive_id=[1, 2, 1, 3, -1, 2, 4, -1])
    nothing = relatives(batch, False, False)
    assert nothing.positive is None and nothing.patient is None and nothing.partners() is None
    excluded = relatives(batch, False, True)
    assert excluded.positive is None and excluded.patient[:4].tolist() == [4, 7, 4, 4]
    assert len(set(excluded.patient.tolist())) == 5, "the unknown stand alone"
    assert excluded.patient.min() < -1, "and are not the queue's unknown"
    positives = relatives(batch, True, False)
    assert positives.positive[:4].tolist() == [1, 2, 1, 3] and positives.patient[:4].tolist() == [4, 7, 4, 4]
    assert positives.partners().tolist() == [2, 5, 0, 3, 4, 1, 6, 7]
    only_group, only_positive = (
        relatives(make_batch(), True, False),
        relatives(make_batch(None, index=[3] * 8), False, False),
    )
    assert torch.equal(only_group.positive, only_group.patient) and only_positive.patient is None
    finer = relatives({key: value for key, value in batch.items() if key != "group_id"}, True, True)
    assert torch.equal(finer.positive, finer.patient)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_patients_is_refused_when_they_are_asked_for(name):
    with pytest.raises(ValueError, match=r"patient_positives=True needs batch\['group_id'\].*label_columns"):
        make(name, patient_positives=True)(make_batch(None))
    with pytest.raises(ValueError, match=r"exclude_own_patient=True needs batch\['group_id'\]"):
        make(name, exclude_own_patient=True)(make_batch(None))
    for value in (torch.arange(7), torch.rand(8), ["a"] * 8):
        with pytest.raises(ValueError, match=r"batch\['group_id'\] must hold 8 integers"):
            make(name, exclude_own_patient=True)(make_batch(None) | {"group_id": value})


# ---- the losses, recomputed


def cross_entropies(query: torch.Tensor, keys: torch.Tensor, negatives: torch.Tensor, told: torch.Tensor) -> list:
    """One query at a time: -log of the key's share among it and those negatives that count."""
    losses = []
    for i in range(len(query)):
        logits = torch.cat([(query[i] @ keys[i])[None], negatives[told[i]] @ query[i]]) / 0.2
        losses.append(-logits.log_softmax(0)[0])
    return losses


def related(i: int, j: int) -> bool:
    return GROUPS[i] == GROUPS[j] >= 0


@pytest.mark.parametrize("positives", [False, True])
@pytest.mark.parametrize("name", ["moco_v2", "moco_v2, in batch", "c2l, teacher"])
def test_queries_are_told_from_no_key_of_their_own_patient(name, positives):
    method = make(name, patient_positives=positives, exclude_own_patient=not positives)
    for seed, groups in ((1, GROUPS), (2, [9, 7, 0, 1, -1, 2, 3, -1])):  # keys of known and of other patients
        method(make_batch(groups, seed))["loss"].backward()
        method.after_step(0.1)
    assert method.queue.groups.tolist() == GROUPS[:4] + [-1, 7, 9, -1] + [9, 7, 0, 1, -1, 2, 3, -1] + [-1] * 8
    batch = make_batch()
    query, key = (normalize(net(x)) for net, x in zip((method.student, method.teacher), batch["views"], strict=True))
    negatives, told = (
        method.queue.features,
        torch.tensor([[group < 0 or group != own for group in method.queue.groups.tolist()] for own in GROUPS]),
    )
    if method.in_batch_negatives:
        negatives = torch.cat([negatives, key])
        others = torch.tensor([[i != j and not related(i, j) for j in range(8)] for i in range(8)])
        told = torch.cat([told, others], dim=1)
    losses = cross_entropies(query, key, negatives, told)
    if positives:
        partner = [2, 5, 3, 0, 4, 1, 6, 7]
        losses += cross_entropies(query, key[partner], negatives, told)
    assert method(batch)["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("positives", [False, True])
def test_moco_v3_heeds_patients(positives):
    method, batch = make("moco_v3", patient_positives=positives, exclude_own_patient=not positives), make_batch()
    x = torch.cat(batch["views"])
    q1, q2 = normalize(method.predictor(method.projector(method.encoder(x)))).chunk(2)
    k1, k2 = normalize(method.teacher(x)).chunk(2)
    told = torch.tensor([[i != j and not related(i, j) for j in range(8)] for i in range(8)])
    total = 0.0
    for query, key in ((q1, k2), (q2, k1)):
        losses = cross_entropies(query, key, key, told)
        if positives:
            losses += cross_entropies(query, key[[2, 5, 3, 0, 4, 1, 6, 7]], key, told)
        total += 2 * 0.2 * torch.stack(losses).mean().item()
    assert method(batch)["loss"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["simclr", "c2l, student"])
def test_contrast_with_gradient_on_both_sides_heeds_patients(name):
    batch = make_batch(positive_id=[1, 2, 1, 3, 4, 2, 5, 6])
    head = make(name)
    a, b = head.head(head.encoder(torch.cat(batch["views"]))).chunk(2)
    alone, patient = torch.arange(8), torch.tensor([4, 7, 4, 4, 20, 7, 9, 21])
    t = head.temperature
    expected = {
        (False, True): group_nt_xent(a, b, alone, t, exclude=patient),
        (True, False): group_nt_xent(a, b, batch["positive_id"], t, exclude=patient),
        (True, True): group_nt_xent(a, b, batch["positive_id"], t, exclude=patient),
        (False, False): nt_xent(a, b, t),
    }
    for (positives, exclude), loss in expected.items():
        method = make(name, patient_positives=positives, exclude_own_patient=exclude)
        assert method(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-5), (positives, exclude)
    assert len({round(loss.item(), 6) for loss in expected.values()}) == 3


def test_c2l_uses_patients_of_the_batch_unless_told_otherwise():
    batch = make_batch()
    student, told_not = (
        make("c2l, student")(batch)["loss"],
        make("c2l, student", patient_positives=False)(batch)["loss"],
    )
    assert student.item() == make("c2l, student", patient_positives=True)(batch)["loss"].item() != told_not.item()
    teacher = make("c2l, teacher")(batch)["loss"].item()
    assert teacher == make("c2l, teacher", patient_positives=False)(batch)["loss"].item()
    assert teacher != make("c2l, teacher", patient_positives=True)(batch)["loss"].item()


@pytest.mark.parametrize("criterion", ["info_nce", "nce"])
@pytest.mark.parametrize("enqueue", ["per_loss", "end_of_step", "homogeneous"])
def test_all_terms_of_c2l_remember_the_patients_of_their_keys(enqueue, criterion):
    torch.manual_seed(0)
    options = {"patient_positives": True, "criterion": criterion, "num_data": 100, "in_batch_negatives": True}
    method = C2L(Flat(), embedding_dim=16, queue_size=24, enqueue=enqueue, **options)
    out = method(make_batch())
    out["loss"].backward()
    method.after_step(0.1)
    known = [group if group >= 0 else -1 for group in GROUPS]
    expected = known + [-1] * 16 if enqueue == "homogeneous" else known * 3
    assert method.queue.groups.tolist() == expected
    assert out["loss"].isfinite() and method.encoder.net[1].weight.grad.isfinite().all()


# ---- edges


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("option", ["patient_positives", "exclude_own_patient"])
def test_a_batch_of_one_patient_gives_a_finite_loss(name, option):
    method = make(name, **({"patient_positives": False} | {option: True}))
    for _ in range(4):  # until the queue, too, holds nothing else
        out = method(make_batch([3] * 8))
        out["loss"].backward()
        method.after_step(0.1)
    assert out["loss"].isfinite()
    assert method.encoder.net[1].weight.grad.isfinite().all()
    if option == "exclude_own_patient" or "moco" in name or "teacher" in name:
        assert out["loss"].item() == pytest.approx(0, abs=1e-6), "nothing to be told from"


@pytest.mark.parametrize("name", METHODS)
def test_where_nobody_has_relatives_the_options_change_nothing(name):
    batch = make_batch(list(range(8)))
    plain = make(name, patient_positives=False)(batch)["loss"].item()
    for options in ({"patient_positives": True}, {"exclude_own_patient": True, "patient_positives": False}):
        assert make(name, **options)(batch)["loss"].item() == pytest.approx(plain, rel=1e-5)


def test_the_queue_without_groups_of_an_older_checkpoint_goes_on():
    method, options = make("moco_v2"), {"exclude_own_patient": True}
    method(make_batch(None))["loss"].backward()
    method.after_step(0.1)
    old = copy.deepcopy(method.state_dict())
    del old["queue.groups"]
    again = make("moco_v2", **options)
    again.load_state_dict(old)
    assert again(make_batch())["loss"].item() == pytest.approx(method(make_batch(None))["loss"].item(), rel=1e-6)


def test_patients_as_positives_bring_the_images_of_a_patient_together():
    """32 images of 16 patients; a patient's two images share a faint pattern that one image alone does not demand."""
    generator = torch.Generator().manual_seed(0)
    patient = torch.arange(16).repeat_interleave(2)
    images = torch.rand(32, 1, 8, 8, generator=generator) + 0.3 * torch.randn(16, 1, 8, 8, generator=generator)[patient]
    closeness = {}
    for positives in (False, True):
        method = make("simclr", patient_positives=positives)
        optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=3e-3)
        for _ in range(40):
            views = [images + 0.05 * torch.randn(images.shape, generator=generator) for _ in range(2)]
            optimizer.zero_grad()
            method({"views": views, "group_id": patient})["loss"].backward()
            optimizer.step()
        z = normalize(method.head(method.encoder(images)).detach())
        similarity = z @ z.T
        own = similarity[patient[:, None] == patient].sum() - 32
        closeness[positives] = (own / 32 - similarity[patient[:, None] != patient].mean()).item()
    assert closeness[True] > closeness[False] + 0.3
