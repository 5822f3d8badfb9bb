# SPDX-License-Identifier: Apache-2.0
"""Choose precision and memory format by measuring both on the run's own network, images and machine.

Each candidate is timed on whole steps and checked against fp32: layer by layer
(:mod:`monai_ssl.engines.layer_check`), and on the whole step, where rounding leaves loss, embedding and the gradient's
direction and length roughly as they were and a wrong kernel does not. A candidate that fails is out, however fast.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_ssl.engines.layer_check import LayerInputs, check_layers, to_memory_format
from monai_ssl.engines.random_state import preserved_random_state

__all__ = ["AUTOCAST_TYPES", "PrecisionChoice", "choose_precision", "to_memory_format"]

AUTOCAST_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision -> type that autocast computes in."""

# Whole-step limits, from rounding seen at the start of ResNet-18 trainings (gradient's cosine 0.94 in 2D and 0.7 to
# 0.8 in 3D with 4 images, loss within 1 %, embedding within 11 %).
_LOSS_CHANGE, _EMBEDDING_CHANGE, _GRADIENT_COSINE, _GRADIENT_RATIO = 0.1, 0.35, 0.5, 2.0
# A plainer candidate wins unless another is faster by this factor.
_WORTHWHILE = 1.05
# Images in the first step, which shows how many the time allows and gives the layers' inputs.
_PILOT_IMAGES = 8


@dataclass(frozen=True)
class PrecisionChoice:
    """What was chosen, and the measurements as a table in text (the faster of two steps)."""

    precision: str
    channels_last: bool
    table: str


@dataclass
class _Candidate:
    precision: str
    channels_last: bool
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"{self.precision}, {'channels last' if self.channels_last else 'channels first'}"


def choose_precision(
    method: nn.Module,
    batch: dict[str, Any],
    *,
    precisions: Sequence[str] = ("fp32", "bf16"),
    channels_last: Sequence[bool] = (False, True),
    tries: int = 3,
    time_budget_s: float = 15.0,
) -> PrecisionChoice:
    """Measure the candidates on a copy of the method and return the fastest that is right.

    The method, the batch, the batch's generator and the global generators are left as they were. In a distributed run
    all processes must call it; they agree on the slowest time and the worst finding.

    Args:
        method: on its device.
        batch: one real batch with ``"views"`` and ``"generator"``, as the method gets it.
        precisions: candidates, of ``"fp32"``, ``"bf16"`` and ``"fp16"``.
        channels_last: candidate memory formats.
        tries: how often each layer is checked.
        time_budget_s: about how long it may take; on a slow machine steps are timed on a part of the batch (at least
            8 images).

    Raises:
        ValueError: no or an unknown candidate.
        RuntimeError: no candidate gives finite and right results.
    """
    unknown = sorted(set(precisions) - AUTOCAST_TYPES.keys())
    if unknown or not precisions or not channels_last:
        raise ValueError(f"precisions must be some of {', '.join(AUTOCAST_TYPES)}, got {', '.join(unknown) or 'none'}")
    candidates = [
        _Candidate(precision, last)
        for precision in sorted(set(precisions), key=list(AUTOCAST_TYPES).index)
        for last in sorted(set(channels_last))
    ]
    bench = _Bench(method, batch)
    deadline = time.perf_counter() + time_budget_s
    inputs, plain = LayerInputs(), _Candidate("fp32", False)
    bench.images = min(_PILOT_IMAGES, bench.images)
    with inputs.recorded(bench.method):
        seconds, _ = bench.step(plain)
    problems = check_layers(inputs, [(AUTOCAST_TYPES[c.precision], c.channels_last) for c in candidates], tries)
    for candidate, problem in zip(candidates, problems, strict=True):
        candidate.problem = problem
    inputs.layers.clear()
    # One step of each candidate and one more should fit, on a part of the batch if they must.
    affordable = int(bench.images * time_budget_s / (len(candidates) + 2) / seconds)
    bench.images = _same_everywhere(max(bench.images, min(affordable, len(batch["views"][0]))))
    _, reference = bench.step(plain)
    _agree(candidates)
    for repetition in range(2):
        for candidate in candidates:
            if _same_everywhere(repetition == 0 or _may_win(candidate, candidates, deadline)):
                _try(candidate, bench, reference)
        _agree(candidates)
    return _decide(candidates, bench.images)


def _try(candidate: _Candidate, bench: _Bench, reference: dict[str, Tensor]) -> None:
    if candidate.problem is not None:
        return
    try:
        seconds, result = bench.step(candidate)
        candidate.seconds.append(seconds)
        candidate.problem = _compare(result, reference)
    except RuntimeError as error:  # a kernel that does not exist here
        candidate.problem = str(error).splitlines()[0]


