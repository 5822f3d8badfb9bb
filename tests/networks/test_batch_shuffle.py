# SPDX-License-Identifier: Apache-2.0
"""Shuffle-BN with one process, and shuffle, queue and memory bank with two processes of unequal batches."""

from __future__ import annotations

import torch
from distributed_helper import run_processes
from torch import nn

from monai_ssl.networks import BatchShuffle, FeatureQueue, MemoryBank, MomentumCopy, gather_rows, shuffle_batch_norm


def teacher() -> MomentumCopy:
    torch.manual_seed(0)
    return MomentumCopy(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)))


def test_one_process_gives_the_teachers_own_output():
    x = torch.randn(12, 1, 8, 8)
    expected = teacher()(x)
    torch.testing.assert_close(shuffle_batch_norm(teacher(), x), expected)
    shuffle = BatchShuffle(12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(shuffle_batch_norm(teacher(), x, shuffle), expected)
    assert not shuffle_batch_norm(teacher(), x).requires_grad


def test_shuffle_permutes_and_unshuffle_undoes_it():
    rows = torch.arange(20).view(20, 1)
    shuffle = BatchShuffle(20, generator=torch.Generator().manual_seed(0))
    shuffled = shuffle.shuffle(rows)
    assert not torch.equal(shuffled, rows) and torch.equal(shuffled.sort(0).values, rows)
    assert torch.equal(shuffle.unshuffle(shuffled), rows)
    same = BatchShuffle(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(same.shuffle(rows), shuffled)


def remembered(rows: slice) -> torch.Tensor:
    """A bank after two steps with some of 8 rows; image 3 comes three times, from both processes."""
    bank = MemoryBank(9, 5)
    for step in range(2):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        bank.update(torch.tensor([0, 3, 8, 3, 1, 3, 5, 6])[rows], x[rows])
    return bank.features


def work(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Rank 0 has rows 0 to 4, rank 1 rows 5 to 7."""
    every = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 8, 8) + torch.rand(
        8, 1, 8, 8, generator=torch.Generator().manual_seed(5)
    )
    own = every[:5] if rank == 0 else every[5:]
    gathered, sizes = gather_rows(own)
    shuffle = BatchShuffle(len(own), generator=torch.Generator().manual_seed(rank))
    shuffled = shuffle.shuffle(own)
    queue = FeatureQueue(6, 5, generator=torch.Generator().manual_seed(0))
    keys = shuffle_batch_norm(teacher(), own, shuffle)
    queue.enqueue(keys, torch.arange(5) if rank == 0 else torch.arange(5, 8))
    return {
        "bank": remembered(slice(0, 5) if rank == 0 else slice(5, 8)),
        "every": every,
        "gathered": gathered,
        "sizes": torch.tensor(sizes),
        "shuffled": shuffled,
        "restored": shuffle.unshuffle(shuffled),
        "own": own,
        "keys": keys,
        "queue": queue.features,
        "groups": queue.groups,
        "position": queue.position,
    }


def test_two_processes_of_unequal_batches():
    first, second = run_processes(work)
    for result in (first, second):
        assert torch.equal(result["gathered"], result["every"])
        assert result["sizes"].tolist() == [5, 3]
        assert torch.equal(result["restored"], result["own"])
    # The two batches exchange rows, each keeps its size, and no row is lost.
    mixed = torch.cat([first["shuffled"], second["shuffled"]])
    order = mixed[:, 0, 0, 0].floor().long()
    assert len(first["shuffled"]) == 5 and sorted(order.tolist()) == list(range(8))
    assert set(order[:5].tolist()) != set(range(5))
    # Each key was normalised with the images that shared its shuffled batch.
    keys = torch.empty(8, 5)
    keys[order[:5]] = teacher()(first["shuffled"])
    keys[order[5:]] = teacher()(second["shuffled"])
    torch.testing.assert_close(torch.cat([first["keys"], second["keys"]]), keys)
    # Both queues hold the last 6 of the 8 keys in rank order, wrapped round: 6 and 7 lie at slots 0 and 1.
    assert torch.equal(first["queue"], second["queue"]) and first["position"] == second["position"] == 2
    torch.testing.assert_close(first["queue"], keys[[6, 7, 2, 3, 4, 5]])
    assert torch.equal(first["bank"], second["bank"])
    torch.testing.assert_close(first["bank"], remembered(slice(None)))
    assert first["groups"].tolist() == second["groups"].tolist() == [6, 7, 2, 3, 4, 5]
