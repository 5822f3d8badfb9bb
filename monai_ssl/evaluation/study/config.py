# SPDX-License-Identifier: Apache-2.0
"""What a study asks, from one YAML file: encoders, tasks, ways to use an encoder, label counts and seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_ssl.data.tables import nearest_name
from monai_ssl.evaluation.study.perturbations import PERTURBATIONS

__all__ = ["Study", "StudyTask", "read_study"]

MODES = {"classification": ("linear", "knn", "finetune"), "segmentation": ("frozen", "finetune")}
"""Ways to use an encoder, by the kind of task."""

RANDOM = "random"
"""Name of the start without pretraining; fine-tuned, it is the training from scratch."""

# What a study sets in its tasks' bundles itself.
_OWN_SETTINGS = (
    "output_dir", "cache_dir", "seed", "mode", "encoder_weights", "label_fraction", "resume", "bundle_root",
)  # fmt: skip
_KINDS = {"classification_labels": "classification", "segmentation_labels": "segmentation"}


@dataclass(frozen=True)
class StudyTask:
    """A question on some images, as a downstream bundle asks it.

    Attributes:
        name: of the task.
        bundle: folder of the bundle, such as ``bundles/radiograph_classification``.
        settings: the bundle's settings that differ from its own, such as ``dataset_dir`` and ``label_column``.
        kind: ``"classification"`` or ``"segmentation"``.
        config: the bundle's own training configuration.
    """

    name: str
    bundle: Path
    settings: dict[str, Any]
    kind: str
    config: dict[str, Any]

    @property
    def config_file(self) -> Path:
        """The bundle's configuration of a training."""
        return self.bundle / "configs/train.yaml"


