# SPDX-License-Identifier: Apache-2.0
"""Peak memory of each joint-embedding loss, forward and backward, over the similarity matrix that it is defined by.

The inputs are there before; what is measured is all that a call adds, gradients of the inputs included, see
:mod:`benchmarks.memory`. The matrix is float32 and as large as the definition compares: all views with all views,
queries with keys of a queue, crops with prototypes, points with points. Losses that compare no pairs are set against
(B, B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.memory import peak_mib
from benchmarks.rounds import Row, compare_times, torch_threads
from monai_ssl.losses import (
    cosine_regression,
    distillation,
    group_nt_xent,
    info_nce,
    koleo,
    nce_constant_z,
    negative_cosine,
    nt_xent,
    point_contrast,
    redundancy_reduction,
    sinkhorn,
    swapped_prediction,
    vicreg,
)

DIM, QUEUE, OUTPUTS, IMAGES = 128, 16_384, 4096, 4
GOAL = 1 / 3  # at most three matrices
MATRIX = "one similarity matrix"
_PAGE = 4096 / 2**20  # MiB: what the kernel counts in, and what a call that adds less is taken for


@dataclass(frozen=True)
class Case:
    """A loss: shapes of its inputs, those with a gradient first; the call; and the shape of its matrix."""

    inputs: Callable[[int], list[tuple[int, ...]]]
    loss: Callable[..., Tensor]
    matrix: Callable[[int], tuple[int, ...]]
    learning: int = 2


def _pair(size: int) -> list[tuple[int, ...]]:
    return [(size, DIM)] * 2


def _queued(size: int) -> list[tuple[int, ...]]:
    return [(size, DIM), (size, DIM), (QUEUE, DIM)]


def _square(size: int) -> tuple[int, ...]:
    return size, size


def _groups(a: Tensor, b: Tensor) -> Tensor:
    return group_nt_xent(a, b, torch.arange(len(a)) // 2)


def _swapped(scores: Tensor) -> Tensor:
    with torch.no_grad():
        codes = torch.stack([sinkhorn(crop.detach()) for crop in scores])
    return swapped_prediction(scores, codes)


def _distilled(student: Tensor, teacher: Tensor) -> Tensor:
    return distillation(student, (teacher / 0.04).softmax(-1))


def _points(query: Tensor, key: Tensor) -> Tensor:
    return point_contrast(query, key, torch.eye(query.shape[1], dtype=torch.bool).expand(len(query), -1, -1))


CASES = {
    "nt_xent": Case(_pair, nt_xent, lambda size: (2 * size, 2 * size)),
    "group_nt_xent, patients of two": Case(_pair, _groups, lambda size: (2 * size, 2 * size)),
    "info_nce, all other keys of the batch": Case(
        lambda size: [(size, DIM)] * 3, lambda q, k, n: info_nce(q, k, n), _square, learning=1
    ),
    f"info_nce, queue of {QUEUE:,}": Case(_queued, info_nce, lambda size: (size, QUEUE), learning=1),
    f"nce_constant_z, queue of {QUEUE:,}": Case(
        _queued, partial(nce_constant_z, log_z=10.0, num_data=100_000), lambda size: (size, QUEUE), learning=1
    ),
    "negative_cosine": Case(_pair, negative_cosine, _square, learning=1),
    "cosine_regression": Case(_pair, cosine_regression, _square, learning=1),
    "redundancy_reduction": Case(_pair, redundancy_reduction, _square),
    "vicreg": Case(_pair, vicreg, _square),
    "koleo": Case(lambda size: [(size, DIM)], koleo, _square, learning=1),
    f"sinkhorn and swapped_prediction, 2 crops, {OUTPUTS:,} prototypes": Case(
        lambda size: [(2, size, OUTPUTS)], _swapped, lambda size: (2, size, OUTPUTS), learning=1
    ),
    f"codes and distillation, 2 crops, {OUTPUTS:,} outputs": Case(
        lambda size: [(2, size, OUTPUTS)] * 2, _distilled, lambda size: (2, size, OUTPUTS), learning=1
    ),
    f"point_contrast, B points of each of {IMAGES} images": Case(
        lambda size: [(IMAGES, size, DIM)] * 2, _points, lambda size: (IMAGES, size, size)
    ),
}
_TINY = ("nt_xent", "vicreg")  # a process each

_inputs: list[Tensor] = []  # of this process


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield one row for each loss; ``rounds`` processes each."""
    size = 64 if tiny else 1024
    with torch_threads(max(threads)):
        for name in _TINY if tiny else CASES:
            matrix = CASES[name].matrix(size)
            peaks = [
                max(_PAGE, peak_mib(__name__, partial(_warm_up, name, size), partial(_call, name)))
                for _ in range(rounds)
            ]
            yield compare_times(
                peaks,
                [math.prod(matrix) * 4 / 2**20] * rounds,
                unit="MiB",
                bench="loss, peak memory",
                setting=f"{name}, B={size}" + f" F={DIM}" * (OUTPUTS not in matrix),
                threads=max(threads),
                peer=MATRIX,
                goal=GOAL,
                note=f"matrix of {' x '.join(f'{side:,}' for side in matrix)}",
            )


def _warm_up(name: str, size: int) -> None:
    """A small call, then the inputs of the large one."""
    for number in (8, size):
        generator = torch.Generator().manual_seed(0)
        _inputs[:] = [torch.randn(shape, generator=generator) for shape in CASES[name].inputs(number)]
        for x in _inputs[: CASES[name].learning]:
            x.requires_grad_()
        if number < size:
            _call(name)


def _call(name: str) -> None:
    CASES[name].loss(*_inputs).backward()
