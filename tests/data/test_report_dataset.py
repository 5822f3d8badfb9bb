# SPDX-License-Identifier: Apache-2.0
"""Images come with one sentence of their report, each as often as the others, whoever reads them and whenever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_folders import random_array, read_array, write_arrays
from scipy.stats import chisquare
from torch.utils.data import DataLoader
from volume_folders import write_volumes

from monai_ssl.data import (
    PatchSampler,
    ReportCollate,
    ReportDataset,
    SourceMixture,
    StoreDataset,
    StudySampler,
    VolumePatchDataset,
    VolumeSliceDataset,
    open_reports,
    prepare_store,
    prepare_volumes,
)
from monai_ssl.engines.epochs import EpochBatches

TEXTS = [
    "One sentence is here. Two sentences are here now. Three of them.",
    "One sentence is here. Two sentences are here now. Three of them.",
    "Four words and more. one  sentence is here.",
    None,
    "A single sentence alone.",
    "FINDINGS: First of five. Second of five. Third of five. Fourth of five. Fifth of five, longer than the others.",
]
PATIENTS = ["a", "a", "b", "b", "c", "d"]


class WordTokenizer:
    """Numbers words as they come, small letters only: [CLS] 1, [SEP] 2, padding 0."""

    pad_id = 0

    def __init__(self):
        self.words: dict[str, int] = {}
        self.calls: list[list[str]] = []

    def encode(self, texts: list[str], max_length: int | None = None) -> list[list[int]]:
        self.calls.append(list(texts))
        encoded = []
        for text in texts:
            words = [self.words.setdefault(word, len(self.words) + 3) for word in text.lower().split()]
            encoded.append([1, *words[: None if max_length is None else max_length - 2], 2])
        return encoded

    def decode(self, tokens: torch.Tensor) -> str:
        names = {number: word for word, number in self.words.items()}
        return " ".join(names[token] for token in tokens.tolist()[1:-1])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    arrays = {f"deep{i}": random_array((10 + i, 12), seed=i) for i in range(len(TEXTS))}
    table = write_arrays(folder / "images", arrays, report=TEXTS, group_id=PATIENTS, age=[1, 2, 3, 4, 5, 6])
    return prepare_store(table, folder / "images", folder / "store", reader=read_array, num_workers=0, progress=False)


@pytest.fixture(scope="module")
def reports(store):
    return open_reports(store)


def test_items_are_images_with_a_sentence(store, reports):
    tokenizer = WordTokenizer()
    dataset = ReportDataset(store, reports, tokenizer)
    plain = StoreDataset(store, [0, 1, 2, 4, 5])
    assert len(dataset) == 5 and dataset.rows.tolist() == [0, 1, 2, 4, 5] and dataset.spatial_dims == 2
    assert tokenizer.calls == [reports.texts()], "every different sentence once"
    for code in range(40):
        item, image = dataset[code], plain[code % 5]
        assert torch.equal(item["image"], image["image"]) and item["index"] == image["index"]
        assert item["tokens"].dtype == torch.int64 and item["tokens"][0] == 1 and item["tokens"][-1] == 2
        own = [sentence.lower() for sentence in reports.sentences[item["index"]]]
        assert tokenizer.decode(item["tokens"]) in own
        assert item["study_id"] == [0, 0, 1, 3, 4][code % 5]
    assert len(tokenizer.calls) == 1


def test_equal_sentences_have_one_text_id(store, reports):
    dataset = ReportDataset(store, reports, WordTokenizer(), rows=[2, 0, 5])
    ids: dict[tuple, set] = {}
    for code in range(90):
        ids.setdefault(tuple(dataset[code]["tokens"].tolist()), set()).add(dataset[code]["text_id"])
    assert len(ids) == 9, "one sentence is common to two reports, but for the case of a letter"
    assert all(len(own) == 1 for own in ids.values()) and len(set.union(*ids.values())) == 9


def test_sentences_are_drawn_uniformly_and_independently(store, reports):
    """The frequencies are uniform for each image, and epochs and rows do not know each other."""
    dataset = ReportDataset(store, reports, WordTokenizer(), seed=3)
    draws = 3000
    drawn = np.array([[dataset._text(draw, i)["text_id"] for i in range(5)] for draw in range(draws)])
    for i, row in enumerate(dataset.rows):
        counts = np.unique(drawn[:, i], return_counts=True)[1]
        assert len(counts) == len(reports.sentences[row])
        assert len(counts) == 1 or chisquare(counts).pvalue > 0.01
    same_report = (drawn[:, 0] == drawn[:, 1]).mean()  # two images of one report draw for themselves
    assert abs(same_report - 1 / 3) < 0.03
    again = (drawn[1:, 4] == drawn[:-1, 4]).mean()  # and so do two epochs
    assert abs(again - 1 / 5) < 0.03


def test_the_draw_depends_on_seed_epoch_and_row_only(store, reports):
    dataset = ReportDataset(store, reports, WordTokenizer(), seed=3)
    order = ReportDataset(store, reports, WordTokenizer(), rows=[5, 2, 0], seed=3)
    for draw in range(8):
        assert torch.equal(dataset[draw * 5 + 4]["tokens"], dataset[draw * 5 + 4]["tokens"])
        assert len(dataset[draw * 5 + 4]["tokens"]) == len(order[draw * 3]["tokens"])
    other = ReportDataset(store, reports, WordTokenizer(), seed=4)
    assert any(dataset[5 * k + 4]["text_id"] != other[5 * k + 4]["text_id"] for k in range(20))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(store, reports, workers):
    def batches(num_workers: int, done: int = 0) -> list[dict]:
        dataset = ReportDataset(store, reports, WordTokenizer(), seed=1)
        sampler = StudySampler(dataset.study, 2, seed=1)
        context = {"multiprocessing_context": "fork", "timeout": 60} if num_workers else {}
        loader = DataLoader(
            dataset, 2, sampler=sampler, collate_fn=ReportCollate(0), drop_last=True, num_workers=num_workers, **context
        )
        trained = EpochBatches(loader, None, torch.device("cpu"))  # what the trainer reads, and where it resumes
        trained.epoch = 4
        trained.continue_at(done, None)
        return list(trained)

    alone, shared, resumed = batches(0), batches(workers), batches(workers, done=1)
    assert len(alone) == len(shared) == 2
    for one, other in [*zip(alone, shared, strict=True), (alone[1], resumed[0])]:
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        assert len(set(one["study_id"].tolist())) == 2


def test_collate_pads_with_the_tokenizers_padding(store, reports):
    dataset = ReportDataset(store, reports, WordTokenizer())
    items = dataset.__getitems__([0, 3, 4])
    for given in (items, [dict(item) for item in items]):  # the shared canvas, and plain items
        batch = ReportCollate(pad_id=9)(given)
        lengths = [len(item["tokens"]) for item in items]
        assert batch["tokens"].shape == batch["token_mask"].shape == (3, max(lengths))
        assert batch["tokens"].dtype == torch.int64 and batch["token_mask"].dtype == torch.bool
        assert batch["token_mask"].sum(1).tolist() == lengths
        for tokens, mask, item in zip(batch["tokens"], batch["token_mask"], items, strict=True):
            assert torch.equal(tokens[mask], item["tokens"]) and (tokens[~mask] == 9).all()
            assert mask[: int(mask.sum())].all(), "padding comes last"
        assert batch["text_id"].dtype == batch["study_id"].dtype == torch.int64
        assert batch["study_id"].tolist() == [0, 3, 4]
        assert batch["image"].shape == (3, 1, 15, 12) and batch["extent"].tolist() == [[10, 12], [14, 12], [15, 12]]


def test_long_sentences_are_cut_and_counted(store, reports):
    dataset = ReportDataset(store, reports, WordTokenizer(), max_length=5)
    lengths = [len(dataset[code]["tokens"]) for code in range(200)]
    assert max(lengths) == 5 and dataset.num_cut == 6
    assert ReportDataset(store, reports, WordTokenizer(), max_length=99).num_cut == 0


def test_wrong_arguments(store, reports):
    with pytest.raises(ValueError, match=r"1 of 2 rows have no report \(row 3 first"):
        ReportDataset(store, reports, WordTokenizer(), rows=[3, 4])
    assert len(ReportDataset(store, reports, WordTokenizer(), rows=reports.among([3, 4]))) == 1
    with pytest.raises(ValueError, match="seed is -1"):
        ReportDataset(store, reports, WordTokenizer(), seed=-1)
    with pytest.raises(IndexError, match="0 or more"):
        ReportDataset(store, reports, WordTokenizer())[-1]
    with pytest.raises(ValueError, match="give rows to it"):
        ReportDataset(store, reports, WordTokenizer(), rows=[0], images=StoreDataset(store, [0]))
    with pytest.raises(ValueError, match="nowhere in the column 'report'") as told:
        StoreDataset(store, label_columns={"report": ["normal"]})
    assert "sentence" not in str(told.value), "a column of reports taken for one of classes is not quoted"
    silent = WordTokenizer()
    silent.encode = lambda texts, max_length=None: [[] for _ in texts]
    with pytest.raises(ValueError, match="no token for 11 of 11 sentences"):
        ReportDataset(store, reports, silent)


def test_images_with_labels_and_a_cache(store, reports):
    images = StoreDataset(store, reports.rows, ["age"], cache="memory")
    dataset = ReportDataset(store, reports, WordTokenizer(), images=images)
    assert dataset[7]["age"] == 3 and dataset.labels["age"].tolist() == [1, 2, 3, 5, 6]
    mixture = SourceMixture({"one": dataset, "two": ReportDataset(store, reports, WordTokenizer(), rows=[0])})
    drawn = {mixture[6 * draw + 4]["text_id"] for draw in range(40)}
    assert len(drawn) == 5, "the draw comes through a mixture"


def test_volumes_have_reports_too(tmp_path):
    table = write_volumes(tmp_path / "images", count=3)
    texts = ["Clear lungs on both. No effusion is seen.", "Small nodule in it.", None]
    table = table.append_column("report", [texts]).append_column("group_id", [["a", "b", "c"]])
    store = prepare_volumes(table, tmp_path / "images", tmp_path / "store", num_workers=0, progress=False)
    reports = open_reports(store)
    patches = VolumePatchDataset(store, reports.rows, read_size=(4, 8, 8), seed=2)
    dataset = ReportDataset(store, reports, WordTokenizer(), seed=2, images=patches)
    codes = list(PatchSampler(len(dataset), 16, seed=0))
    batch = ReportCollate(0)(dataset.__getitems__(codes))
    assert batch["image"].shape == (16, 1, 4, 8, 8) and dataset.spatial_dims == 3
    assert torch.equal(batch["image"][0], patches[codes[0]]["image"]), "the place is drawn by the same code"
    first = {tuple(dataset[2 * draw]["tokens"].tolist()) for draw in range(20)}
    assert len(first) == 2
    slices = ReportDataset(store, reports, WordTokenizer(), images=VolumeSliceDataset(store, reports.rows))
    assert slices.spatial_dims == 2 and slices[3]["image"].ndim == 3 and "tokens" in slices[3]
    whole = ReportDataset(store, reports, WordTokenizer())
    assert whole[0]["image"].ndim == 4