@dataclass(frozen=True)
class Study:
    """Everything that decides what is computed.

    Attributes:
        output_dir: for cells, features and the report.
        encoders: file of weights by name; the start without pretraining is always there, as ``"random"``.
        tasks: by name.
        modes: ways to use an encoder; each task takes those that are of its kind.
        fractions: shares of the training labels, above 0 to 1, or whole numbers of labelled images above 1.
        seeds: of subsets, random weights and trainings.
        robustness: names of perturbations that the models with most labels (but for nearest neighbours) are tested on;
            empty: none.
        subgroups: columns of the table of images, for figures of each group of patients.
        min_patients: groups with fewer patients in the test split get no figures.
        resamples: of the bootstrap.
        confidence: of the intervals.
        convergence_share: of the best smoothed validation metric from scratch that must be reached.
        embedding: ``"pca"``, ``"tsne"`` or ``"none"``: how features are brought to two dimensions for the map.
        pictures: show patients' images in the report (the nearest neighbours of test images).
        device: of the feature extraction; None: a GPU if there is one.
        batch_size: of the feature extraction.
    """

    output_dir: Path
    encoders: dict[str, str]
    tasks: dict[str, StudyTask]
    modes: tuple[str, ...] = ("linear", "finetune")
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    robustness: tuple[str, ...] = ()
    subgroups: tuple[str, ...] = ()
    min_patients: int = 20
    resamples: int = 500
    confidence: float = 0.95
    convergence_share: float = 1.0
    embedding: str = "pca"
    pictures: bool = False
    device: str | None = None
    batch_size: int = 64

    @property
    def compute_device(self) -> torch.device:
        """Where features are extracted."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def modes_of(self, task: StudyTask) -> tuple[str, ...]:
        """Return the modes that a task takes."""
        return tuple(mode for mode in self.modes if mode in MODES[task.kind])


def read_study(
    config_file: str | os.PathLike, *, output_dir: str | os.PathLike | None = None, dataset_dir: str | None = None
) -> Study:
    """Read a study from a YAML or JSON file.

    Args:
        config_file: with the keys of :class:`Study`; ``encoders`` maps names to files of weights, ``tasks`` maps names
            to ``bundle`` and settings of that bundle; ``seeds`` may be their number.
        output_dir: replaces the file's.
        dataset_dir: replaces that of the only task.

    Returns:
        The study.

    Raises:
        FileNotFoundError: the file, a bundle or weights are not there.
        ValueError: a key is unknown or missing (the nearest is named), or a value is wrong.
    """
    path = Path(config_file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no study at {path}")
    content = dict(ConfigParser.load_config_file(str(path)))
    known = {one.name for one in fields(Study)}
    refuse_unknown(content, known, path)
    if output_dir is not None:
        content["output_dir"] = output_dir
    for key in ("output_dir", "tasks"):
        if not content.get(key):
            raise ValueError(f"{path} lacks {key!r}")
    if dataset_dir is not None:
        if len(content["tasks"]) != 1:
            raise ValueError(f"dataset_dir is for a study with one task; {path} has {len(content['tasks'])}")
        content["tasks"] = {name: {**task, "dataset_dir": dataset_dir} for name, task in content["tasks"].items()}
    tasks = {str(name): study_task(str(name), given, path) for name, given in content["tasks"].items()}
    seeds = content.get("seeds", 3)
    plain = {name: content[name] for name in known & content.keys() if name not in ("tasks", "encoders", "seeds")}
    lists = {"modes", "fractions", "robustness", "subgroups"}
    made = Study(
        **{
            **plain,
            **{key: _listed(key, content[key]) for key in lists & content.keys()},
            "output_dir": Path(content["output_dir"]),
            "encoders": {str(name): str(file) for name, file in (content.get("encoders") or {}).items()},
            "tasks": tasks,
            "seeds": tuple(range(seeds)) if isinstance(seeds, int) else _listed("seeds", seeds),
        }
    )  # fmt: skip
    return _checked(made, path)


def study_task(name: str, given: Any, path: Path) -> StudyTask:
    """Make a task of its entry in a file.

    Args:
        name: of the task.
        given: ``bundle`` and settings of that bundle.
        path: of the file, for messages.

    Raises:
        FileNotFoundError: there is no such bundle.
        ValueError: the bundle learns from no labels, or a setting is unknown or the study's own.
    """
    if not isinstance(given, Mapping) or not given.get("bundle"):
        raise ValueError(f"{path}: the task {name!r} needs the key 'bundle', such as bundles/radiograph_classification")
    settings = {key: value for key, value in given.items() if key != "bundle"}
    bundle = Path(given["bundle"])
    file = bundle / "configs/train.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: the task {name!r} names the bundle {bundle}, but there is no {file}")
    config = ConfigParser.load_config_file(str(file))
    target = str((config.get("labels") or {}).get("_target_", "")).rsplit(".", 1)[-1]
    if target not in _KINDS:
        raise ValueError(f"{path}: {bundle} is no bundle that learns from labels; use a classification or segmentation")
    if taken := sorted(settings.keys() & set(_OWN_SETTINGS)):
        raise ValueError(
            f"{path}: the task {name!r} sets {', '.join(taken)}, which the study sets in each of its cells"
        )
    refuse_unknown({key.split("::")[0].split("#")[0]: None for key in settings}, config, f"{path}: task {name!r}")
    return StudyTask(name, bundle, settings, _KINDS[target], config)


def _checked(study: Study, path: Path) -> Study:
    if RANDOM in study.encoders:
        raise ValueError(f"{path}: the name {RANDOM!r} stands for the start without pretraining; name the encoder else")
    names = [*study.encoders, *study.tasks]
    if wrong := [name for name in names if not name or not all(c.isalnum() or c in "_-." for c in name)]:
        raise ValueError(f"{path}: {wrong[0]!r} names a folder: use letters, digits, '_', '-' and '.'")
    for name, file in study.encoders.items():
        if not Path(file).is_file():
            raise FileNotFoundError(f"{path}: the weights of {name!r} are not at {file}")
    _choices(path, "modes", study.modes, {mode for modes in MODES.values() for mode in modes})
    _choices(path, "robustness", study.robustness, PERTURBATIONS)
    _choices(path, "embedding", (study.embedding,), ("pca", "tsne", "none"))
    for task in study.tasks.values():
        if not study.modes_of(task):
            raise ValueError(
                f"{path}: the task {task.name!r} is a {task.kind}; modes must have one of {', '.join(MODES[task.kind])}"
            )
    for value in study.fractions:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{path}: fractions are shares above 0 to 1, or whole numbers above 1; got {value!r}")
    for key in ("fractions", "seeds", "modes"):
        if len(set(getattr(study, key))) != len(getattr(study, key)) or not getattr(study, key):
            raise ValueError(f"{path}: {key} must be one or more different values, got {list(getattr(study, key))}")
    if not 0 < study.confidence < 1 or not 0 < study.convergence_share <= 1 or study.resamples < 1:
        raise ValueError(f"{path}: confidence and convergence_share lie in (0, 1), resamples is 1 or more")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in study.seeds):
        raise ValueError(f"{path}: seeds are whole numbers from 0, or how many there are; got {list(study.seeds)}")
    return replace(study, fractions=tuple(sorted(study.fractions)))


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], where: object) -> None:
    """Raise a ValueError for the first unknown key, with the nearest known one."""
    for key in given:
        if key not in known:
            near = nearest_name(str(key), known, 0.5)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")


def _choices(path: Path, key: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{path}: {key} has {value!r}; there are {', '.join(sorted(known))}")


def _listed(key: str, value: Any) -> tuple:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{key} must be a list, got {json.dumps(value, default=str)}")
    return tuple(value)
