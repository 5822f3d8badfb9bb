# SPDX-License-Identifier: Apache-2.0
"""Clustering in two processes, of which one lacks a source, trains as one process does with the whole batch."""

from __future__ import annotations

import pytest
import torch
from cluster_cases import SMALL, PooledEncoder, make_views
from distributed_helper import run_processes
from torch import nn

from monai_ssl.methods import ModalityClustering, OnlineClustering, SwAV
from monai_ssl.networks import convert_sync_batch_norm

# The sources of each step's six images, three for each process: first both hold several, then neither shares one.
SOURCES = ([0, 2, 0, 2, 2, 0], [0, 0, 0, 2, 2, 2], [2, 2, 2, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 2, 1, 1, 1])
QUEUE = {"queue_size": 5, "queue_start_step": 1, "freeze_steps": 1}

CASES = {
    "swav": lambda: SwAV(PooledEncoder(), **SMALL),
    "swav with a queue": lambda: SwAV(PooledEncoder(), **SMALL | QUEUE),
    "shared": lambda: ModalityClustering(PooledEncoder(), 3, **SMALL),
    "shared, with queues": lambda: ModalityClustering(PooledEncoder(), 3, **SMALL | QUEUE),
    "mixed, with queues": lambda: ModalityClustering(PooledEncoder(), 3, assign_within="batch", **SMALL | QUEUE),
    "per source, with queues": lambda: ModalityClustering(PooledEncoder(), 3, prototypes="per_source", **SMALL | QUEUE),
}


def train(method: OnlineClustering, rank: int, world_size: int) -> dict:
    network: nn.Module = method
    if world_size > 1:
        network = nn.parallel.DistributedDataParallel(convert_sync_batch_norm(method), broadcast_buffers=False)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5, momentum=0.9)
    losses = []
    rows = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    for number, sources in enumerate(SOURCES):
        views = [view[rows] for view in make_views(seed=number)]
        out = network({"views": views, "source": torch.tensor(sources)[rows]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((number + 1) / len(SOURCES))
        losses.append(out["loss"].item())
    return {"losses": losses, "state": method.state_dict()}


def worker(rank: int, world_size: int) -> dict:
    return {name: train(make(), rank, world_size) for name, make in CASES.items()}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_processes(worker)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(results, name):
    whole = train(CASES[name](), 0, 1)
    for step, losses in enumerate(zip(*(result[name]["losses"] for result in results), strict=True)):
        assert sum(losses) / 2 == pytest.approx(whole["losses"][step], rel=1e-3), f"step {step}"
    for result in results:
        for key, value in result[name]["state"].items():
            if key != "last_losses":  # each process's own
                torch.testing.assert_close(
                    value, whole["state"][key], rtol=2e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
                )
            assert value.isfinite().all()
