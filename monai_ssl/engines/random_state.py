# SPDX-License-Identifier: Apache-2.0
"""The state of every global random generator, as plain tensors and numbers that a checkpoint may hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["capture_random_state", "preserved_random_state", "restore_random_state", "stream_seed"]


def capture_random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state of torch's (CPU and, for a CUDA device, that device), NumPy's and Python's generators.

    The result holds tensors, numbers and None only, so ``torch.load(weights_only=True)`` reads it back.
    """
    device = torch.device(device)
    _, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002 (the one others use)
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gaussian": float(cached_gaussian),
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss_next": gauss_next},
    }


def restore_random_state(state: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Set the generators back to what :func:`capture_random_state` returned."""
    device = torch.device(device)
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    of_numpy, of_python = state["numpy"], state["python"]
    keys = of_numpy["keys"].numpy().astype(np.uint32)
    rest = (of_numpy["position"], of_numpy["has_gauss"], of_numpy["cached_gaussian"])
    np.random.set_state(("MT19937", keys, *rest))  # noqa: NPY002
    random.setstate((of_python["version"], tuple(of_python["words"].tolist()), of_python["gauss_next"]))


@contextmanager
def preserved_random_state(device: torch.device | str = "cpu") -> Iterator[None]:
    """Leave the global generators as they were, whatever is drawn inside (probes, measurements)."""
    state = capture_random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


def stream_seed(seed: int, *numbers: int) -> int:
    """Mix a run's seed with numbers (a rank, say) into a seed whose stream has nothing to do with its neighbours'."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0] >> np.uint64(1))
