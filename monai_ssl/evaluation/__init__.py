# SPDX-License-Identifier: Apache-2.0
"""What an encoder is worth: features, probes, fine-tuning into a MONAI classifier, and reports that carry their run."""

from __future__ import annotations

from .classifier_card import (
    ClassifierCard,
    find_classifier,
    load_classifier,
    open_unlabelled,
    read_classifier_card,
    save_classifier,
)
from .classifier_handlers import BestClassifier, ClassifierReportWriter, PredictionWriter
from .classifier_method import ClassifierMethod
from .feature_writer import FeatureWriter
from .features import extract_features
from .fine_tuning import (
    WeightAverage,
    class_weights,
    classification_layer,
    fine_tuning_groups,
    fine_tuning_views,
    set_classification_layer,
)
from .head_start import fit_head
from .labels import ClassificationLabels, LabelledStoreDataset, classification_labels
from .online_probe import online_probe, probe_labels
from .preprocessing import Preprocessing
from .pretraining_summary import pretraining_summary
from .probes import LinearProbe, knn_probe, linear_probe, regularisation_rule
from .report import ClassifierReport, classifier_report
from .report_table import collect_reports, compare_predictions, report_table
from .run_facts import RunFacts, describe_lineage, device_name, package_versions
from .sampling import FixedLengthSampler
from .starting_point import StartingPoint
from .validation import ClassifierEvaluator, PreparedView, RocAreaScore

__all__ = [
    "BestClassifier",
    "ClassificationLabels",
    "ClassifierCard",
    "ClassifierEvaluator",
    "ClassifierMethod",
    "ClassifierReport",
    "ClassifierReportWriter",
    "FeatureWriter",
    "FixedLengthSampler",
    "LabelledStoreDataset",
    "LinearProbe",
    "PredictionWriter",
    "PreparedView",
    "Preprocessing",
    "RocAreaScore",
    "RunFacts",
    "StartingPoint",
    "WeightAverage",
    "class_weights",
    "classification_labels",
    "classification_layer",
    "classifier_report",
    "collect_reports",
    "compare_predictions",
    "describe_lineage",
    "device_name",
    "extract_features",
    "find_classifier",
    "fine_tuning_groups",
    "fine_tuning_views",
    "fit_head",
    "knn_probe",
    "linear_probe",
    "load_classifier",
    "online_probe",
    "open_unlabelled",
    "package_versions",
    "pretraining_summary",
    "probe_labels",
    "read_classifier_card",
    "regularisation_rule",
    "report_table",
    "save_classifier",
    "set_classification_layer",
]
