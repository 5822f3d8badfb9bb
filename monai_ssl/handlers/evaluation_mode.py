# SPDX-License-Identifier: Apache-2.0
"""Look at a network in the middle of its training without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[nn.Module]:
    """No gradient and evaluation mode inside; afterwards each part is in the mode it was in (a teacher's parts differ).

    Args:
        network: is yielded.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield network
    finally:
        for module, mode in modes.items():
            module.training = mode
