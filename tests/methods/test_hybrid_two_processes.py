# SPDX-License-Identifier: Apache-2.0
"""Hybrid pretraining in two processes, one of which has a single label, is that of the whole batch in one."""

from __future__ import annotations

import pytest
import torch
from distributed_helper import run_processes
from toy_training import LossLog, toy_trainer

from monai_ssl.losses import IGNORED_LABEL
from monai_ssl.methods import C2L, ClassTask, FindingsTask, Hybrid, SegmentationTask, Supervised
from monai_ssl.networks import build_encoder

BATCH = 8
LABELS = torch.tensor([-1, 2, -1, -1, 0, 1, -1, 2])
FEWER = torch.tensor([-1, 2, -1, -1, 0, -1, -1, 2])


class PlainViews:
    """Views that depend on the image alone, and maps that follow them."""

    def draw(self, *_):
        return None

    def apply(self, x, params, interpolation="bilinear"):
        return [x, x.flip(-1)]


def encoder():
    return build_encoder("resnet10", widen_factor=0.125)


def contrast() -> C2L:
    return C2L(encoder(), keys="student", terms=["homogeneous"], embedding_dim=8, queue_size=8)


def tasks() -> list:
    classes = ClassTask("label", 3, class_weights=[1.0, 2.0, 0.5])
    return [classes, FindingsTask("finding", weight=0.5), SegmentationTask(2, width=8)]


METHODS = {
    "hybrid": lambda: Hybrid(contrast(), tasks(), weight=0.5, final_weight=2.0),
    "too few unlabelled": lambda: Hybrid(contrast(), tasks(), self_supervised_on="unlabelled"),
    "unlabelled": lambda: Hybrid(contrast(), tasks(), self_supervised_on="unlabelled"),
    "supervised": lambda: Supervised(encoder(), tasks()),
}


def data(labels: torch.Tensor) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, 32, 32, generator=generator)
    maps = (3 * images).long().clamp(max=2).byte()
    maps[labels < 0] = IGNORED_LABEL
    finding = torch.where(labels < 0, torch.nan, (labels == 2).float())
    return {"image": images, "label": labels, "finding": finding, "label_map": maps}


def train(rank: int, world_size: int, name: str) -> dict:
    share = BATCH // world_size
    rows = slice(rank * share, (rank + 1) * share)
    labels = FEWER if name == "unlabelled" else LABELS
    batches = [{key: value[rows] for key, value in data(each).items()} for each in (labels, labels.flip(0))]
    log = LossLog()
    trainer = toy_trainer(
        loader=batches, method=METHODS[name], max_epochs=1, train_handlers=[log], find_unused_parameters=True
    )
    trainer.views = PlainViews()
    begun = {k: v.clone() for k, v in trainer.method.state_dict().items()}
    gradients = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in trainer.method.parameters() if p.grad is not None])
    )
    trainer.run()
    state = {k: v.clone() for k, v in trainer.method.state_dict().items()}
    return {"gradients": gradients, "begun": begun, "state": state, "losses": list(log.losses.values())}


def worker(rank: int, world_size: int) -> dict:
    return {name: train(rank, world_size, name) for name in METHODS}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_processes(worker)


@pytest.mark.parametrize("name", ["hybrid", "supervised"])
def test_losses_gradients_and_weights_are_those_of_the_whole_batch(results, name):
    whole = train(0, 1, name)
    mean = torch.tensor([result[name]["losses"] for result in results]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(whole["losses"]), rtol=1e-4, atol=1e-5)
    for result in (results[0][name], results[1][name]):
        for ours, expected in zip(result["gradients"][0], whole["gradients"][0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
        for key, value in whole["state"].items():
            torch.testing.assert_close(result["state"][key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_each_process_takes_as_many_unlabelled_images_as_the_one_with_fewest(results):
    """Three here and one there leave too few to be told apart; three here and two there are two and two."""
    for name, learns in (("too few unlabelled", False), ("unlabelled", True)):
        one, other = (result[name] for result in results)
        for key, value in one["state"].items():
            torch.testing.assert_close(other["state"][key], value, msg=key)
        moved = {key for key, value in one["state"].items() if not torch.equal(value, one["begun"][key])}
        assert any(key.startswith("method.head") for key in moved) == learns
        assert any(key.startswith("heads.tasks.label") for key in moved)
        assert any(key.startswith("method.encoder") for key in moved)
