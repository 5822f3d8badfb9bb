# SPDX-License-Identifier: Apache-2.0
"""Which source to pretrain on: how alike data sets are, what an encoder promises for a few labels, and whether such
measures predict the transfer at all."""

from __future__ import annotations

from .bhattacharyya import gaussian_bhattacharyya
from .cka import linear_cka
from .correlation import Correlation, correlation
from .example_sets import EXAMPLE_SOURCES, EXAMPLE_TARGETS, make_example_sets
from .experts import read_expert_distances
from .frechet import frechet_distance
from .h_score import h_score, regularised_h_score
from .knn_transfer import knn_transfer
from .label_transport import label_transport_distance
from .labelled_set import LabelledSet, open_labelled_set
from .leep import leep
from .logme import log_me
from .mmd import squared_mmd
from .pair_measures import ENCODER_MEASURES, SET_MEASURES, Probe, encoder_measures, set_measures
from .recommendation import Recommendation, SourceRanking, recommend_sources
from .source_study import RANDOM_SOURCE, SourceStudy
from .study_files import CellBusyError
from .study_report import MEASURES, StudyReport, study_report, transfer_score, verdict
from .study_run import run_study
from .study_training import StudyRecipe, fine_tune_fold, pretrain_source
from .task2vec import task2vec, task2vec_asymmetric, task2vec_distance

__all__ = [
    "ENCODER_MEASURES",
    "EXAMPLE_SOURCES",
    "EXAMPLE_TARGETS",
    "MEASURES",
    "RANDOM_SOURCE",
    "SET_MEASURES",
    "CellBusyError",
    "Correlation",
    "LabelledSet",
    "Probe",
    "Recommendation",
    "SourceRanking",
    "SourceStudy",
    "StudyRecipe",
    "StudyReport",
    "correlation",
    "encoder_measures",
    "fine_tune_fold",
    "frechet_distance",
    "gaussian_bhattacharyya",
    "h_score",
    "knn_transfer",
    "label_transport_distance",
    "leep",
    "linear_cka",
    "log_me",
    "make_example_sets",
    "open_labelled_set",
    "pretrain_source",
    "read_expert_distances",
    "recommend_sources",
    "regularised_h_score",
    "run_study",
    "set_measures",
    "squared_mmd",
    "study_report",
    "task2vec",
    "task2vec_asymmetric",
    "task2vec_distance",
    "transfer_score",
    "verdict",
]
