# SPDX-License-Identifier: Apache-2.0
"""Write the feature vectors of a folder of images to a table."""

from __future__ import annotations

import io
import logging
import os

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from monai_ssl.data.store import ImageStore
from monai_ssl.weights import atomic_file

__all__ = ["FeatureWriter"]

logger = logging.getLogger(__name__)


class FeatureWriter:
    """Handler of an evaluator whose network is an encoder: one row an image, ``path`` and ``features``, as Parquet.

    Args:
        store: of the images; its table tells their paths.
        path: of the table; replaced when it is complete.
    """

    def __init__(self, store: ImageStore, path: str | os.PathLike) -> None:
        self.store, self.path = store, path

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, _: Engine) -> None:
        self._features: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []

    def _take(self, engine: Engine) -> None:
        self._features.append(engine.state.output[CommonKeys.PRED].detach().float().cpu())
        self._rows.append(torch.as_tensor(engine.state.batch["index"]).cpu())

    def _write(self, _: Engine) -> None:
        features = torch.cat(self._features).numpy()  # (N, F)
        flat = pa.array(features.reshape(-1))
        paths = self.store.table["path"].take(pa.array(torch.cat(self._rows).numpy()))
        table = pa.table({"path": paths, "features": pa.FixedSizeListArray.from_arrays(flat, features.shape[1])})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        with atomic_file(self.path) as file:
            file.write(buffer.getvalue())
        logger.info("%d vectors of %d features in %s", *features.shape, self.path)
