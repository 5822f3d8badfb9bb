# SPDX-License-Identifier: Apache-2.0
"""Classification without training: a class is what its prompt sentences say.

Competing classes: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (CLIP), ICML
2021, section 3.1. Findings, each by a pair of positive and negative prompts: Tiu et al., *Expert-level detection of
pathologies from unannotated chest X-ray images via self-supervised learning*, Nature Biomedical Engineering 2022.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from monai_ssl.data.tables import nearest_name
from monai_ssl.evaluation.image_text import embed_text_groups
from monai_ssl.evaluation.retrieval import FEWEST_UNITS, interval_columns, plain_columns
from monai_ssl.metrics import area_under_roc, bootstrap_difference, bootstrap_interval

__all__ = ["Prompts", "read_prompts", "score_zero_shot", "zero_shot_probabilities"]

_FORMAT = (
    "it holds either 'classes', {name: [sentence, ...]}, or 'findings', "
    "{name: {positive: [sentence, ...], negative: [sentence, ...]}}"
)


@dataclass(frozen=True)
class Prompts:
    """Sentences for each class.

    Attributes:
        names: K classes or findings.
        positive: for each the sentences that say so.
        negative: for each finding the sentences that say it is not there; None for classes that compete.
    """

    names: list[str]
    positive: list[list[str]]
    negative: list[list[str]] | None = None

    @property
    def multilabel(self) -> bool:
        """Whether these are findings, which do not exclude each other."""
        return self.negative is not None

    def of(self, names: Sequence[str]) -> Prompts:
        """Return those of some classes, in their order.

        Raises:
            ValueError: there are no prompts for one (the nearest name is given).
        """
        for name in names:
            if name not in self.names:
                near = nearest_name(name, self.names)
                hint = f"; is {near!r} meant?" if near else ""
                raise ValueError(f"there are no prompts for {name!r}{hint} There are some for {', '.join(self.names)}")
        places = [self.names.index(name) for name in names]
        negative = None if self.negative is None else [self.negative[place] for place in places]
        return Prompts(list(names), [self.positive[place] for place in places], negative)


def read_prompts(path: str | Path) -> Prompts:
    """Read prompts from a YAML or JSON file.

    Classes that compete::

        classes:
          normal: [The lungs are clear., No abnormality is seen.]
          pneumonia: [There is a consolidation., Pneumonia is present.]

    Findings of which an image may have several::

        findings:
          effusion:
            positive: [There is a pleural effusion.]
            negative: [There is no pleural effusion.]

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML or JSON, or of another form; the place is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of prompts")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path} is no YAML{where}: {getattr(error, 'problem', None) or error}") from error
    kinds = [kind for kind in ("classes", "findings") if isinstance(content, Mapping) and kind in content]
    if len(kinds) != 1 or len(content) != 1:
        given = f"; it has {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(f"{path} is no file of prompts: {_FORMAT}{given}")
    entries, least = content[kinds[0]], 2 if kinds[0] == "classes" else 1
    if not isinstance(entries, Mapping) or len(entries) < least:
        raise ValueError(f"{path}: {kinds[0]!r} must name at least {least}; {_FORMAT}")
    names = [str(name) for name in entries]
    if kinds[0] == "classes":
        return Prompts(names, [_sentences(value, f"{path}: {name}") for name, value in entries.items()])
    for name, value in entries.items():
        if not isinstance(value, Mapping) or set(value) != {"positive", "negative"}:
            raise ValueError(f"{path}: {name} must have 'positive' and 'negative' sentences and nothing else")
    positive, negative = (
        [_sentences(value[sign], f"{path}: {name}: {sign}") for name, value in entries.items()]
        for sign in ("positive", "negative")
    )
    return Prompts(names, positive, negative)


def _sentences(value: Any, where: str) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where} must be a list of sentences")
    for number, sentence in enumerate(found, 1):
        if not isinstance(sentence, str) or not sentence.strip():
            kind = "empty" if sentence is None or sentence == "" else f"a {type(sentence).__name__}"
            raise ValueError(f"{where}: entry {number} is {kind}, not a sentence; put it into quotes")
    return [sentence.strip() for sentence in found]