class _Bench:
    """A copy of the method that makes the same step again and again."""

    def __init__(self, method: nn.Module, batch: dict[str, Any]) -> None:
        self.method = copy.deepcopy(method).train()
        self.batch = batch
        self.images = len(batch["views"][0])
        self.initial = {key: value.clone() for key, value in self.method.state_dict().items()}
        self.device = batch["views"][0].device

    def step(self, candidate: _Candidate) -> tuple[float, dict[str, Tensor]]:
        """Time one pass forward and back over ``images`` images; return seconds and loss, embedding and gradient."""
        for parameter in self.method.parameters():
            parameter.data = to_memory_format(parameter.data, candidate.channels_last)
        self.method.load_state_dict(self.initial)
        self.method.zero_grad(set_to_none=True)
        views = [to_memory_format(view[: self.images], candidate.channels_last) for view in self.batch["views"]]
        size = len(self.batch["views"][0])
        batch = {key: _cut(value, size, self.images) for key, value in self.batch.items()} | {"views": views}
        dtype = AUTOCAST_TYPES[candidate.precision]
        with preserved_random_state(self.device), _preserved(self.batch.get("generator")):
            self._wait()
            start = time.perf_counter()
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
                output = self.method(batch)
            output["loss"].backward()
            self._wait()
            seconds = time.perf_counter() - start
        gradients = [p.grad.detach().float().flatten() for p in self.method.parameters() if p.grad is not None]
        result = {"loss": output["loss"].detach().float(), "gradient": torch.cat(gradients)}
        if "embedding" in output:
            result["embedding"] = output["embedding"].detach().float()
        return seconds, result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _cut(value: Any, size: int, images: int) -> Any:
    """Keep the first ``images`` of what has an entry for each of ``size`` images: a tensor, or a list of such."""
    if isinstance(value, list):
        return [_cut(item, size, images) for item in value]
    return value[:images] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value


@contextmanager
def _preserved(generator: torch.Generator | None) -> Iterator[None]:
    state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None:
            generator.set_state(state)


def _may_win(candidate: _Candidate, all_: list[_Candidate], deadline: float) -> bool:
    """Whether a second timing may change the decision and fits into the time."""
    times = [min(other.seconds) for other in all_ if other.problem is None]
    if candidate.problem is not None or not times:
        return False
    own = min(candidate.seconds)
    return own < 1.3 * min(times) and time.perf_counter() + own < deadline


def _same_everywhere(value: Any) -> Any:
    """Process 0's value, on every process."""
    if _world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _compare(result: dict[str, Tensor], reference: dict[str, Tensor]) -> str | None:
    """Say what of a step is not what fp32 gives, beyond what rounding explains."""
    for name, value in result.items():
        if not value.isfinite().all():
            return f"the {name} is not finite" if reference[name].isfinite().all() else None
    loss, wanted = result["loss"].item(), reference["loss"].item()
    if abs(loss - wanted) > _LOSS_CHANGE * max(1.0, abs(wanted)):
        return f"the loss is {loss:.4g} instead of {wanted:.4g}"
    if "embedding" in result:
        wanted = reference["embedding"]
        error = ((result["embedding"] - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
        if error > _EMBEDDING_CHANGE:
            return f"the embedding is off by {error:.0%}"
    a, b = result["gradient"].double(), reference["gradient"].double()
    cosine = (a @ b / (a.norm() * b.norm()).clamp(min=1e-30)).item()
    ratio = (a.norm() / b.norm().clamp(min=1e-30)).item()
    if b.norm() > 0 and (cosine < _GRADIENT_COSINE or not 1 / _GRADIENT_RATIO < ratio < _GRADIENT_RATIO):
        return f"the gradient has cosine {cosine:.2f} with fp32's and {ratio:.2g} times its length"
    return None


def _agree(candidates: list[_Candidate]) -> None:
    """Let all processes know the slowest time and any problem of each candidate."""
    if _world_size() == 1:
        return
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [(c.seconds, c.problem) for c in candidates])
    for candidate, findings in zip(candidates, zip(*everyone, strict=True), strict=True):
        candidate.seconds = [max(times) for times in zip(*(seconds for seconds, _ in findings), strict=False)]
        candidate.problem = next((problem for _, problem in findings if problem is not None), None)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _decide(candidates: list[_Candidate], images: int) -> PrecisionChoice:
    right = [candidate for candidate in candidates if candidate.problem is None]
    if not right:
        found = "; ".join(f"{candidate.name}: {candidate.problem}" for candidate in candidates)
        raise RuntimeError(f"no precision gives right results here ({found}); choose precision='fp32'")
    fastest = min(min(candidate.seconds) for candidate in right)
    # Candidates are sorted from plain to special, so the first within the margin is the plainest.
    chosen = next(candidate for candidate in right if min(candidate.seconds) <= fastest * _WORTHWHILE)
    lines = [f"seconds a step of {images} images:"]
    for candidate in candidates:
        seconds = f"{min(candidate.seconds):8.3f} s" if candidate.seconds else "         -"
        note = candidate.problem or ("chosen" if candidate is chosen else "")
        lines.append(f"{candidate.name:<22} {seconds}  {note}".rstrip())
    return PrecisionChoice(chosen.precision, chosen.channels_last, "\n".join(lines))
