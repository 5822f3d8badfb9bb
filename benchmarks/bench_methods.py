# SPDX-License-Identifier: Apache-2.0
"""A training step of each joint-embedding method over its bare encoder passes: what the method itself costs.

A step is forward, loss, backward and ``after_step`` (teacher, queue, centre); views are made before, and there is no
optimiser. The bare passes are the step's own: one step is recorded, and its calls of the encoder are made again on the
same tensors, those of a teacher forward only, the student's with a backward pass from a random projection of the
outputs. Heads of thousands of units are a cost of their own, so a second row for each method makes the heads' calls
again too: what is left is the loss, the teacher's average, the queue. A difference of long times is uncertain, a note
also has the time of a step whose encoder only hands out what it gave before: everything outside it, measured alone.

Heads are the paper's where they have fewer parameters than the encoder and suit a batch of 64; else they, and what goes
with them, are those of the bundle's fragment for some thousand images. The row says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.bench_views import _as_float
from benchmarks.images import grey_images
from benchmarks.rounds import Row, Spread, compare_times, interleaved, torch_threads
from monai_ssl.engines import choose_precision
from monai_ssl.methods import (
    BYOL,
    C2L,
    PIRL,
    DenseContrast,
    MoCoV2,
    RotationPrediction,
    SimCLR,
    SSLMethod,
)
from monai_ssl.networks import DINOHead, ImageEncoder, LinearHead, MLPHead, Prototypes, build_encoder
from monai_ssl.transforms import multi_crop_views, radiograph_views

GOAL = 1 / 1.05  # at most 5 % more than the bare passes
CONFIGS = Path(__file__).parents[1] / "bundles/radiograph_joint_embedding_pretraining/configs"
PAPER = "the paper's heads"
BARE, WITH_HEADS, OUTSIDE = "its bare encoder passes", "its encoder and head passes", "outside the encoder"
PROGRESS = 0.5  # of the training: past what is frozen at its start


@dataclass(frozen=True)
class Sizes:
    """How large a step is; ``remembered``: images in PIRL's memory, keys in MoCo's queue where it is the paper's."""

    network: str
    view: int
    small: int
    batch: int
    remembered: int


FULL = Sizes("resnet18", view=224, small=96, batch=64, remembered=65536)
TINY = Sizes("resnet10", view=32, small=16, batch=4, remembered=64)


@dataclass(frozen=True)
class Case:
    """A method: how it is built, from what heads, and how many large and small views it takes."""

    build: Callable[[ImageEncoder, Sizes], SSLMethod]
    heads: str
    large: int = 2
    small: int = 0


def _bundled(fragment: str, **views: int) -> Case:
    """The method of a fragment of the bundle, as it stands there."""

    def build(encoder: ImageEncoder, sizes: Sizes) -> SSLMethod:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "train.yaml"), str(CONFIGS / f"{fragment}.yaml")])
        parser["network"] = encoder
        return parser.get_parsed_content("method")

    return Case(build, f"heads of {fragment}.yaml", **views)


CASES = {
    "SimCLR": Case(lambda encoder, sizes: SimCLR(encoder), PAPER),
    "MoCo v2": Case(lambda encoder, sizes: MoCoV2(encoder, queue_size=sizes.remembered), PAPER),
    "MoCo v3": _bundled("moco_v3"),
    "BYOL": Case(lambda encoder, sizes: BYOL(encoder), PAPER),
    "SimSiam": _bundled("simsiam"),
    "SwAV": _bundled("swav", small=6),
    "Barlow Twins": _bundled("barlow_twins"),
    "VICReg": _bundled("vicreg"),
    "DINO": _bundled("dino", small=6),
    "PIRL": Case(lambda encoder, sizes: PIRL(encoder, sizes.remembered), PAPER),
    "rotation": Case(lambda encoder, sizes: RotationPrediction(encoder), PAPER, large=1),
    "dense": Case(lambda encoder, sizes: DenseContrast(encoder), PAPER),
    "C2L": Case(lambda encoder, sizes: C2L(encoder), PAPER),
}


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield two rows for each method: over the encoder's passes, and over those of encoder and heads."""
    sizes, number = TINY if tiny else FULL, max(threads)
    with torch_threads(number):
        precision, channels_last = ("fp32", False) if tiny else _choice(sizes)
        for name in CASES:
            yield from _rows(name, sizes, rounds, number, precision, channels_last)


