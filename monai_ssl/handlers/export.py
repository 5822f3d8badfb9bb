# SPDX-License-Identifier: Apache-2.0
"""Write the encoder, with its manifest, while the training goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, is_main_process
from monai_ssl.weights import MANIFEST_FIELDS, check_manifest, save_encoder

__all__ = ["EncoderExport"]

logger = logging.getLogger(__name__)


class EncoderExport:
    """Leave ``encoder.safetensors`` in a folder: the newest encoder, or the one with the best metric so far.

    With a ``metric`` the other one is there too, as ``encoder_best.safetensors`` or ``encoder_last.safetensors``. Each
    file is replaced only when the new one is complete. Method, images seen, view size, seed and metrics are filled into
    the manifest.

    Args:
        folder: where the files go.
        manifest: further fields, see :data:`monai_ssl.weights.MANIFEST_FIELDS`; they are checked before the training.
        metric: name in ``engine.state.metrics`` that tells the best encoder, for example ``"knn_auc"``.
        higher_is_better: which way the metric goes.
        prefer_best: let ``encoder.safetensors`` be the best one, not the newest.
        metric_event: when the metric may have a new value, and the weights are those that it was measured on; after an
            epoch, unless e.g. :attr:`ValidationEvents.VALIDATION_COMPLETED`.
        every_epochs: how often the newest one is written; always after the last epoch.
        with_decoder: write the network's decoder too, see :func:`monai_ssl.weights.save_encoder`.
        save: function ``(encoder, path, manifest)`` that writes; default: that one.

    Attributes:
        best: the best value of the metric so far, or None.
        images_seen: images read so far in all processes, repetitions counted.

    Raises:
        ValueError: ``prefer_best`` without a metric, ``every_epochs`` below 1, or a wrong manifest field.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Mapping[str, Any] | None = None,
        *,
        metric: str | None = None,
        higher_is_better: bool = True,
        prefer_best: bool = False,
        metric_event: Any = Events.EPOCH_COMPLETED,
        every_epochs: int = 1,
        with_decoder: bool = False,
        save: Callable[..., Any] | None = None,
    ) -> None:
        if prefer_best and metric is None:
            raise ValueError("prefer_best needs the name of a metric")
        if every_epochs < 1:
            raise ValueError(f"every_epochs must be at least 1, got {every_epochs}")
        self.manifest = dict(manifest or {})
        check_manifest(self.manifest)
        automatic = sorted(key for key in self.manifest if MANIFEST_FIELDS[key].automatic)
        if automatic:
            raise ValueError(
                f"the manifest's fields {', '.join(automatic)} are filled in from the encoder; leave them out"
            )
        self.metric, self.higher_is_better, self.every_epochs = metric, higher_is_better, every_epochs
        self.metric_event = metric_event
        self.save = save or partial(save_encoder, with_decoder=with_decoder)
        folder = Path(folder)
        main = folder / "encoder.safetensors"
        self.last_path = folder / "encoder_last.safetensors" if prefer_best else main
        self.best_path = main if prefer_best else folder / "encoder_best.safetensors"
        self.best: float | None = None
        self.images_seen = 0
        self._written_at: int | None = None
        self._listening = False

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.register_state("encoder_export", self)
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of images seen."""
        return {"best": self.best, "images_seen": self.images_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.best, self.images_seen = state["best"], state["images_seen"]

    def _listen(self, engine: PretrainTrainer) -> None:
        """Registered at the start, so that whoever measures the metric comes before."""
        if not self._listening and is_main_process():
            self._listening = True
            engine.add_event_handler(self.metric_event, self._keep_best)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
            engine.add_event_handler(Events.COMPLETED, self._at_end)

    def _count(self, engine: PretrainTrainer) -> None:
        self.images_seen += len(engine.state.batch["image"]) * engine.world_size

    def _keep_best(self, engine: PretrainTrainer) -> None:
        value = engine.state.metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
            if better and self._write(engine, self.best_path):
                self.best = float(value)

    def _after_epoch(self, engine: PretrainTrainer) -> None:
        if engine.state.epoch % self.every_epochs == 0 and self._write(engine, self.last_path):
            self._written_at = engine.state.iteration

    def _at_end(self, engine: PretrainTrainer) -> None:
        if engine.state.batch is None and engine.state.iteration and self.last_path.exists():
            return  # a finished training was resumed: nothing is new
        written = self._written_at == engine.state.iteration or self._write(engine, self.last_path)
        if written and self.metric is not None and self.best is None:
            written = self._write(engine, self.best_path)  # no value came: the newest is all there is
        if not written:
            engine.request_stop(f"the encoder could not be written to {self.last_path}; free some space and resume")

    def _write(self, engine: PretrainTrainer, path: Path) -> bool:
        views = engine.state.batch["views"] if engine.state.batch else ()
        metrics = {k: float(v) for k, v in engine.state.metrics.items() if isinstance(v, (int, float))}
        fields = {
            "method": getattr(engine.method, "method_name", type(engine.method).__name__),
            "images_seen": self.images_seen,
            "patch_size": list(views[0].shape[2:]) if views else None,
            "seeds": {"views": engine.state.seed},
            "metrics": metrics,
        }
        try:
            self._save(engine, path, fields | self.manifest)
        except OSError as error:
            logger.error("%s", error)
            return False
        return True

    def _save(self, engine: PretrainTrainer, path: Path, manifest: dict[str, Any]) -> None:
        """Write what is exported at one moment."""
        self.save(engine.method.encoder, path, manifest)
