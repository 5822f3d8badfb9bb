# SPDX-License-Identifier: Apache-2.0
"""Index, readers, intensity policies, store, datasets, samplers, splits, duplicates and example data."""

from __future__ import annotations

from monai_ssl.data.datasets import PadCollate, StoreDataset
from monai_ssl.data.decoders import available_decoders
from monai_ssl.data.duplicates import DuplicateReport, drop_duplicates, find_duplicates
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.example_volumes import EXAMPLE_ORGANS, make_example_volumes
from monai_ssl.data.examples import EXAMPLE_FINDINGS, make_example_radiographs
from monai_ssl.data.index import build_index, describe_index
from monai_ssl.data.intensity import IntensityPolicy, RadiographIntensity, policy_from_dict
from monai_ssl.data.labels import find_labels_file, join_labels, read_labels, select_rows
from monai_ssl.data.mixture_sampler import MixtureSampler
from monai_ssl.data.mixtures import SourceMixture
from monai_ssl.data.patch_sampler import PatchSampler, sampling_weights
from monai_ssl.data.patches import VolumePatchDataset
from monai_ssl.data.phantom_report import finding_sentences
from monai_ssl.data.places import LabelledPlaces
from monai_ssl.data.pool import pool_fingerprint, pretraining_rows
from monai_ssl.data.positives import positive_groups
from monai_ssl.data.prepare import prepare_store, read_prepared
from monai_ssl.data.radiographs import open_radiographs
from monai_ssl.data.readers import RadiographReader, open_radiograph, read_radiograph
from monai_ssl.data.report_dataset import ReportCollate, ReportDataset
from monai_ssl.data.report_sections import SECTION_HEADINGS, choose_sections, find_sections, section_headings
from monai_ssl.data.report_sentences import split_sentences
from monai_ssl.data.reports import Reports, open_reports
from monai_ssl.data.samplers import EpochSampler
from monai_ssl.data.series import open_series
from monai_ssl.data.source_intensity import SourceIntensity
from monai_ssl.data.sources import (
    ImageSource,
    mixture_dataset,
    mixture_fingerprint,
    mixture_geometry,
    mixture_policy,
    mixture_rows,
    mixture_views,
    open_mixture,
    probed_images,
    probed_source,
)
from monai_ssl.data.splits import assert_classes, assert_disjoint, assign_splits, load_split, save_split, split_rows
from monai_ssl.data.store import ImageStore
from monai_ssl.data.study_sampler import StudySampler
from monai_ssl.data.subsets import label_subsets
from monai_ssl.data.volume_index import build_volume_index
from monai_ssl.data.volume_intensity import CT_WINDOWS, CTIntensity, ModalityIntensity, MRIntensity, volume_policy
from monai_ssl.data.volume_items import prepare_volumes
from monai_ssl.data.volume_labels import find_volume_labels, read_volume_labels
from monai_ssl.data.volume_reader import VolumeReader, open_volume, open_volumes, read_volume
from monai_ssl.data.volume_slices import VolumeSliceDataset
from monai_ssl.data.volume_store import open_volume_store
from monai_ssl.data.volumes import FoundVolumes, OpenVolume, Refusal, Volume
from monai_ssl.networks.report_tokenizer import ReportTokenizer

__all__ = [
    "CT_WINDOWS",
    "EXAMPLE_FINDINGS",
    "EXAMPLE_ORGANS",
    "SECTION_HEADINGS",
    "CTIntensity",
    "DuplicateReport",
    "EpochSampler",
    "FoundVolumes",
    "ImageSource",
    "ImageStore",
    "IntensityPolicy",
    "LabelledPlaces",
    "MRIntensity",
    "MixtureSampler",
    "ModalityIntensity",
    "OpenVolume",
    "PadCollate",
    "PatchSampler",
    "RadiographIntensity",
    "RadiographReader",
    "Refusal",
    "ReportCollate",
    "ReportDataset",
    "ReportTokenizer",
    "Reports",
    "SourceIntensity",
    "SourceMixture",
    "StoreDataset",
    "StudySampler",
    "UnreadableImageError",
    "Volume",
    "VolumePatchDataset",
    "VolumeReader",
    "VolumeSliceDataset",
    "assert_classes",
    "assert_disjoint",
    "assign_splits",
    "available_decoders",
    "build_index",
    "build_volume_index",
    "choose_sections",
    "describe_index",
    "drop_duplicates",
    "find_duplicates",
    "find_labels_file",
    "find_sections",
    "find_volume_labels",
    "finding_sentences",
    "join_labels",
    "label_subsets",
    "load_split",
    "make_example_radiographs",
    "make_example_volumes",
    "mixture_dataset",
    "mixture_fingerprint",
    "mixture_geometry",
    "mixture_policy",
    "mixture_rows",
    "mixture_views",
    "open_mixture",
    "open_radiograph",
    "open_radiographs",
    "open_reports",
    "open_series",
    "open_volume",
    "open_volume_store",
    "open_volumes",
    "policy_from_dict",
    "pool_fingerprint",
    "positive_groups",
    "prepare_store",
    "prepare_volumes",
    "pretraining_rows",
    "probed_images",
    "probed_source",
    "read_labels",
    "read_prepared",
    "read_radiograph",
    "read_volume",
    "read_volume_labels",
    "sampling_weights",
    "save_split",
    "section_headings",
    "select_rows",
    "split_rows",
    "split_sentences",
    "volume_policy",
]