def _rows(name: str, sizes: Sizes, rounds: int, threads: int, precision: str, channels_last: bool) -> Iterator[Row]:
    step = Step(CASES[name], sizes, precision, channels_last)
    contestants = {
        "ours": step.run,
        BARE: step.encode,
        WITH_HEADS: step.encode_and_project,
        OUTSIDE: step.run_without_encoder,
    }
    figures = interleaved({key: _milliseconds(work) for key, work in contestants.items()}, rounds)
    views = f"{CASES[name].large}x{sizes.view}" + (f" and {CASES[name].small}x{sizes.small}" * (CASES[name].small > 0))
    for peer, goal in ((BARE, GOAL), (WITH_HEADS, None)):
        shares = Spread.of(100 * (a / b - 1) for a, b in zip(figures["ours"], figures[peer], strict=True))
        outside = Spread.of(100 * a / b for a, b in zip(figures[OUTSIDE], figures[BARE], strict=True))
        yield compare_times(
            figures["ours"],
            figures[peer],
            bench=f"method step, {name}",
            setting=f"{sizes.network}, {views} px, batch {sizes.batch}, {CASES[name].heads}",
            threads=threads,
            peer=peer,
            goal=goal,
            note=f"overhead {_percent(shares)}; what is outside the encoder, heads included, takes by itself "
            f"{Spread.of(figures[OUTSIDE])} ms, {_percent(outside)} of the bare passes; {step.described}",
        )


class Step:
    """A method with a batch, and the passes that one step of it makes.

    Args:
        case: the method.
        sizes: of the batch.
        precision: as the trainer has it.
        channels_last: likewise.
    """

    def __init__(self, case: Case, sizes: Sizes, precision: str, channels_last: bool) -> None:
        torch.manual_seed(0)
        self.method = case.build(build_encoder(sizes.network), sizes).train()
        self.batch = _batch(self.method, case, sizes)
        self.precision, self.channels_last = precision, channels_last
        if channels_last:
            self.method.to(memory_format=torch.channels_last)
            self.batch["views"] = [v.contiguous(memory_format=torch.channels_last) for v in self.batch["views"]]
        _fill_memories(self.method)
        with _recorded(self.method) as self.calls:
            self.run()

    @property
    def described(self) -> str:
        """Precision, and how many parameters there are outside the encoder."""
        encoder = sum(p.numel() for p in self.method.encoder.parameters())
        heads = sum(p.numel() for p in self.method.parameters() if p.requires_grad) - encoder
        memory = "last" if self.channels_last else "first"
        return f"{heads / 1e6:.1f} million parameters outside the encoder, {self.precision}, channels {memory}"

    def run(self) -> None:
        """Forward, loss, backward, and what follows the optimiser's step."""
        self._forget_gradients()
        with self._autocast():
            loss = self.method(self.batch)["loss"]
        loss.backward()
        self.method.after_step(PROGRESS)

    def encode(self) -> None:
        """The encoder's passes."""
        self._repeat([call for call in self.calls if not call.head])

    def encode_and_project(self) -> None:
        """The encoder's passes and the heads'."""
        self._repeat(self.calls)

    def run_without_encoder(self) -> None:
        """The step, with an encoder that hands out what it gave when the step was recorded."""
        with _given_out([call for call in self.calls if not call.head], self.method):
            self.run()

    def _repeat(self, calls: list[_Call]) -> None:
        self._forget_gradients()
        with self._autocast():
            losses = [call.again() for call in calls]
        torch.stack([loss for loss in losses if loss is not None]).sum().backward()

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)

    def _forget_gradients(self) -> None:
        for parameter in self.method.parameters():
            parameter.grad = None


