# SPDX-License-Identifier: Apache-2.0
"""Random bias field: the slow change of brightness that a receive coil leaves on MR images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    on_selected,
    per_sample,
    uniform,
)

_COARSE = 9  # points along each axis at which the strength of a field is measured


class RandomBiasField(BatchTransform):
    r"""``y = x exp(f)``, f a polynomial of low degree over the view, with probability ``prob`` per sample, else y = x.

    .. math:: f(u) = s \, p(u) / \max_u |p(u)|, \qquad p(u) = \sum_{1 \le |k| \le degree} c_k \prod_i P_{k_i}(u_i)

    with Legendre polynomials P over the view, from -1 to 1 along each axis, ``c_k ~ N(0, 1)`` and ``s ~ U(strength)``.
    The maximum is taken over 9 points an axis. There is no constant term: that would be a change of brightness.

    A multiplicative field that is the exponential of a polynomial is the model of Van Leemput et al., *Automated
    model-based bias field correction of MR images of the brain*, IEEE TMI 18(10), 1999; as an augmentation it is in
    Sudre et al., *Longitudinal segmentation of age-related white matter hyperintensities*, Med. Image Anal. 38, 2017.
    Meant for values where 0 is no signal.

    Args:
        strength: least and greatest of the field's largest logarithm: at 0.3 some place is 1.35 times as bright or
            dark.
        degree: of the polynomial, 1 or more.
        prob: probability of a sample being changed.
    """

    def __init__(self, strength: Sequence[float] = (0.0, 0.3), degree: int = 3, prob: float = 0.5) -> None:
        self.strength = check_range("strength", strength, 0.0)
        if degree < 1:
            raise ValueError(f"degree must be 1 or more, got {degree}")
        self.degree = int(degree)
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``coefficients`` (B, degree + 1, ...) of the products of polynomials; all 0 where nothing changes."""
        device = drawing_device(generator, device)
        batch, n = shape[0], len(shape) - 2
        powers = itertools.product(range(self.degree + 1), repeat=n)
        wanted = torch.tensor([1 <= sum(k) <= self.degree for k in powers], device=device)
        c = torch.randn(batch, len(wanted), generator=generator, device=device) * wanted
        c = c.view(batch, *[self.degree + 1] * n)
        at = [torch.linspace(-1, 1, _COARSE, device=device)] * n
        largest = _field(c, [_legendre(u, self.degree) for u in at]).abs().flatten(1).amax(1)
        chosen = chance(batch, self.prob, generator, device)
        strength = torch.where(chosen, uniform((batch,), *self.strength, generator, device), 0.0)
        return {"coefficients": c * per_sample(strength / largest, c.ndim)}

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        c = params["coefficients"]
        at = [(torch.arange(side, device=x.device) + 0.5) * (2 / side) - 1 for side in x.shape[2:]]
        bases = [_legendre(u, self.degree) for u in at]

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return part.mul_(_field(c[rows], bases).exp_().to(x.dtype)[:, None])

        return on_selected(x, c.flatten(1).any(1), change)


def _legendre(u: torch.Tensor, degree: int) -> torch.Tensor:
    """(degree + 1, ...) Legendre polynomials by Bonnet's recursion."""
    values = [torch.ones_like(u), u]
    for k in range(1, degree):
        values.append(((2 * k + 1) * u * values[k] - k * values[k - 1]) / (k + 1))
    return torch.stack(values[: degree + 1])


def _field(coefficients: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, degree + 1, ...) coefficients and a (degree + 1, length) basis for each axis -> (B, *lengths)."""
    field = coefficients
    for basis in bases:
        # The first of the remaining coefficient axes becomes the last axis, of pixels; in the end all are in order.
        field = field.movedim(1, -1) @ basis
    return field
