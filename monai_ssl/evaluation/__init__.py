# SPDX-License-Identifier: Apache-2.0
"""What an encoder is worth: features, probes, fine-tuning into a MONAI classifier, and reports that carry their run."""

from __future__ import annotations

from .chexpert_report import report_chexpert_retrieval
from .chexpert_retrieval import ChexpertRetrieval, read_chexpert_retrieval
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
from .hit_sheet import Hit, HitRow, hit_sheet_html, hit_sheet_png
from .hybrid_labels import MixtureLabelMaps, mixture_label_maps
from .image_text import ImageTower, embed_files, embed_images, embed_text_groups, embed_texts, untrained_copy
from .image_text_file import OpenImageText, image_text_or_untrained, open_image_text, untrained_image_text
from .image_text_handler import ImageTextReportWriter
from .image_text_tasks import ImageTextQuestions, evaluated_rows
from .labels import ClassificationLabels, LabelledStoreDataset, classification_labels
from .model_card import ModelCard, find_model, load_model, read_model_card, save_model
from .model_handlers import BestModel
from .online_probe import online_probe, probe_labels
from .place_probe import PlaceProbe, mixture_place_probe, online_place_probe, place_probe
from .preprocessing import Preprocessing
from .pretraining_summary import pretraining_summary
from .probes import LinearProbe, knn_probe, linear_probe, regularisation_rule
from .report import ClassifierReport, classifier_report
from .report_table import collect_reports, compare_predictions, compare_segmentations, report_table
from .retrieval import RetrievalTask, class_retrieval, report_retrieval, score_retrieval
from .retrieval_report import RetrievalReport, retrieval_report
from .run_facts import RunFacts, describe_lineage, device_name, package_versions
from .sampling import FixedLengthSampler
from .segmentation_card import (
    SegmenterCard,
    StandardizedWindows,
    find_segmenter,
    load_segmenter,
    open_unlabelled_volumes,
    read_segmenter_card,
    save_segmenter,
    sliding_window,
)
from .segmentation_data import LabelledVolumes, read_size_for
from .segmentation_handlers import BestSegmenter, SegmentationReportWriter
from .segmentation_labels import SegmentationLabels, segmentation_labels
from .segmentation_method import SegmentationMethod
from .segmentation_plots import SlicedVolume, segmentation_png
from .segmentation_report import SegmentationReport, segmentation_report
from .segmentation_start import SegmentationStart, build_segmenter
from .segmentation_validation import MeanDiceScore, SegmentationEvaluator, WholeVolume
from .segmentation_writer import SegmentationWriter
from .source_grid import restore_class_numbers, write_label_map
from .starting_point import StartingPoint
from .supervised_stage import supervised_task
from .validation import ClassifierEvaluator, PreparedView, RocAreaScore
from .zero_shot import Prompts, read_prompts, score_zero_shot, zero_shot_probabilities

__all__ = [
    "BestClassifier",
    "BestModel",
    "BestSegmenter",
    "ChexpertRetrieval",
    "ClassificationLabels",
    "ClassifierCard",
    "ClassifierEvaluator",
    "ClassifierMethod",
    "ClassifierReport",
    "ClassifierReportWriter",
    "FeatureWriter",
    "FixedLengthSampler",
    "Hit",
    "HitRow",
    "ImageTextQuestions",
    "ImageTextReportWriter",
    "ImageTower",
    "LabelledStoreDataset",
    "LabelledVolumes",
    "LinearProbe",
    "MeanDiceScore",
    "MixtureLabelMaps",
    "ModelCard",
    "OpenImageText",
    "PlaceProbe",
    "PredictionWriter",
    "PreparedView",
    "Preprocessing",
    "Prompts",
    "RetrievalReport",
    "RetrievalTask",
    "RocAreaScore",
    "RunFacts",
    "SegmentationEvaluator",
    "SegmentationLabels",
    "SegmentationMethod",
    "SegmentationReport",
    "SegmentationReportWriter",
    "SegmentationStart",
    "SegmentationWriter",
    "SegmenterCard",
    "SlicedVolume",
    "StandardizedWindows",
    "StartingPoint",
    "WeightAverage",
    "WholeVolume",
    "build_segmenter",
    "class_retrieval",
    "class_weights",
    "classification_labels",
    "classification_layer",
    "classifier_report",
    "collect_reports",
    "compare_predictions",
    "compare_segmentations",
    "describe_lineage",
    "device_name",
    "embed_files",
    "embed_images",
    "embed_text_groups",
    "embed_texts",
    "evaluated_rows",
    "extract_features",
    "find_classifier",
    "find_model",
    "find_segmenter",
    "fine_tuning_groups",
    "fine_tuning_views",
    "fit_head",
    "hit_sheet_html",
    "hit_sheet_png",
    "image_text_or_untrained",
    "knn_probe",
    "linear_probe",
    "load_classifier",
    "load_model",
    "load_segmenter",
    "mixture_label_maps",
    "mixture_place_probe",
    "online_place_probe",
    "online_probe",
    "open_image_text",
    "open_unlabelled",
    "open_unlabelled_volumes",
    "package_versions",
    "place_probe",
    "pretraining_summary",
    "probe_labels",
    "read_chexpert_retrieval",
    "read_classifier_card",
    "read_model_card",
    "read_prompts",
    "read_segmenter_card",
    "read_size_for",
    "regularisation_rule",
    "report_chexpert_retrieval",
    "report_retrieval",
    "report_table",
    "restore_class_numbers",
    "retrieval_report",
    "save_classifier",
    "save_model",
    "save_segmenter",
    "score_retrieval",
    "score_zero_shot",
    "segmentation_labels",
    "segmentation_png",
    "segmentation_report",
    "set_classification_layer",
    "sliding_window",
    "supervised_task",
    "untrained_copy",
    "untrained_image_text",
    "write_label_map",
    "zero_shot_probabilities",
]
