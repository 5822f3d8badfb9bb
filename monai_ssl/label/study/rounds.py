# SPDX-License-Identifier: Apache-2.0
"""Compute a study of labelling: chains of rounds, each round once, by one process, whole or not at all.

A chain is one strategy with one seed. Its round i asks the strategy for images until there are ``budgets[i]`` labels,
learns from them and is tested. An interrupted chain goes on after its last finished round, and budgets may be added at
the end. Beside the chains, ``all_labels`` is the figure with every label.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data.files import folder_lock
from monai_ssl.evaluation.run_facts import package_versions
from monai_ssl.evaluation.study.question import encoder_sha256
from monai_ssl.evaluation.study.results import read_json, write_json
from monai_ssl.label.pool import LabelPool
from monai_ssl.label.strategies import STRATEGIES, choose_images, effective_strategy
from monai_ssl.label.study.config import LabelStudy
from monai_ssl.label.study.learner import Learned, Learner
from monai_ssl.label.study.probe_learner import ProbeLearner
from monai_ssl.label.study.segmentation_learner import SegmentationLearner
from monai_ssl.weights import atomic_file

__all__ = ["ALL_LABELS", "chains", "read_chain", "read_test", "run_label_study"]

ALL_LABELS = "all_labels"
_ROUND, _VALUES, _TEST = "round.json", "values.npz", "test.npz"
_PLACES = ("output_dir", "cache_dir", "encoder_weights", "bundle_root", "dataset_dir", "labels_file", "num_workers")


def chains(study: LabelStudy) -> list[tuple[str, int]]:
    """Return strategy and seed of every chain, in the order in which they are computed: seed by seed."""
    names = list(dict.fromkeys(["random", *study.strategies]))
    return [(name, seed) for seed, name in itertools.product(study.seeds, names)]


def run_label_study(study: LabelStudy) -> Counter:
    """Compute all rounds that are not done; several processes may do so at once and share the chains.

    A chain that fails is told and counted, and the others go on.

    Returns:
        How many chains were ``"done"``, ``"kept"``, ``"busy"`` or ``"failed"``.

    Raises:
        ValueError: what is wrong with the images, their labels or the weights; there are fewer different images than
            the last budget; or the folder holds rounds of another recipe, of which nothing is changed.
    """
    question = study.question()
    question.preprocessing  # noqa: B018 (weights that do not suit the images are refused before anything is computed)
    classify = study.task.kind == "classification"
    learner: Learner = (ProbeLearner if classify else SegmentationLearner)(question, study.members)
    different = int((learner.duplicate_of < 0).sum())
    if study.budgets[-1] > different:
        raise ValueError(
            f"budgets ask for {study.budgets[-1]} labels, but there are {different} different labelled training images"
        )
    recipe = _recipe(study, question.settings, learner)
    _save(study.output_dir / _TEST, truth=learner.truth, patients=learner.patients)
    counts: Counter = Counter()
    todo: list[tuple[str, int | None]] = [(ALL_LABELS, None), *chains(study)]
    for number, (name, seed) in enumerate(todo, 1):
        said = f"[{number}/{len(todo)}] {name}" + ("" if seed is None else f", seed {seed}")
        started, status, message = time.monotonic(), "busy", ""
        folder = _folder(study, name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder, wait=False) as held:
            if held:
                try:
                    computed = _chain(study, learner, name, seed, folder, recipe)
                    status = "done" if computed else "kept"
                except (ValueError, RuntimeError, OSError) as error:
                    status, message = "failed", f": {error}"
        counts[status] += 1
        if status != "kept":
            print(f"{said}: {status} after {time.monotonic() - started:.1f} s{message}", flush=True)
    return counts


def read_chain(study: LabelStudy, name: str, seed: int | None = None) -> list[dict[str, Any]]:
    """Return the finished rounds of a chain, in order, each with its ``"values"`` of the test images.

    Raises:
        ValueError: a file is damaged.
    """
    found = []
    for folder in _round_folders(_folder(study, name, seed)):
        content = read_json(folder / _ROUND)
        values = _load(folder / _VALUES)
        found.append(content | {"values": values.pop("values"), "uncertainty": values})
    return found


def read_test(study: LabelStudy) -> dict[str, np.ndarray]:
    """Return ``truth`` and ``patients`` of the test images.

    Raises:
        FileNotFoundError: nothing has been computed.
        ValueError: the file is damaged.
    """
    return _load(study.output_dir / _TEST)


def _chain(
    study: LabelStudy, learner: Learner, name: str, seed: int | None, folder: Path, recipe: dict[str, Any]
) -> int:
    """Compute what is missing of a chain; returns the number of rounds computed."""
    budgets = study.budgets if seed is not None else (len(learner.features),)
    done = read_chain(study, name, seed)[: len(budgets)]
    for content in done:
        if content["recipe"] != recipe:
            differing = sorted(key for key in recipe if content["recipe"].get(key) != recipe[key])
            raise ValueError(
                f"{folder} holds rounds of another recipe (different: {', '.join(differing)}); choose another "
                "output_dir, or delete the folder"
            )
    if [content["labels"] for content in done] != list(budgets[: len(done)]):
        raise ValueError(f"{folder} holds rounds of other budgets; choose another output_dir, or delete the folder")
    kinds = {STRATEGIES[name].needs} - {None} if seed is not None else set()
    chosen = np.array([position for content in done for position in content["chosen"]], dtype=np.int64)
    uncertainty = done[-1]["uncertainty"] if done else {}
    for number in range(len(done), len(budgets)):
        started = time.monotonic()
        if seed is None:
            used, new = ALL_LABELS, np.arange(len(learner.features))
        else:
            pool = _pool(learner, chosen, uncertainty)
            used = effective_strategy(name, pool, study.cold_start)
            new = choose_images(name, pool, budgets[number] - len(chosen), seed, study.cold_start)
        chosen = np.concatenate([chosen, new])
        place = folder / f"round-{number:02d}"
        learned = learner.learn(chosen, seed or 0, kinds, place)
        uncertainty = learned.uncertainty
        content = {
            "strategy": name,
            "seed": seed,
            "round": number,
            "chosen_by": used,
            "labels": len(chosen),
            "score": learner.score(learner.truth, learned.values),
            "chosen": new.tolist(),
            "seconds": round(time.monotonic() - started, 2),
            "recipe": recipe,
        }
        _write_round(place, content, learned)
    return len(budgets) - len(done)


def _pool(learner: Learner, chosen: np.ndarray, uncertainty: dict[str, np.ndarray]) -> LabelPool:
    labelled = np.zeros(len(learner.features), dtype=bool)
    labelled[chosen] = True
    return LabelPool.of_features(
        learner.features,
        labelled,
        duplicate_of=learner.duplicate_of,
        uncertainty=dict(uncertainty),
        num_classes=learner.num_classes,
    )


def _recipe(study: LabelStudy, settings: dict[str, Any], learner: Learner) -> dict[str, Any]:
    """Return everything that decides the figures but the budgets and the code."""
    config = json.dumps(study.task.config, sort_keys=True, default=str)
    recipe = {
        "settings": {key: value for key, value in settings.items() if key not in _PLACES},
        "encoder_sha256": encoder_sha256(study.encoder),
        "bundle": study.task.bundle.name,
        "bundle_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "split_hash": learner.split_hash,
        "pool": len(learner.features),
        "cold_start": study.cold_start,
        "members": study.members,
        "versions": package_versions(),
    }
    return json.loads(json.dumps(recipe, default=str))


def _write_round(folder: Path, content: dict[str, Any], learned: Learned) -> None:
    """The values first: a round is finished when its JSON is there."""
    _save(folder / _VALUES, values=learned.values, **learned.uncertainty)
    write_json(folder / _ROUND, content)


def _folder(study: LabelStudy, name: str, seed: int | None) -> Path:
    return study.output_dir / "rounds" / name / ("once" if seed is None else f"seed-{seed}")


def _round_folders(folder: Path) -> Iterator[Path]:
    for number in itertools.count():
        place = folder / f"round-{number:02d}"
        if not (place / _ROUND).is_file():
            return
        yield place


def _save(path: Path, **arrays: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with atomic_file(path) as file:
        file.write(content.getvalue())


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged; delete {path.parent} and run the study again") from error
