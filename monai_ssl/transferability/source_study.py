# SPDX-License-Identifier: Apache-2.0
"""The study of van den Brandt et al., *Cats, not CAT scans*, arXiv 2107.05940: every source to every target, trained.

A cell is one pair: the source's labels train an encoder, which is fine-tuned on each fold of the target. Cells are
files; they can be made one by one, by several processes, in any order, and are never made twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit

from monai_ssl.data.files import folder_lock
from monai_ssl.evaluation import device_name, package_versions

from .example_sets import EXAMPLE_SOURCES, EXAMPLE_TARGETS, make_example_sets
from .labelled_set import LabelledSet, open_labelled_set
from .pair_measures import Probe, encoder_measures, set_measures
from .study_files import CellBusyError, held_cell, read_cell, write_cell
from .study_training import StudyRecipe, fine_tune_fold, pretrain_source

__all__ = ["RANDOM_SOURCE", "SourceStudy"]

logger = logging.getLogger(__name__)

RANDOM_SOURCE = "random"
"""Name of the cells that train from random weights: the baseline that the paper lacks."""

_WAIT_S = 5.0


class SourceStudy:
    """Sources, targets, folds and a recipe, and the folder where the results are.

    Args:
        output_dir: for results; a study that was begun there goes on, if its settings are the same.
        sources: folders of labelled images, or encoder files (``.safetensors``), by name or as a list (then named by
            the folder). None: the example sets.
        targets: folders of labelled images, likewise.
        dataset_dir: folder that relative folders are in. If given without sources or targets, all its subfolders with
            images are sources, and all are targets.
        cache_dir: for prepared images.
        recipe: of all trainings.
        max_epochs: of fine-tuning, in place of the recipe's.
        num_folds: of the cross-validation on a target.
        by_patient: keep patients together in folds, and let no target's test images into the pretraining of its own
            cell. False is the paper's way: images are dealt one by one, and the cell of a set with itself leaks.
        source_share: stratified share of a source's images that is trained on; 1 in ours, 0.8 in the paper's.
        label_column: of the tables; one for all, or by the name of a set.
        where: row filters by the name of a set.
        experts: CSV with the experts' distances, see :func:`monai_ssl.transferability.read_expert_distances`.
        probe_weights: encoder file of the network that data sets are compared by; None: random weights.
        measure_images: most images of a set that measures look at; all sets give equally many.
        stored_side: longest side of the prepared images in pixels.
        device: where to compute.
        seed: of everything.
        num_workers: processes that prepare images.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: names clash, a set has too few images for the folds, or the folder has another study.
    """

    def __init__(
        self,
        output_dir: str | Path,
        sources: Mapping[str, str] | Sequence[str] | None = None,
        targets: Mapping[str, str] | Sequence[str] | None = None,
        *,
        dataset_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        recipe: StudyRecipe | None = None,
        max_epochs: int | None = None,
        num_folds: int = 5,
        by_patient: bool = True,
        source_share: float = 1.0,
        label_column: str | Mapping[str, str] | None = None,
        where: Mapping[str, str] | None = None,
        experts: str | Path | None = None,
        probe_weights: str | Path | None = None,
        measure_images: int = 500,
        stored_side: int = 256,
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.cache_dir = Path(cache_dir or self.output_dir / "data")
        recipe = recipe or StudyRecipe()
        self.recipe = recipe if max_epochs is None else replace(recipe, max_epochs=max_epochs)
        self.device, self.seed = torch.device(device), seed
        self.num_folds, self.by_patient, self.source_share = num_folds, by_patient, source_share
        self.experts, self.probe_weights, self.measure_images = experts, probe_weights, measure_images
        if not 0 < source_share <= 1 or measure_images < 10:
            raise ValueError(
                f"source_share must be in (0, 1] and measure_images at least 10, got {source_share}, {measure_images}"
            )
        if dataset_dir is None and sources is None and targets is None:
            dataset_dir = make_example_sets(self.cache_dir / "example_sets")
            sources, targets = EXAMPLE_SOURCES, EXAMPLE_TARGETS
        source_paths = _places(sources, dataset_dir, "source")
        target_paths = _places(targets, dataset_dir, "target")
        folders = {name: path for name, path in source_paths.items() if path.is_dir()}
        for name, path in target_paths.items():
            if not path.is_dir():
                raise ValueError(f"the target {name!r} must be a folder of labelled images, not {path}")
            if folders.setdefault(name, path).resolve() != path.resolve():
                raise ValueError(f"source and target {name!r} are two folders; give them different names")
        self.encoder_files = {name: path for name, path in source_paths.items() if path.is_file()}
        if RANDOM_SOURCE in {*source_paths, *folders} or self.encoder_files.keys() & folders.keys():
            raise ValueError(f"sources and targets need different names, and none may be called {RANDOM_SOURCE!r}")
        columns = {} if label_column is None or isinstance(label_column, str) else dict(label_column)
        unknown = sorted((columns.keys() | (where or {}).keys()) - folders.keys())
        if unknown:
            raise ValueError(f"label_column or where name {', '.join(unknown)}; the sets are {', '.join(folders)}")
        self.sets: dict[str, LabelledSet] = {
            name: open_labelled_set(
                path,
                self.cache_dir / name,
                name=name,
                label_column=columns.get(name, label_column if isinstance(label_column, str) else None),
                where=(where or {}).get(name),
                stored_side=stored_side,
                num_workers=num_workers,
            )
            for name, path in folders.items()
        }
        self.sources, self.targets = list(source_paths), list(target_paths)
        self.folds = {name: self.sets[name].folds(num_folds, by_patient, seed) for name in self.targets}
        self._settle_settings()

    # ---- cells -------------------------------------------------------------------------------------------------------

    def cells(self) -> list[tuple[str, str]]:
        """Return all pairs of the study: from scratch and with itself for each target, then each source."""
        pairs = [pair for target in self.targets for pair in ((RANDOM_SOURCE, target), (target, target))]
        pairs += [(source, target) for source in self.sources for target in self.targets]
        return list(dict.fromkeys(pairs))

    def path(self, source: str, target: str) -> Path:
        """Return the file of a cell."""
        return self.output_dir / "cells" / f"{source}__{target}.json"

    def run(self, cell: Sequence[str] | None = None) -> None:
        """Make one cell, or all that are missing.

        Several processes may run the same study: each takes cells that no other holds.

        Args:
            cell: (source, target).

        Raises:
            ValueError: there is no such cell.
            CellBusyError: another process holds the one that was asked for.
        """
        if cell is not None:
            source, target = cell
            if (source, target) not in self.cells():
                told = ", ".join(f"[{a},{b}]" for a, b in self.cells())
                raise ValueError(f"there is no cell [{source},{target}]; the cells are {told}")
            self.run_cell(source, target)
            return
        missing = [pair for pair in self.cells() if not self.path(*pair).exists()]
        while missing:
            held = []
            for pair in missing:
                try:
                    self.run_cell(*pair)
                except CellBusyError:
                    held.append(pair)
            if len(held) == len(missing):
                logger.info("%d cells are held by other processes; waiting", len(held))
                time.sleep(_WAIT_S)
            missing = [pair for pair in held if not self.path(*pair).exists()]

    def run_cell(self, source: str, target: str) -> dict[str, Any]:
        """Return a cell's result, made if it is missing.

        Raises:
            CellBusyError: another process holds it, or the training of its source.
        """
        path = self.path(source, target)
        with held_cell(path):
            done = read_cell(path)
            if done is not None:
                return done
            leak = self._leak(source, target)
            result = {"source": source, "target": target, "seed": self.seed}
            result |= {"excluded": leak} if leak else {"folds": self._train_folds(source, target)}
            result |= {"device": device_name(self.device), "versions": package_versions()}
            write_cell(path, result)
        shown = leak or "AUC " + ", ".join(f"{fold['auc']:.3f}" for fold in result["folds"])
        logger.info("%s to %s: %s", source, target, shown)
        return result

    def _train_folds(self, source: str, target: str) -> list[dict[str, Any]]:
        data, folds = self.sets[target], []
        for number, (train, test) in enumerate(self.folds[target]):
            start = time.perf_counter()
            weights = self.encoder_of(source, train if self.by_patient and source == target else None, number)
            auc = fine_tune_fold(data, train, test, weights, self.recipe, self.device, self.seed + number)
            seconds = time.perf_counter() - start
            folds.append({"auc": auc, "train": len(train), "test": len(test), "seconds": round(seconds, 2)})
        return folds

    def encoder_of(self, source: str, rows: np.ndarray | None = None, fold: int = 0) -> Path | None:
        """Return the encoder file of a source, trained if it is missing; None for random weights.

        Args:
            source: its name.
            rows: train on these rows only (those of a fold), into a folder of their own.
            fold: its number.

        Raises:
            CellBusyError: another process is training it.
        """
        if source == RANDOM_SOURCE:
            return None
        if source in self.encoder_files:
            return self.encoder_files[source]
        data = self.sets[source]
        folder = self.output_dir / "sources" / (source if rows is None else f"{source}__fold{fold}")
        done = folder / "head.safetensors"  # written last
        with held_cell(folder):
            if not done.exists():
                rows = self._share(data) if rows is None else rows
                logger.info("training the source %s on %d images", folder.name, len(rows))
                pretrain_source(data, rows, self.recipe, folder, self.device, self.seed)
        return folder / "encoder.safetensors"

    def _share(self, data: LabelledSet) -> np.ndarray:
        if self.source_share == 1:
            return data.rows
        splitter = StratifiedShuffleSplit(1, train_size=self.source_share, random_state=self.seed)
        taken, _ = next(splitter.split(data.rows, data.classes_of(data.rows)))
        return data.rows[np.sort(taken)]

    def _leak(self, source: str, target: str) -> str | None:
        """Why a pair can't tell anything: the source has images of the target."""
        if source == target or source not in self.sets or not self.by_patient:
            return None
        shared = len(self.sets[source].contents() & self.sets[target].contents())
        return f"{shared} images of {target} are in {source} too" if shared else None

    # ---- measures ----------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Compute the measures of all pairs that are missing; trains sources as far as needed."""
        pairs = [(s, t) for s in self.sources for t in self.targets if not self._measured(s, t).exists()]
        if not pairs:
            return
        count = min(self.measure_images, *(len(data.rows) for data in self.sets.values()))
        rows = {name: data.draw(count, self.seed) for name, data in self.sets.items()}
        recipe = self.recipe
        probe = Probe(
            self.probe_weights, recipe.architecture, recipe.network_args, recipe.image_size, self.device, self.seed
        )
        probe.settle([(self.sets[name], rows[name]) for name in self.sets])
        if probe.random:
            logger.warning("data sets are compared by a random network: probe_weights may give a pretrained one")
        facts = {}
        for name in dict.fromkeys(name for pair in pairs for name in pair if name in self.sets):
            data, mine = self.sets[name], rows[name]
            embedding = probe.embedding(data, mine, self.seed)
            facts[name] = (probe.features(data, mine), data.classes_of(mine), embedding)
            logger.info("looked at %d images of %s", count, name)
        for source, target in pairs:
            path = self._measured(source, target)
            with held_cell(path):
                if path.exists():
                    continue
                values, reasons = set_measures(facts[source], facts[target]) if source in facts else ({}, {})
                more, why = encoder_measures(
                    self.encoder_of(source),
                    self.sets[target],
                    rows[target],
                    facts[target][0],
                    recipe.image_size,
                    self.device,
                )
                content = {"source": source, "target": target, "images": count, "values": values | more}
                write_cell(path, content | {"undefined": reasons | why})

    def _measured(self, source: str, target: str) -> Path:
        """Where the measures of a pair are. They depend on the other sets: these settle how many images each gives."""
        facts = json.dumps([self.measure_images, {name: data.fingerprint for name, data in sorted(self.sets.items())}])
        among = hashlib.sha256(facts.encode()).hexdigest()[:8]
        return self.output_dir / "measures" / among / f"{source}__{target}.json"

    # ---- results -----------------------------------------------------------------------------------------------------

    def results(self) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[tuple[str, str], dict[str, Any]]]:
        """Return by pair the cells and the measures (``"values"``, and why some are ``"undefined"``) that are there."""
        cells = {pair: read_cell(self.path(*pair)) for pair in self.cells()}
        measures = {(s, t): read_cell(self._measured(s, t)) for s in self.sources for t in self.targets}
        return (
            {pair: cell for pair, cell in cells.items() if cell is not None},
            {pair: found for pair, found in measures.items() if found is not None},
        )

    def _settle_settings(self) -> None:
        """Note what the results depend on, or compare it with what was noted before."""
        settings = {
            "recipe": asdict(self.recipe),
            "num_folds": self.num_folds,
            "by_patient": self.by_patient,
            "source_share": self.source_share,
            "seed": self.seed,
            "measure_images": self.measure_images,
            "probe_weights": None if self.probe_weights is None else Path(self.probe_weights).name,
            "sets": {name: [data.fingerprint, data.labels.class_names] for name, data in self.sets.items()},
        }
        settings = json.loads(json.dumps(settings))
        path = self.output_dir / "study.json"
        with folder_lock(self.output_dir):
            noted = read_cell(path)
            if noted is None:
                write_cell(path, settings)
                return
        # Further sets may join: a study grows, and its finished cells stay what they are.
        noted["sets"] = {name: noted["sets"].get(name, facts) for name, facts in settings["sets"].items()}
        changed = sorted(key for key in settings if noted.get(key) != settings[key])
        if changed:
            raise ValueError(
                f"{self.output_dir} has a study with other settings ({', '.join(changed)}); use another output_dir, or "
                "the same settings"
            )


def _places(given: Mapping[str, str] | Sequence[str] | None, dataset_dir: str | Path | None, kind: str) -> dict:
    """Names and paths of sources or targets."""
    base = Path(dataset_dir) if dataset_dir is not None else Path()
    if given is None:
        if dataset_dir is None:
            raise ValueError(f"give {kind}s, or a dataset_dir whose subfolders they are")
        if not base.is_dir():
            raise FileNotFoundError(f"{base}: no such folder")
        given = sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    if isinstance(given, str):
        given = [given]
    named = dict(given) if isinstance(given, Mapping) else {}
    for text in () if named else given:
        path = Path(text)
        name = path.parent.name if path.stem == "encoder" and path.suffix else path.stem
        if named.setdefault(name, text) != text:
            raise ValueError(f"two {kind}s are called {name!r}; give names: {{{name}_2: {text}}}")
    places = {str(name): base / path for name, path in named.items()}
    for name, path in places.items():
        if not path.exists():
            raise FileNotFoundError(f"the {kind} {name!r}: there is no {path}")
    if not places:
        raise ValueError(f"there is no {kind}: {base} has no subfolder")
    return places
