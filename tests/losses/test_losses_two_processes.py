# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes with half the batch each give the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from distributed_helper import run_processes
from torch.nn.functional import normalize

from monai_ssl.losses import (
    ConstantZNCELoss,
    ImageTextContrastLoss,
    InfoNCELoss,
    KoLeoLoss,
    NTXentLoss,
    RedundancyReductionLoss,
    SwappedPredictionLoss,
    TeacherCodes,
    VICRegLoss,
    all_gather,
    base_orthogonality,
    distillation,
    group_nt_xent,
    is_distributed,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_dice,
    negative_cosine,
    overlap_prediction,
    patch_distillation,
    point_contrast,
)
from monai_ssl.methods import MoCoV3, Relatives, relatives
from monai_ssl.methods.positives import contrast_views

FORMULAS = ("paper", "released")
BATCH, DIM = 6, 5


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (BATCH, BATCH, 12))


def encoder() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    layers = nn.Sequential(nn.Linear(DIM, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    for parameter in layers.parameters():
        parameter.data.normal_(generator=generator)
    return layers


def spread(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A loss that every process computes for the whole batch, as those do that decorrelate feature dimensions."""
    x = torch.cat([all_gather(a), all_gather(b)])
    x = x - x.mean(dim=0)
    return -torch.logdet(x.T @ x / len(x) + 0.1 * torch.eye(x.shape[1], dtype=x.dtype))


def grouped(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Groups whose members are in different processes."""
    first = dist.get_rank() * len(a) if is_distributed() else 0
    groups = torch.tensor([0, 1, 2, 1, 0, 3])[first : first + len(a)]
    return group_nt_xent(a, b, groups, 0.2, gather_distributed=True)


def own(*numbers: int) -> torch.Tensor:
    """This process' share of one number for each image of the whole batch."""
    share = BATCH // dist.get_world_size() if is_distributed() else BATCH
    first = dist.get_rank() * share if is_distributed() else 0
    return torch.tensor(numbers)[first : first + share]


def related(a: torch.Tensor, positives: bool) -> Relatives:
    """Patients across the processes, one of them not known; positives within a process."""
    batch = {"views": [a], "group_id": own(0, 0, 1, 2, 2, 1), "positive_id": own(0, 0, -1, 2, 2, -1)}
    if not positives:
        batch["group_id"] = own(0, 1, -1, 1, 0, -1)
    return relatives(batch, positives, exclude_own_patient=True)


def moco_v3(a: torch.Tensor, b: torch.Tensor, positives: bool) -> torch.Tensor:
    query, key = normalize(a, dim=1), normalize(b.detach(), dim=1)
    return MoCoV3._contrast(SimpleNamespace(temperature=0.2), query, key, related(a, positives))


def placed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """VoCo's losses: one crop and three base crops an image, whose overlaps are the same in all images."""
    bases = torch.stack([b, b.roll(1, 1), -b], 1)  # (B, 3, 4)
    similarity = normalize(a, dim=1)[:, None] @ normalize(bases, dim=2).transpose(1, 2)
    overlap = torch.tensor([0.7, 0.3, 0.0], dtype=a.dtype).expand_as(similarity)
    parts = [overlap_prediction(similarity, overlap, name) + base_orthogonality(bases, name) for name in FORMULAS]
    return parts[0] + 2 * parts[1]


def distilled(a: torch.Tensor, b: torch.Tensor, centering: str) -> torch.Tensor:
    """Two large crops and a small one, and masked patches; codes of the student itself are as good as any."""
    codes = TeacherCodes(a.shape[1], centering)(torch.stack([b, a]), 0.3)
    patches = TeacherCodes(a.shape[1], centering)(a, 0.3)
    return distillation(torch.stack([a, b, a + b]), codes, 0.2) + patch_distillation(b, patches, None, 0.2)


def clustered(a: torch.Tensor, b: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """Swapped prediction of codes that the whole batch decides."""
    loss, prototypes = SwappedPredictionLoss(0.2, 0.1), normalize(inputs()[2][:, :4], dim=1)
    scores = normalize(torch.stack([a, b]), dim=2) @ prototypes.T
    return loss(scores, torch.stack([loss.assign(own, groups, 3) for own in scores]))


def clustered_by_source(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the first process's sources the second lacks one; one source has no images at all."""
    first = dist.get_rank() * len(a) if is_distributed() else 0
    return clustered(a, b, torch.tensor([0, 2, 0, 2, 2, 2])[first : first + len(a)])


def pointed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Points of images of which the first process holds one that counts, the second two and one that does not."""
    first = dist.get_rank() * len(a) if is_distributed() else 0
    here = torch.tensor([0, 0, 1, 1, 0, 2])[first : first + len(a), None, None]  # positives of each image's points
    query, key = torch.stack([a, b], 1), torch.stack([b, a.roll(1, 1), -a], 1)  # (B, 2, 4) and (B, 3, 4)
    return point_contrast(query, key, (torch.arange(3) < here).expand(-1, 2, -1), 0.2)


def described(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Images and texts with studies and equal texts across the processes, and some that belong to none."""
    studies, texts = own(0, 1, -1, 1, 0, -1), own(3, -1, 5, 4, 5, 3)
    return ImageTextContrastLoss(0.2)(a, b, studies) + 2 * ImageTextContrastLoss(0.3)(a, b, studies, texts)


def partly_labelled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One process has a single label, the other all."""
    first = dist.get_rank() * len(a) if is_distributed() else 0
    classes = torch.tensor([-1, 3, -1, 0, 1, 2])[first : first + len(a)]
    findings = torch.where(classes[:, None] < 0, torch.nan, (classes[:, None] == torch.arange(4)).double())
    entropy = masked_cross_entropy(a, classes, torch.tensor([1.0, 2.0, 0.5, 3.0]), label_smoothing=0.1)
    voxels, known = classes[:, None].expand(-1, 5), (classes >= 0)[:, None].expand(-1, 5)
    dice = masked_dice(torch.stack([a, b, a - b, -b, a * b], 2), voxels, known)
    return entropy + 2 * masked_binary_cross_entropy(b, findings) + 3 * dice


def widened(x: torch.Tensor) -> torch.Tensor:
    """More than twice as many dimensions as samples: 4 -> 20."""
    return torch.cat([x, x**2, x**3, x.sin(), x.cos()], dim=1)


def cases() -> dict:
    queue = inputs()[2][:, :4]
    return {
        "nt_xent": NTXentLoss(0.2),
        "nt_xent at low temperature": NTXentLoss(0.05),
        "group_nt_xent": grouped,
        "nt_xent without own patients": lambda a, b: contrast_views(a, b, related(a, False), 0.2),
        "nt_xent with patients' positives": lambda a, b: contrast_views(a, b, related(a, True), 0.2),
        "moco_v3 without own patients": partial(moco_v3, positives=False),
        "moco_v3 with patients' positives": partial(moco_v3, positives=True),
        "images and texts": ImageTextContrastLoss(0.2),
        "images and texts, studies, equal texts": described,
        "info_nce": lambda a, b: InfoNCELoss(0.2)(a, b.detach(), queue),
        "info_nce, gathered keys as queue": lambda a, b: InfoNCELoss(0.2)(a, b, all_gather(b)),
        "nce": lambda a, b: ConstantZNCELoss(100, 0.2)(a, b.detach(), queue),
        "overlap and orthogonality": placed,
        "distillation, centred codes": lambda a, b: distilled(a, b, "mean"),
        "distillation, Sinkhorn codes": lambda a, b: distilled(a, b, "sinkhorn"),
        "koleo": lambda a, b: KoLeoLoss()(a) + KoLeoLoss()(b),
        "swapped prediction": clustered,
        "swapped prediction by source": clustered_by_source,
        "point_contrast": pointed,
        "labels known for some": partly_labelled,
        "whole-batch loss on every process": spread,
        "negative cosine": negative_cosine,
        "redundancy reduction": RedundancyReductionLoss(0.5),
        "redundancy reduction, many dimensions": lambda a, b: RedundancyReductionLoss(0.5)(widened(a), widened(b)),
        "vicreg": VICRegLoss(target_std=3.0),
        "vicreg, many dimensions": lambda a, b: VICRegLoss(target_std=3.0)(widened(a), widened(b)),
    }


def loss_and_gradients(model: nn.Module, loss_function, a: torch.Tensor, b: torch.Tensor) -> tuple[float, list]:
    model.zero_grad()
    first, second = model(torch.cat([a, b])).chunk(2)
    loss = loss_function(first, second)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


def worker(rank: int, world_size: int) -> dict:
    assert is_distributed()
    a, b, queue = inputs()
    rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    results = {}
    for name, loss_function in cases().items():
        model = nn.parallel.DistributedDataParallel(encoder())
        results[name] = loss_and_gradients(model, loss_function, a[rows], b[rows])

    local = NTXentLoss(0.2, gather_distributed=False)
    results["local"] = local(a[rows], b[rows]).item()
    nce = ConstantZNCELoss(100, 0.2)
    nce(a[rows], b[rows], queue)
    results["log_z"] = nce.log_z.item()
    codes = TeacherCodes(DIM)
    codes(torch.stack([a[rows], b[rows]]), 0.04)
    codes.update()
    results["center"] = codes.center
    results["order"] = all_gather(torch.full((2, 3), float(rank)))[:, 0].tolist()
    try:
        all_gather(torch.zeros(3 + rank, 2))
    except ValueError as error:
        results["unequal"] = str(error)
    dist.barrier()
    return results


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_processes(worker)


@pytest.mark.parametrize("name", list(cases()))
def test_gradients_equal_those_of_the_whole_batch(results, name):
    a, b, _ = inputs()
    loss, gradients = loss_and_gradients(encoder(), cases()[name], a, b)
    assert sum(result[name][0] for result in results) / len(results) == pytest.approx(loss, rel=1e-6)
    for result in results:
        for ours, expected in zip(result[name][1], gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_without_gathering_each_process_sees_its_own_batch(results):
    a, b, _ = inputs()
    for rank, rows in enumerate((slice(0, 3), slice(3, 6))):
        assert results[rank]["local"] == pytest.approx(NTXentLoss(0.2)(a[rows], b[rows]).item(), rel=1e-12)


def test_partition_function_is_that_of_the_whole_batch(results):
    whole = ConstantZNCELoss(100, 0.2)
    whole(*inputs())
    assert results[0]["log_z"] == results[1]["log_z"] == pytest.approx(whole.log_z.item(), rel=1e-6)


def test_the_centre_is_that_of_the_whole_batch(results):
    a, b, _ = inputs()
    for result in results:
        torch.testing.assert_close(result["center"], 0.1 * torch.cat([a, b]).mean(0).float())


def test_rows_come_in_the_order_of_the_ranks(results):
    assert all(result["order"] == [0.0, 0.0, 1.0, 1.0] for result in results)


def test_unequal_batches_are_refused_on_every_process(results):
    for result in results:
        assert "different sizes [3, 4]" in result["unequal"]


def test_gather_without_a_process_group_does_nothing():
    x = torch.ones(2, 3)
    assert not is_distributed()
    assert all_gather(x) is x


def fail_on_one_rank(rank: int, world_size: int) -> None:
    if rank == 1:
        raise RuntimeError("rank 1 gave up")
    dist.barrier()


def test_the_helper_reports_the_process_that_failed():
    with pytest.raises(AssertionError, match="rank 1 gave up"):
        run_processes(fail_on_one_rank)
