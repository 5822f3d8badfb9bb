# SPDX-License-Identifier: Apache-2.0
"""Which source to pretrain on: how alike data sets are, what an encoder promises for a few labels, and whether such
measures predict the transfer at all."""

from __future__ import annotations

from .bhattacharyya import gaussian_bhattacharyya
from .cka import linear_cka
from .correlation import Correlation, correlation
from .experts import read_expert_distances
from .frechet import frechet_distance
from .h_score import h_score, regularised_h_score
from .knn_transfer import knn_transfer
from .label_transport import label_transport_distance
from .leep import leep
from .logme import log_me
from .mmd import squared_mmd
from .task2vec import task2vec, task2vec_asymmetric, task2vec_distance

__all__ = [
    "Correlation",
    "correlation",
    "frechet_distance",
    "gaussian_bhattacharyya",
    "h_score",
    "knn_transfer",
    "label_transport_distance",
    "leep",
    "linear_cka",
    "log_me",
    "read_expert_distances",
    "regularised_h_score",
    "squared_mmd",
    "task2vec",
    "task2vec_asymmetric",
    "task2vec_distance",
]
