# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from toy_image_text import ToyImageText, ToyTokenizer

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.evaluation import (
    Preprocessing,
    embed_files,
    embed_images,
    embed_text_groups,
    embed_texts,
    untrained_copy,
)


def test_texts_are_padded_without_a_trace_and_computed_once():
    model, tokenizer = ToyImageText(), ToyTokenizer()
    model.train()
    texts = ["a spot left", "the chest is normal", "left", "a spot left"]
    calls = []
    tokenizer.encode = lambda texts, max_length: calls.append(texts) or ToyTokenizer().encode(texts, max_length)
    vectors = embed_texts(model, tokenizer, texts, batch_size=2)
    assert calls == [["a spot left", "the chest is normal", "left"]] and model.training
    for text, vector in zip(texts, vectors, strict=True):
        torch.testing.assert_close(vector, embed_texts(model, tokenizer, [text])[0])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert vectors.argmax(dim=1).tolist() == [1, 0, 1, 1]


def test_a_group_is_the_mean_of_its_unit_vectors():
    model, tokenizer = ToyImageText(), ToyTokenizer()
    one, two = embed_texts(model, tokenizer, ["left left left", "right"])
    vectors = embed_text_groups(model, tokenizer, [["left left left", "right"], ["right"]])
    torch.testing.assert_close(vectors, torch.stack([(one + two) / (one + two).norm(), two]))
    with pytest.raises(ValueError, match="1 of 2 groups have no sentence, for instance number 1"):
        embed_text_groups(model, tokenizer, [["left"], []])
    with pytest.raises(ValueError, match="1 of 2 texts are empty"):
        embed_texts(model, tokenizer, ["left", " "])


def test_files_and_store_give_the_same_vectors(toy_store, tmp_path):
    model, view = ToyImageText(), Preprocessing((48, 48), standardize_mode="fixed", mean=0.0, std=1.0).view()
    loader = DataLoader(StoreDataset(toy_store), 16, collate_fn=PadCollate())
    stored, rows = embed_images(model, loader, view)
    root = toy_store.folder.parent.parent / "images"
    files = [root / path for path in toy_store.table["path"].to_pylist()]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    vectors, places, refused = embed_files(model, [tmp_path / "broken.png", *files], view, batch_size=7)
    assert rows.tolist() == list(range(60)) and places.tolist() == list(range(1, 61))
    torch.testing.assert_close(vectors, stored)
    assert [path for path, _ in refused] == [str(tmp_path / "broken.png")] and refused[0][1]
    with pytest.raises(ValueError, match=r"none of 1 files can be read; .*broken\.png: "):
        embed_files(model, [tmp_path / "broken.png"], view)


def test_images_shrink_as_prepare_shrinks_them(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8)).save(tmp_path / "a.png")
    seen = []

    class Model(ToyImageText):
        def embed_images(self, x):
            seen.append(tuple(x.shape))
            return super().embed_images(x)

    embed_files(Model(), [tmp_path / "a.png"], max_side=30)
    assert seen == [(1, 1, 20, 30)]


def test_an_untrained_copy_is_another_network_and_always_the_same():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model.token = torch.nn.Parameter(torch.full((1, 4), 7.0))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].running_mean.fill_(3.0)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    fresh, again, third = untrained_copy(model, 0), untrained_copy(model, 0), untrained_copy(model, 1)
    assert torch.equal(before, torch.random.get_rng_state()) and (model[0].weight == 1).all()
    assert torch.equal(fresh[0].weight, again[0].weight) and not torch.equal(fresh[0].weight, third[0].weight)
    assert (fresh[1].running_mean == 0).all() and fresh.token.abs().max() < 0.1