def zero_shot_probabilities(
    images: Tensor,
    prompts: Prompts,
    model: nn.Module,
    tokenizer: Any,
    *,
    temperature: float = 0.1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Score images by the cosines of their vectors with those of the prompts.

    A class is the mean of its prompts' unit vectors, at unit length again. Competing classes share a softmax of
    cosine / temperature; a finding has one over its positive and its negative side. These probabilities order images,
    but are not calibrated.

    Args:
        images: unit vectors ``(N, D)``.
        prompts: of K classes or findings.
        model: the model that the images' vectors are of.
        tokenizer: its own.
        temperature: the model's; ConVIRT's is 0.1.
        device: where to compute.

    Returns:
        ``(N, K)`` float32.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    groups = [*prompts.positive, *(prompts.negative or [])]
    logits = images @ embed_text_groups(model, tokenizer, groups, device).T / temperature
    if prompts.multilabel:
        positive, negative = logits.split(len(prompts.names), dim=1)
        return torch.sigmoid(positive - negative)  # the softmax over the two
    return logits.softmax(dim=1)


def score_zero_shot(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    other: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Score a classification without training: areas under the ROC curve, in the rows of :func:`score_retrieval`.

    Args:
        y_true: ``(N,)`` classes or ``(N, K)`` findings, -1 is unknown; see :func:`monai_ssl.metrics.area_under_roc`.
        probabilities: ``(N, K)``, of :func:`zero_shot_probabilities`.
        class_names: K names.
        other: ``(N, K)`` of a second model.
        groups: ``(N,)`` patients; whole patients are resampled.
        options: ``n``, ``confidence`` and ``seed`` of the bootstrap.

    Returns:
        A row over all classes, and one for each unless the question is binary (whose second class is asked for).
        Without intervals where there are fewer than 10 patients, or too few of a class.

    Raises:
        ValueError: a class is not among the labels, or shapes do not fit.
    """
    y, p = np.asarray(y_true), np.asarray(probabilities)
    units = np.arange(len(y)) if groups is None else np.asarray(groups)
    known = (y >= 0) if y.ndim == 1 else (y >= 0).any(axis=1)
    shared = {"task": "zero-shot", "measure": "auc", "k": None, "items": p.shape[1], "median_rank": None}
    shared |= {"unit": "images" if groups is None else "patients", "left_out": int((~known).sum())}
    questions = [("all", y, slice(None))]
    if y.ndim == 2:
        questions += [(name, y[:, k], k) for k, name in enumerate(class_names)]
    elif len(class_names) > 2:
        questions += [(name, np.where(y < 0, -1, y == k), k) for k, name in enumerate(class_names)]
    rows = []
    for name, labels, column in questions:

        def area(y_true: np.ndarray, scores: np.ndarray, name: str = name) -> float:
            return area_under_roc(y_true, scores, class_names=class_names if name == "all" else [name])

        mine, use = p[:, column], {"groups": units, **options}
        theirs = None if other is None else np.asarray(other)[:, column]
        counts = {"class": name, "queries": int(known.sum()), "groups": len(np.unique(units[known]))}
        plain = plain_columns(area(labels, mine), None if theirs is None else area(labels, theirs), 0.5)
        try:
            found = interval_columns(
                {
                    "value": bootstrap_interval(area, labels, mine, **use),
                    "chance": 0.5,
                    "over_chance": bootstrap_difference(area, labels, mine, np.zeros_like(mine), **use),
                    "other": None if theirs is None else bootstrap_interval(area, labels, theirs, **use),
                    "over_other": None if theirs is None else bootstrap_difference(area, labels, mine, theirs, **use),
                }
            )
        except ValueError:  # too few of some class for most resamples
            found = plain
        rows.append(shared | counts | (found if counts["groups"] >= FEWEST_UNITS else plain))
    return rows
