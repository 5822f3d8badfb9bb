# SPDX-License-Identifier: Apache-2.0
"""Start the training of a MONAI network from an encoder: a handler for any MONAI trainer or bundle."""

from __future__ import annotations

import logging
import os

from ignite.engine import Events
from monai.engines import Trainer
from torch.nn.parallel import DistributedDataParallel

from monai_ssl.engines import is_main_process
from monai_ssl.weights import LoadReport, load_encoder, read_manifest

__all__ = ["EncoderStart"]

logger = logging.getLogger(__name__)


class EncoderStart:
    """Load an encoder into the trainer's network before the first iteration, and say what was loaded.

    Works with MONAI's trainers (``SupervisedTrainer`` and others with one ``network``), wrapped by DDP or not. Attach
    it in every process of a multi-GPU run: bundles of the model zoo cut the last handlers off in all but the first.
    ``bundles/start_from_encoder.yaml`` does so. A training that is resumed (its iteration is not 0) is left alone. It
    loads at the start of the run in the order of attachment; what a handler attached later loads, stays.

    Args:
        path: a file of :func:`monai_ssl.weights.save_encoder`.
        with_decoder: see :func:`monai_ssl.weights.load_encoder`, also for the next two.
        channel_policy: likewise.
        min_coverage: likewise.

    Attributes:
        report: what became of each tensor; None before the training starts.

    Raises:
        ValueError: no path was given.
        FileNotFoundError, WeightsFileError: when it is made; see :func:`monai_ssl.weights.read_manifest`.
        WeightsMismatchError: when the training starts; too little fits the trainer's network.

    Example:
        >>> trainer = SupervisedTrainer(..., train_handlers=[EncoderStart("encoder.safetensors")])  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        *,
        with_decoder: bool = True,
        channel_policy: str | None = None,
        min_coverage: float = 0.9,
    ) -> None:
        if path is None:
            raise ValueError("no encoder to start from: give its file (--encoder_weights encoder.safetensors)")
        read_manifest(path)  # a wrong file should be known before the data are read
        self.path = path
        self.with_decoder, self.channel_policy, self.min_coverage = with_decoder, channel_policy, min_coverage
        self.report: LoadReport | None = None

    def attach(self, engine: Trainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        """Load, once, unless the training goes on from an earlier one."""
        if self.report is not None:
            return
        if engine.state.iteration > 0:
            logger.warning(
                "the training goes on from iteration %d: %s is not loaded", engine.state.iteration, self.path
            )
            return
        network = engine.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        self.report = load_encoder(network, self.path, self.min_coverage, self.channel_policy, self.with_decoder)
        if is_main_process():
            if logger.isEnabledFor(logging.INFO):
                logger.info("%s", self.report)
            else:
                print(self.report, flush=True)
