# SPDX-License-Identifier: Apache-2.0
"""What every view transform is: parameters are drawn once for a whole batch, then applied as often as wanted.

A *parameter set* is a flat ``dict[str, Tensor]`` whose tensors all have the batch as first axis, so the parameters of
sample ``i`` are ``{name: value[i : i + 1] for name, value in params.items()}`` and give that sample's result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch

Params = dict[str, torch.Tensor]

_PART_ELEMENTS = 8 * 224 * 224  # 1.6 MB of float32


class BatchTransform:
    """Base of the batched transforms on images ``(B, C, *spatial)``, 2D or 3D, on any device.

    A subclass writes ``draw`` (unless it has no parameters) and ``_apply``. Every sample gets its own parameters.

    Attributes:
        spatial: the transform moves pixels, so a label map must go through it too. A transform that is not spatial
            leaves a label map (``interpolation="nearest"``) as it is.
        overwrites: ``_apply`` may write into its input; ``apply`` then works on a copy.
    """

    spatial: ClassVar[bool] = False
    overwrites: ClassVar[bool] = True

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw the parameters of a whole batch.

        Args:
            shape: shape of the batch, ``(B, C, *spatial)``.
            generator: source of randomness; it must live on ``device``. None is torch's global one.
            device: where the parameters live; the generator's device (else the CPU) when None.
            extent: valid size of each image inside the padded batch, ``(B, spatial_dims)`` integers counted from the
                origin corner. Only resampling uses it. None: every image fills the whole canvas.

        Returns:
            Tensors with the batch as first axis; empty for a transform without parameters.
        """
        return {}

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape that the transform makes of a batch of shape ``(B, C, *spatial)``."""
        return tuple(shape)

    @torch.no_grad()
    def apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        """Apply drawn parameters; ``x`` itself is never changed.

        Args:
            x: ``(B, C, *spatial)``, floating point; any type for label maps.
            params: what ``draw`` returned for a batch of this size.
            interpolation: "bilinear" (trilinear in 3D) for images; "nearest" for label maps, which then keep their type
                and their set of values, and which intensity transforms return unchanged.

        Returns:
            The transformed batch, a plain tensor of the same type.

        Raises:
            ValueError: if ``x`` is not a batch of images or ``interpolation`` is unknown.
        """
        x = check_batch(x, interpolation)
        if interpolation == "nearest" and not self.spatial:
            return x
        with without_autocast(x.device):
            return self._apply(x.clone() if self.overwrites else x, params, interpolation)

    def __call__(
        self, x: torch.Tensor, generator: torch.Generator | None = None, extent: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw parameters for ``x`` on its own device and apply them."""
        return self.apply(x, self.draw(x.shape, generator, x.device, extent))

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        raise NotImplementedError

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({values})"


def check_batch(x: torch.Tensor, interpolation: str = "bilinear") -> torch.Tensor:
    """Return ``x`` as a plain tensor after checking that it is a batch the transforms can work on."""
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f'interpolation must be "bilinear" or "nearest", not {interpolation!r}')
    if x.ndim not in (4, 5):
        raise ValueError(f"expected a batch (B, C, H, W) or (B, C, D, H, W), got shape {tuple(x.shape)}")
    if interpolation == "bilinear" and not x.is_floating_point():
        raise ValueError(f'images must be floating point, got {x.dtype}; label maps need interpolation="nearest"')
    return x if type(x) is torch.Tensor else x.as_subclass(torch.Tensor)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context that keeps the images' own type: autocast would blur in a type with 8 significant bits."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def drawing_device(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    """Device to draw on: the one asked for, else the generator's, else the CPU."""
    if device is not None:
        device = torch.device(device)
    if generator is None:
        return device or torch.device("cpu")
    if device is not None and device.type != generator.device.type:
        raise ValueError(
            f"the generator lives on {generator.device} but the images on {device}; make it with "
            f'torch.Generator(device="{device}")'
        )
    return device or generator.device


def uniform(
    shape: Sequence[int], low: float, high: float, generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """float32 tensor of independent U(low, high)."""
    return torch.rand(*shape, generator=generator, device=device).mul_(high - low).add_(low)


def chance(batch: int, prob: float, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """(B,) booleans, each True with probability ``prob``."""
    return torch.rand(batch, generator=generator, device=device) < prob


def per_sample(value: torch.Tensor, ndim: int) -> torch.Tensor:
    """View (B,) as (B, 1, ..., 1) with ``ndim`` axes."""
    return value.view(-1, *[1] * (ndim - 1))


def on_selected(
    x: torch.Tensor, selected: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor | slice], torch.Tensor]
) -> torch.Tensor:
    """Change the selected samples of ``x`` in place, the others not.

    On the CPU only the selected samples are computed. On an accelerator all are, and the result is chosen: counting the
    selected ones would make the host wait for the device, which costs more than the spared work.

    Args:
        x: (B, ...).
        selected: (B,) booleans.
        change: called with samples (B', ...), which it may overwrite, and what picks their rows of a (B, ...) tensor.
    """
    if x.device.type != "cpu":
        return _choose_selected(x, selected, change)
    rows = selected.nonzero().squeeze(1)
    for part in parts_of(rows if len(rows) < len(x) else None, len(x), x[:1].numel(), x.device):
        x[part] = change(take(x, part), part)
    return x


def _choose_selected(x: torch.Tensor, selected: torch.Tensor, change: Callable) -> torch.Tensor:
    """What ``on_selected`` does on an accelerator: no step depends on the values of ``selected``."""
    return torch.where(per_sample(selected, x.ndim), change(x.clone(), slice(None)), x)


def parts_of(
    rows: torch.Tensor | None, batch: int, elements: int, device: torch.device
) -> Sequence[torch.Tensor] | Sequence[slice]:
    """Divide samples so that, on a CPU, what is computed at once stays in the processor's cache.

    Args:
        rows: their indices; None stands for the whole batch, which is divided into slices, taken without a copy.
        batch: size of the whole batch.
        elements: size of what is computed for one sample.
        device: anywhere but on a CPU all is one part.
    """
    count = max(1, _PART_ELEMENTS // elements) if device.type == "cpu" else batch
    if rows is None:
        return [slice(start, start + count) for start in range(0, batch, count)]
    return rows.split(count) if len(rows) else []


def take(x: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """Rows of ``x``; index_select copies several times faster than indexing."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def check_prob(name: str, value: float) -> float:
    """Return a probability as float, or say what is wrong with it."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def check_range(name: str, value: Sequence[float], low: float, high: float = float("inf")) -> tuple[float, float]:
    """Return (a, b) with low <= a <= b <= high, or say what is wrong with it."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name} must be two numbers a <= b within [{low}, {high}], got {tuple(value)}")
    return float(value[0]), float(value[1])
