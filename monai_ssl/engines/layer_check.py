# SPDX-License-Identifier: Apache-2.0
"""Check each convolution and linear layer of a network in another precision, alone and on its own shapes.

Why layer by layer: at the start of a contrastive training the gradient of the whole network amplifies rounding by 1e4
and more (measured: fp32 in another memory format differs by 0.6 %, correct bf16 by 30 to 70 %), so a wrong kernel hides
behind correct rounding. One layer alone is right to 0.5 % in bf16, and a wrong kernel stands out: torch 2.13 on CPUs
with AVX-512 gives garbage as the weight gradient of a 3x3x3 convolution on 2x2x2 maps, in some of the calls only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["LayerInputs", "check_layers", "to_memory_format"]

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}


class LayerInputs:
    """One input of each kind of convolution or linear layer: same weight shape, same options, same input shape."""

    def __init__(self) -> None:
        self.layers: dict[tuple, tuple[nn.Module, Tensor]] = {}

    @contextmanager
    def recorded(self, network: nn.Module) -> Iterator[None]:
        """Record while ``network`` runs forward inside the ``with`` block."""
        hooks = [
            module.register_forward_pre_hook(self._record)
            for module in network.modules()
            if isinstance(module, (_ConvNd, nn.Linear))
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        options = tuple(str(getattr(module, name, None)) for name in ("stride", "padding", "dilation", "groups"))
        key = (type(module), tuple(module.weight.shape), options, tuple(x.shape))
        if key not in self.layers:
            self.layers[key] = (module, x.detach().clone())


def check_layers(inputs: LayerInputs, candidates: Sequence[tuple[torch.dtype, bool]], tries: int) -> list[str | None]:
    """Compare output and gradients of every recorded layer with fp32 in the ordinary memory format.

    Args:
        inputs: the layers and what they got.
        candidates: pairs of autocast type (float32 means no autocast) and channels-last or not.
        tries: repetitions; a kernel that reads memory it should not is wrong only sometimes.

    Returns:
        For each candidate: what is wrong with the first bad layer, in words, or None.
    """
    problems: list[str | None] = [None] * len(candidates)
    for module, x in inputs.layers.values():
        reference = _run_layer(module, x, torch.float32, False)
        for i, (dtype, channels_last) in enumerate(candidates):
            for _ in range(tries):
                if problems[i] is None and (dtype, channels_last) != (torch.float32, False):
                    problems[i] = _compare(module, x, reference, dtype, channels_last)
    return problems


def _compare(
    module: nn.Module, x: Tensor, reference: dict[str, Tensor], dtype: torch.dtype, channels_last: bool
) -> str | None:
    try:
        values = _run_layer(module, x, dtype, channels_last)
    except RuntimeError as error:  # a kernel that does not exist here
        return str(error).splitlines()[0]
    for name, value in values.items():
        error = ((value - reference[name]).norm() / reference[name].norm().clamp(min=1e-30)).item()
        if not error <= _TOLERANCE[dtype]:  # NaN too
            kernel, size = "x".join(map(str, module.weight.shape)), "x".join(map(str, x.shape))
            return f"{name} of {type(module).__name__} {kernel} on {size} is off by {error:.1%}"
    return None


def _run_layer(module: nn.Module, x: Tensor, dtype: torch.dtype, channels_last: bool) -> dict[str, Tensor]:
    """Output, input gradient and weight gradient of one layer for a fixed pseudo-random output gradient."""
    x = to_memory_format(x, channels_last).clone(memory_format=torch.preserve_format).requires_grad_()
    weight = to_memory_format(module.weight.detach(), channels_last).clone(memory_format=torch.preserve_format)
    weight.requires_grad_()
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
        output = torch.func.functional_call(module, {"weight": weight}, (x,))
    pattern = torch.randn(99_991, generator=torch.Generator().manual_seed(0)).to(x.device)
    gradient = pattern.repeat(-(-output.numel() // pattern.numel()))[: output.numel()].view(output.shape)
    output.backward(gradient.to(output.dtype))
    return {"the output": output.detach().float(), "the input gradient": x.grad, "the weight gradient": weight.grad}


def to_memory_format(x: Tensor, channels_last: bool) -> Tensor:
    """Return (B, C, H, W) or (B, C, D, H, W) in the channels-last or the ordinary format, others as they are.

    With one channel both formats are the same memory, but kernels go by the strides. ``contiguous`` leaves those as
    they are; with the ordinary ones the whole stem of a grey network would run in the slow format. ``to`` sets them.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    memory_format = formats.get(x.ndim, torch.contiguous_format)
    return x.to(memory_format=memory_format).contiguous(memory_format=memory_format)
