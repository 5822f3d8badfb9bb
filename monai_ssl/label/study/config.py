# SPDX-License-Identifier: Apache-2.0
"""What a study of labelling asks, from one YAML file: a task, an encoder, strategies, numbers of labels and seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ssl.evaluation.study.cells import StudyCell
from monai_ssl.evaluation.study.config import RANDOM, Study, StudyTask, refuse_unknown, study_task
from monai_ssl.evaluation.study.question import Question
from monai_ssl.label.strategies import STRATEGIES

__all__ = ["LabelStudy", "read_label_study"]

MODES = {"classification": ("linear",), "segmentation": ("finetune", "frozen")}
_TASK = "task"


@dataclass(frozen=True)
class LabelStudy:
    """Everything that decides what is computed.

    Attributes:
        output_dir: for rounds, features and the report.
        task: the question, as a downstream bundle asks it; its training labels play the annotator.
        encoder: file of the encoder's weights; None: random weights.
        strategies: names of :data:`monai_ssl.label.STRATEGIES`; random is always among them.
        budgets: labels after each round, ascending.
        seeds: of strategies and trainings.
        mode: ``"linear"`` of a classification (a probe on frozen features); ``"finetune"`` or ``"frozen"`` of a
            segmentation (a training of the task's bundle each round).
        cold_start: the strategy of the first round of those that need predictions.
        members: probes or passes with dropout whose disagreement is measured.
        target_share: of the figure with all labels that is to be reached.
        resamples: of the bootstrap of the test patients.
        confidence: of the intervals.
        device: of the feature extraction; None: a GPU if there is one.
        batch_size: of the feature extraction.
    """

    output_dir: Path
    task: StudyTask
    encoder: str | None = None
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    budgets: tuple[int, ...] = (10, 20, 40, 80, 160)
    seeds: tuple[int, ...] = (0, 1, 2)
    mode: str = "linear"
    cold_start: str = "random"
    members: int = 10
    target_share: float = 0.9
    resamples: int = 200
    confidence: float = 0.95
    device: str | None = None
    batch_size: int = 64

    def question(self) -> Question:
        """Return the task opened with this encoder and all of its training labels."""
        name = RANDOM if self.encoder is None else "encoder"
        encoders = {} if self.encoder is None else {name: self.encoder}
        study = Study(
            self.output_dir, encoders, {_TASK: self.task}, modes=(self.mode,), fractions=(1.0,), seeds=(0,),
            device=self.device, batch_size=self.batch_size,
        )  # fmt: skip
        return Question(study, StudyCell(_TASK, name, self.mode, 1.0, 0))


def read_label_study(
    config_file: str | os.PathLike,
    *,
    output_dir: str | os.PathLike | None = None,
    dataset_dir: str | None = None,
    encoder: str | None = None,
) -> LabelStudy:
    """Read a study of labelling from a YAML or JSON file.

    Args:
        config_file: with the keys of :class:`LabelStudy`; ``task`` holds ``bundle`` and settings of that bundle;
            ``seeds`` may be their number.
        output_dir: replaces the file's.
        dataset_dir: replaces the task's.
        encoder: replaces the file's.

    Raises:
        FileNotFoundError: the file, the bundle or the weights are not there.
        ValueError: a key is unknown or missing (the nearest is named), or a value is wrong.
    """
    path = Path(config_file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no study at {path}")
    content = dict(ConfigParser.load_config_file(str(path)))
    refuse_unknown(content, {one.name for one in fields(LabelStudy)}, path)
    content |= {key: value for key, value in (("output_dir", output_dir), ("encoder", encoder)) if value is not None}
    for key in ("output_dir", "task"):
        if not content.get(key):
            raise ValueError(f"{path} lacks {key!r}")
    if dataset_dir is not None:
        content["task"] = {**content["task"], "dataset_dir": dataset_dir}
    task = study_task(_TASK, content["task"], path)
    seeds = content.get("seeds", 3)
    content |= {"output_dir": Path(content["output_dir"]), "task": task}
    content["seeds"] = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    content.setdefault("mode", MODES[task.kind][0])
    for key in ("strategies", "budgets", "seeds"):
        if key in content:
            content[key] = _listed(path, key, content[key])
    return _checked(LabelStudy(**content), path)


def _listed(path: Path, key: str, value: Any) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{path}: {key} must be a list, got {value!r}")
    if len(set(value)) != len(value) or not len(value):
        raise ValueError(f"{path}: {key} must be one or more different values, got {list(value)}")
    return tuple(value)


def _checked(study: LabelStudy, path: Path) -> LabelStudy:
    for key, names, known in (
        ("strategies", study.strategies, STRATEGIES),
        ("cold_start", (study.cold_start,), [name for name, one in STRATEGIES.items() if one.needs is None]),
        ("mode", (study.mode,), MODES[study.task.kind]),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"{path}: {key} has {name!r}; there are {', '.join(known)}")
    if study.encoder is not None and not Path(study.encoder).is_file():
        raise FileNotFoundError(f"{path}: the encoder's weights are not at {study.encoder}")
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (*study.budgets, *study.seeds, study.members))
    if not whole or min(study.budgets) < 1 or min(study.seeds) < 0 or list(study.budgets) != sorted(study.budgets):
        raise ValueError(
            f"{path}: budgets are ascending whole numbers from 1, seeds whole numbers from 0; got "
            f"{list(study.budgets)} and {list(study.seeds)}"
        )
    if study.members < 2 or study.resamples < 1 or not (0 < study.confidence < 1 and 0 < study.target_share <= 1):
        raise ValueError(
            f"{path}: members is 2 or more, resamples 1 or more, confidence in (0, 1), target_share at most 1"
        )
    return study
