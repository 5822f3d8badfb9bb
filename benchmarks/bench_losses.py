# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses, forward and backward, beside MONAI's ContrastiveLoss and lightly's NTXentLoss.

Times are per call. A row also says whether both give the same value, the peak memory of one call, and who stays finite
at temperature 0.05 in half precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from torch import Tensor

from benchmarks.peers import lightly
from benchmarks.rounds import Row, compare_times, interleaved, torch_threads
from monai_ssl.losses import info_nce, nt_xent
from monai_ssl.networks import FeatureQueue

TEMPERATURE = 0.1
DIM = 128
QUEUE = 16_384  # C2L's queue
MONAI, LIGHTLY, LIGHTLY_BANK = "MONAI ContrastiveLoss", "lightly NTXentLoss", "lightly NTXentLoss with memory bank"
TEXTBOOK = "concatenate + cross_entropy"
GOAL_BATCH, GOAL = 256, 100.0


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each loss, batch size, peer that is installed and number of threads."""
    batches, queue = ((8,), 64) if tiny else ((64, 128, GOAL_BATCH), QUEUE)
    for number in threads:
        with torch_threads(number):
            for batch in batches:
                yield from _nt_xent_rows(batch, rounds)
            yield from _info_nce_rows(batches[-1], queue, rounds)


def _nt_xent_rows(batch: int, rounds: int) -> Iterator[Row]:
    views = _features(batch, batch)
    for name, peer in {MONAI: _monai(), LIGHTLY: _lightly()}.items():
        if peer is not None:
            goal = GOAL if name == MONAI and batch == GOAL_BATCH else None
            setting = f"B={batch} F={DIM} T={TEMPERATURE}"
            yield _compare("NT-Xent", setting, name, nt_xent, peer, views, rounds, goal)


def _info_nce_rows(batch: int, size: int, rounds: int) -> Iterator[Row]:
    """InfoNCE with a queue; where the peer's call also updates its queue, so does ours."""
    query, key = _features(batch, batch)
    key = key.detach()
    setting = f"B={batch} K={size} F={DIM} T={TEMPERATURE}"
    queue = FeatureQueue(size, DIM)
    start = F.normalize(torch.randn(size, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    queue.enqueue(start)

    def ours(q: Tensor, k: Tensor, temperature: float) -> Tensor:
        return info_nce(q, k, queue.features, temperature)

    def textbook(q: Tensor, k: Tensor, temperature: float) -> Tensor:
        q, k, n = (F.normalize(x, dim=1) for x in (q, k, queue.features.to(q.dtype)))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    yield _compare("InfoNCE", setting, TEXTBOOK, ours, textbook, [query, key], rounds)

    peer = _lightly(memory_bank_size=(size, DIM))
    if peer is None:
        return
    for bank in peer.banks:
        bank.copy_(start)

    def ours_with_update(q: Tensor, k: Tensor, temperature: float) -> Tensor:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        loss = info_nce(q, k, queue.features, temperature, normalized=True)  # the queue holds unit vectors
        queue.enqueue(k)
        return loss

    yield _compare("InfoNCE + enqueue", setting, LIGHTLY_BANK, ours_with_update, peer, [query, key], rounds)


def _compare(
    bench: str,
    setting: str,
    name: str,
    ours: Callable,
    peer: Callable,
    inputs: list[Tensor],
    rounds: int,
    goal: float | None = None,
) -> Row:
    first, second = (_call(function, inputs, TEMPERATURE).item() for function in (ours, peer))
    contestants = {
        "ours": lambda: _milliseconds(ours, inputs),
        name: lambda: _milliseconds(peer, inputs),
    }
    figures = interleaved(contestants, rounds, warm_up=False)
    difference = abs(first - second) / abs(second)
    equal = f"{'equal' if difference <= 1e-5 else 'DIFFERENT'} values (relative difference {difference:.1e})"
    memory = f"peak memory {_peak_mib(ours, inputs):.1f} against {_peak_mib(peer, inputs):.1f} MiB"
    half = f"at T=0.05 ours is {_in_half_precision(ours, inputs)}, the peer {_in_half_precision(peer, inputs)}"
    return compare_times(
        figures["ours"],
        figures[name],
        bench=bench,
        setting=setting,
        threads=torch.get_num_threads(),
        peer=name,
        goal=goal,
        note=f"{equal}; {memory}; {half}",
    )


def _features(*rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows[0], DIM, generator=generator)
    return [(base + 0.5 * torch.randn(n, DIM, generator=generator)).requires_grad_() for n in rows]


def _call(function: Callable, inputs: list[Tensor], temperature: float) -> Tensor:
    """Loss after forward and backward."""
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    loss = function(*inputs, temperature)
    loss.backward()
    return loss.detach()


def _in_half_precision(function: Callable, inputs: list[Tensor]) -> str:
    """Whether the loss is finite at temperature 0.05 for float16 and bfloat16 features."""
    results = []
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            finite = _call(function, [x.to(dtype) for x in inputs], 0.05).isfinite()
            results.append(f"finite in {name}" if finite else f"NOT finite in {name}")
        except RuntimeError:
            results.append(f"unable to take {name}")
    return " and ".join(results)


def _milliseconds(function: Callable, inputs: list[Tensor], at_least: float = 0.02) -> float:
    """Mean time of one call over as many calls as fill ``at_least`` seconds."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < at_least:
        _call(function, inputs, TEMPERATURE)
        calls += 1
    return (time.perf_counter() - start) / calls * 1e3


def _peak_mib(function: Callable, inputs: list[Tensor]) -> float:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        _call(function, inputs, TEMPERATURE)
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        highest = max(highest, held)
    return highest / 2**20


def _monai() -> Callable:
    losses = {t: ContrastiveLoss(temperature=t) for t in (TEMPERATURE, 0.05)}
    return lambda a, b, temperature: losses[temperature](a, b)


def _lightly(**options) -> Callable | None:
    if lightly() is None:
        return None
    losses = {t: lightly("lightly.loss").NTXentLoss(temperature=t, **options) for t in (TEMPERATURE, 0.05)}

    def call(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        return losses[temperature](a, b)

    call.banks = [loss.memory_bank.bank for loss in losses.values()]
    return call
