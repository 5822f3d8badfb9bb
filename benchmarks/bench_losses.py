# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses, forward and backward, beside MONAI's ContrastiveLoss and lightly's NTXentLoss.

Rounds are interleaved (ours, peer, ours, peer, ...), times are per call. A row also says whether both give the same
value, the peak memory of one call, and who stays finite at temperature 0.05 in half precision.

Run it alone with ``python -m benchmarks.bench_losses [ROUNDS]``.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ssl.losses import info_nce, nt_xent
from monai_ssl.networks import FeatureQueue

TEMPERATURE = 0.1
DIM = 128
QUEUE = 16_384  # C2L's queue


def run(rounds: int = 7) -> list[dict]:
    """One row per loss, batch size and peer that is installed."""
    rows = [row for batch in (64, 128, 256) for row in _nt_xent_rows(batch, rounds)]
    return rows + _info_nce_rows(256, rounds)


def _nt_xent_rows(batch: int, rounds: int) -> list[dict]:
    views = _features(batch, batch)
    rows = []
    for name, make in {"MONAI ContrastiveLoss": _monai, "lightly NTXentLoss": _lightly}.items():
        peer = make()
        if peer is not None:
            setting = f"B={batch} F={DIM} T={TEMPERATURE}"
            rows.append(_compare("NT-Xent", setting, name, nt_xent, peer, views, rounds))
    return rows


def _info_nce_rows(batch: int, rounds: int) -> list[dict]:
    """InfoNCE with a queue; where the peer's call also updates its queue, so does ours."""
    query, key = _features(batch, batch)
    key = key.detach()
    setting = f"B={batch} K={QUEUE} F={DIM} T={TEMPERATURE}"
    queue = FeatureQueue(QUEUE, DIM)
    start = F.normalize(torch.randn(QUEUE, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    queue.enqueue(start)

    def ours(q: Tensor, k: Tensor, temperature: float) -> Tensor:
        return info_nce(q, k, queue.features, temperature)

    def textbook(q: Tensor, k: Tensor, temperature: float) -> Tensor:
        q, k, n = (F.normalize(x, dim=1) for x in (q, k, queue.features.to(q.dtype)))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    rows = [_compare("InfoNCE", setting, "concatenate + cross_entropy", ours, textbook, [query, key], rounds)]

    peer = _lightly(memory_bank_size=(QUEUE, DIM))
    if peer is not None:
        for bank in peer.banks:
            bank.copy_(start)

        def ours_with_update(q: Tensor, k: Tensor, temperature: float) -> Tensor:
            q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
            loss = info_nce(q, k, queue.features, temperature, normalized=True)  # the queue holds unit vectors
            queue.enqueue(k)
            return loss

        name = "lightly NTXentLoss with memory bank"
        rows.append(_compare("InfoNCE + enqueue", setting, name, ours_with_update, peer, [query, key], rounds))
    return rows


def _compare(
    bench: str, setting: str, name: str, ours: Callable, peer: Callable, inputs: list[Tensor], rounds: int
) -> dict:
    first, second = (_call(function, inputs, TEMPERATURE).item() for function in (ours, peer))
    times = [(_milliseconds(ours, inputs), _milliseconds(peer, inputs)) for _ in range(rounds)]
    difference = abs(first - second) / abs(second)
    equal = f"{'equal' if difference <= 1e-5 else 'DIFFERENT'} values (relative difference {difference:.1e})"
    memory = f"peak memory {_peak_mib(ours, inputs):.1f} against {_peak_mib(peer, inputs):.1f} MiB"
    half = f"at T=0.05 ours is {_in_half_precision(ours, inputs)}, the peer {_in_half_precision(peer, inputs)}"
    return {
        "bench": bench,
        "setting": f"{setting}, {torch.get_num_threads()} thread(s)",
        "ours_ms": _spread([a for a, _ in times]),
        "peer": name,
        "peer_ms": _spread([b for _, b in times]),
        "ratio": _spread([b / a for a, b in times]),
        "note": f"{equal}; {memory}; {half}",
    }


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


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _monai() -> Callable:
    from monai.losses import ContrastiveLoss

    losses = {t: ContrastiveLoss(temperature=t) for t in (TEMPERATURE, 0.05)}
    return lambda a, b, temperature: losses[temperature](a, b)


@functools.cache
def _lightly_class() -> type | None:
    try:
        from lightly.loss import NTXentLoss
    except Exception as error:  # a missing package, or one of its own imports that does not fit
        print(f"skipped: lightly ({type(error).__name__}: {str(error).splitlines()[0]})")
        return None
    return NTXentLoss


def _lightly(**options) -> Callable | None:
    loss_class = _lightly_class()
    if loss_class is None:
        return None
    losses = {t: loss_class(temperature=t, **options) for t in (TEMPERATURE, 0.05)}

    def call(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        return losses[temperature](a, b)

    call.banks = [loss.memory_bank.bank for loss in losses.values()]
    return call


def main() -> None:
    for row in run(int(sys.argv[1]) if len(sys.argv) > 1 else 7):
        ours, peer, ratio = (
            "{median:.3g} ({min:.3g} to {max:.3g})".format(**row[key]) for key in ("ours_ms", "peer_ms", "ratio")
        )
        print(f"{row['bench']} {row['setting']}: ours {ours} ms, {row['peer']} {peer} ms, ratio {ratio}")
        print(f"    {row['note']}")


if __name__ == "__main__":
    main()
