# SPDX-License-Identifier: Apache-2.0
"""The cells of a study for TensorBoard's HParams view."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_hparams"]

_NAMES = ("task", "encoder", "mode", "fraction", "num_labels", "seed")


def write_hparams(cells: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write one run a cell: its parts as hyper-parameters, its score as a metric.

    Args:
        cells: finished cells.
        folder: is emptied first, since all of it is made from the cells.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for cell in cells:
        result = cell["result"]
        with warnings.catch_warnings(), SummaryWriter(str(folder / cell["name"].replace("/", "_"))) as writer:
            warnings.simplefilter("ignore")
            score = {f"test/{result['measure']}": result["score"]}
            writer.add_hparams({name: cell[name] for name in _NAMES}, score, run_name=".")
