# SPDX-License-Identifier: Apache-2.0
"""LARS, and one function that builds any of the optimisers that self-supervised papers use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

__all__ = ["LARS", "build_optimizer"]


class LARS(Optimizer):
    r"""SGD with momentum whose rate is scaled for each parameter tensor by its norm over its gradient's norm.

    You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*, arXiv 1708.03888, algorithm 1:

    .. math::
        \lambda = \eta \frac{\lVert w \rVert}{\lVert g \rVert + \beta \lVert w \rVert}, \qquad
        v \leftarrow m v + \gamma \lambda (g + \beta w), \qquad w \leftarrow w - v

    with the learning rate :math:`\gamma`, the momentum m, the weight decay :math:`\beta` and the trust coefficient
    :math:`\eta`. Biases and normalisation parameters (tensors of fewer than two dimensions) are not scaled, as in
    SimCLR (arXiv 2002.05709, section 2.2); nor is a tensor whose weights or gradients are all zero.

    Args:
        params: parameters or parameter groups.
        lr: peak learning rate, positive. Large: SimCLR uses 0.3 x batch / 256.
        momentum: in [0, 1).
        weight_decay: at least 0.
        trust_coefficient: positive.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        if not lr > 0 or not 0 <= momentum < 1 or weight_decay < 0 or not trust_coefficient > 0:
            raise ValueError(
                "LARS needs lr > 0, momentum in [0, 1), weight_decay >= 0 and trust_coefficient > 0, got "
                f"{lr}, {momentum}, {weight_decay} and {trust_coefficient}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        direction = parameter.grad
        decay, rate = group["weight_decay"], group["lr"]
        if parameter.ndim > 1:
            weight_norm, gradient_norm = parameter.norm(), direction.norm()
            trust = group["trust_coefficient"] * weight_norm / (gradient_norm + decay * weight_norm)
            # A tensor that stays on the device: no synchronisation for the comparison.
            rate = rate * torch.where((weight_norm > 0) & (gradient_norm > 0), trust, torch.ones_like(trust))
        if decay:
            direction = direction.add(parameter, alpha=decay)
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity = state["velocity"].mul_(group["momentum"]).add_(direction * rate)
        parameter.sub_(velocity)


_BUILDERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "lars": (LARS, {}),
}


def build_optimizer(
    method: nn.Module, name: str, learning_rate: float, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """Build an optimiser over a method's own parameter groups.

    Args:
        method: has ``parameter_groups(weight_decay)``, as :class:`monai_ssl.methods.SSLMethod` has.
        name: ``"sgd"`` (momentum 0.9), ``"adam"``, ``"adamw"`` or ``"lars"``.
        learning_rate: the peak of the schedule.
        weight_decay: for the parameters that the method lets decay.
        options: further arguments of the optimiser (``momentum``, ``nesterov``, ``betas``, ...).

    Raises:
        ValueError: an unknown name, a number out of its range, or an argument that the optimiser has not.
    """
    if name not in _BUILDERS:
        raise ValueError(f"optimizer must be one of {', '.join(_BUILDERS)}, got {name!r}")
    if not learning_rate > 0 or weight_decay < 0:
        raise ValueError(
            f"learning_rate must be positive and weight_decay at least 0, got {learning_rate} and {weight_decay}"
        )
    kind, defaults = _BUILDERS[name]
    groups = [group for group in method.parameter_groups(weight_decay) if group["params"]]
    try:
        return kind(groups, lr=learning_rate, **(defaults | options))
    except TypeError as error:
        raise ValueError(f"the optimiser {name!r} does not take the arguments {sorted(options)}: {error}") from error
