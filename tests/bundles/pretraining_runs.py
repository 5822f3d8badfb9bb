# SPDX-License-Identifier: Apache-2.0
"""What the tests of the bundles that pretrain share: a small run of a bundle, and what it left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLES = Path(__file__).parents[2] / "bundles"


class PretrainingBundle:
    """A bundle with settings that make its runs small.

    Args:
        name: folder in ``bundles``.
        settings: overrides of ``train.yaml`` for all runs, beside those of ``QUICK``; a run's own that is ``...`` takes
            one of them back.
    """

    QUICK = {"max_epochs": 1, "steps_per_epoch": 3, "batch_size": 2, "precision": "fp32", "channels_last": False}

    def __init__(self, name: str, **settings: Any) -> None:
        self.root = BUNDLES / name
        self.settings = self.QUICK | settings

    def workflow(self, *files: str, workflow_type: str = "train", **overrides: Any) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=[str(self.root / "configs" / file) for file in files],
            logging_file=False,
            workflow_type=workflow_type,
            bundle_root=str(self.root),
            **overrides,
        )

    def started(self, folder: Path, prepared: Path, output: Path, *fragments: str, **overrides: Any) -> ConfigWorkflow:
        """A run on the volumes in ``folder`` that is initialised but not trained."""
        places = {"dataset_dir": str(folder), "cache_dir": str(prepared), "output_dir": str(output)}
        settings = self.settings | places | overrides
        kept = {name: value for name, value in settings.items() if value is not ...}
        run = self.workflow("train.yaml", *fragments, **kept)
        run.initialize()
        return run

    def train(self, *arguments: Any, **overrides: Any) -> ConfigWorkflow:
        run = self.started(*arguments, **overrides)
        run.run()
        run.finalize()
        return run

    def features(self, folder: Path, output: Path, **overrides: Any) -> Path:
        """Run inference.json with the weights in ``output``; return the table it writes."""
        run = self.workflow(
            "inference.json",
            workflow_type="inference",
            dataset_dir=str(folder),
            output_dir=str(output),
            **overrides,
        )
        run.initialize()
        assert not run.check_properties()
        run.run()
        return output / "features.parquet"

    def assert_resumes(self, folder: Path, prepared: Path, tmp_path: Path, **overrides: Any) -> None:
        """Stop after the first of three epochs, go on, and compare the losses with those of a run in one piece."""
        self.train(folder, prepared, tmp_path / "whole", max_epochs=3, **overrides)
        run = self.started(folder, prepared, tmp_path / "halves", max_epochs=3, **overrides)
        trainer = run.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED(once=1), lambda engine: engine.request_stop("stopped by the test")
        )
        with pytest.raises(SystemExit):
            trainer.run()
        assert len(losses(tmp_path / "halves")) < len(losses(tmp_path / "whole"))
        self.train(folder, prepared, tmp_path / "halves", max_epochs=3, resume=True, **overrides)
        assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


class RadiographBundle(PretrainingBundle):
    """Whole images in place of patches: an epoch is the pool."""

    QUICK = {
        "stored_side": 64,
        "image_size": 32,
        "max_epochs": 1,
        "batch_size": 4,
        "precision": "fp32",
        "channels_last": False,
    }

    ONLY_TRAINING = {"run": ["$@train#trainer.run()"], "probe_labels": None}  # without what follows

    def train_only(self, *arguments: Any, **overrides: Any) -> ConfigWorkflow:
        return self.train(*arguments, **(self.ONLY_TRAINING | overrides))

    @property
    def no_pictures(self) -> dict[str, bool]:
        """Overrides that switch curves and TensorBoard off."""
        handlers = ConfigParser.load_config_file(self.root / "configs/train.yaml")["train"]["handlers"]
        drawing = ("monai_ssl.handlers.TrainingCurves", "monai_ssl.handlers.PretrainTensorBoard")
        places = [place for place, handler in enumerate(handlers) if handler["_target_"] in drawing]
        return {f"train::handlers::{place}::_disabled_": True for place in places}


def epochs(output: Path) -> list[dict[str, str]]:
    """What was written of each epoch."""
    with open(output / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(output: Path) -> list[str]:
    """The loss of each epoch, as it is written."""
    return [row["loss"] for row in epochs(output)]


def mistake(call) -> str:
    """What the user reads of an error; MONAI wraps it."""
    with pytest.raises(RuntimeError) as error:
        call()
    return str(error.value.__cause__)


def segment(folder: Path, prepared: Path, output: Path, weights: Path, **overrides: Any) -> ConfigWorkflow:
    """Fine-tune a segmentation of the example organs from weights, for a few steps, with its test at the end."""
    segmentation = PretrainingBundle("volume_segmentation", val_interval=1, resamples=20, overlap=0.0)
    return segmentation.train(folder, prepared, output, encoder_weights=str(weights), **overrides)