@dataclass
class _Call:
    """A pass through an encoder or a head; ``weight``: of its output in the trivial loss, None without gradient."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    output: Any
    head: bool
    weight: Tensor | None

    def again(self) -> Tensor | None:
        """Make the pass once more."""
        if self.weight is None:
            with torch.no_grad():
                self.function(*self.arguments)
            return None
        # A head's input gets a gradient of its own, as it had one.
        arguments = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in self.arguments]
        return (_last(self.function(*arguments)).float() * self.weight).sum()


_HEADS = {
    MLPHead: ("forward",),
    LinearHead: ("forward",),
    nn.Linear: ("forward",),
    DINOHead: ("embed", "score"),
    Prototypes: ("forward",),
}


@contextmanager
def _recorded(method: SSLMethod) -> Iterator[list[_Call]]:
    """Record the outermost calls of encoders and heads, the student's and the teacher's."""
    calls: list[_Call] = []
    depth = [0]

    def recorder(function: Callable[..., Any], head: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            depth[0] += 1
            try:
                output = function(*arguments)
            finally:
                depth[0] -= 1
            if not depth[0]:
                last = _last(output)
                learns = torch.is_grad_enabled() and last.requires_grad
                weight = torch.randn(last.shape) / last.numel() ** 0.5 if learns else None
                calls.append(_Call(function, arguments, None if head else _detached(output), head, weight))
            return output

        return call

    patched = []
    for module in method.modules():
        head = not isinstance(module, ImageEncoder)
        kinds = _HEADS.items() if head else [(ImageEncoder, ("forward", "feature_maps"))]
        for name in next((names for kind, names in kinds if isinstance(module, kind)), ()):
            setattr(module, name, recorder(getattr(module, name), head))
            patched.append((module, name))
    try:
        yield calls
    finally:
        for module, name in patched:
            delattr(module, name)


@contextmanager
def _given_out(calls: list[_Call], method: SSLMethod) -> Iterator[None]:
    """Let the method's encoders hand out the outputs of the recorded calls, in their order."""
    outputs = iter([(call.output, call.weight is not None) for call in calls])

    def give(*_: Any) -> Any:
        output, learns = next(outputs)
        if isinstance(output, Tensor):
            return output.detach().requires_grad_(learns)
        return [x.detach().requires_grad_(learns) for x in output]

    encoders = [module for module in method.modules() if isinstance(module, ImageEncoder)]
    for encoder in encoders:
        encoder.forward = encoder.feature_maps = give
    try:
        yield
    finally:
        for encoder in encoders:
            del encoder.forward, encoder.feature_maps


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else [x.detach() for x in output]


def _last(output: Any) -> Tensor:
    """The output, or the last of a pyramid's maps."""
    return output if isinstance(output, Tensor) else output[-1]


def _batch(method: SSLMethod, case: Case, sizes: Sizes) -> dict[str, Any]:
    """Views of made-up images, with all that a method may ask for; every other image is of the same patient."""
    generator = torch.Generator().manual_seed(0)
    if case.small:
        views = multi_crop_views(sizes.view, sizes.small, case.small)
    else:
        views = radiograph_views(sizes.view, num_views=case.large)
    images = _as_float(grey_images(sizes.batch, sizes.view))[:, None]
    params = views.draw(images.shape, generator)
    number = torch.arange(sizes.batch)
    batch = {"views": views.apply(images, params), "index": number, "group_id": number // 2, "generator": generator}
    if method.wants_positions:
        batch["positions"] = views.positions(images.shape, params, method.positions_stride)
    return batch


def _fill_memories(method: SSLMethod) -> None:
    """As they are after the first epoch."""
    bank = getattr(method, "bank", None)
    if bank is not None:
        bank.features.copy_(normalize(torch.randn_like(bank.features)))
        bank.seen.fill_(True)


def _choice(sizes: Sizes) -> tuple[str, bool]:
    """Precision and memory format for all methods, as the trainer would choose them for SimCLR."""
    method = CASES["SimCLR"].build(build_encoder(sizes.network), sizes)
    choice = choose_precision(method, _batch(method, CASES["SimCLR"], sizes))
    return choice.precision, choice.channels_last


def _percent(share: Spread) -> str:
    return f"{share.median:.1f} % ({share.min:.1f} to {share.max:.1f} %)"


def _milliseconds(work: Callable[[], None]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return measure
