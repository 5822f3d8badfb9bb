# SPDX-License-Identifier: Apache-2.0
"""One file for both towers, both projectors and the tokenizer; what is read is what was written, or a plain error."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from text_cases import SENTENCES, draw_tokens, small_tokenizer, small_transformer, write_bert
from weight_cases import FIELDS, THIN, lived_in

from monai_ssl.networks import ImageTextModel, PretrainedTextEncoder, build_encoder
from monai_ssl.weights import (
    WeightsFileError,
    describe_weights,
    load_encoder,
    load_image_text,
    read_manifest,
    save_encoder,
    save_image_text,
)


def make(text_encoder=None, spatial_dims: int = 2, **options) -> ImageTextModel:
    text_encoder = text_encoder or small_transformer(vocab_size=small_tokenizer().vocab_size, pooling="mean")
    image_encoder = build_encoder("resnet10", spatial_dims, **THIN)
    image_encoder.lineage = ({"method": "SimCLR"},)
    return lived_in(ImageTextModel(image_encoder, text_encoder, **({"embedding_dim": 20} | options)))


def saved(model: ImageTextModel, folder):
    path = folder / "image_text.safetensors"
    save_image_text(model, small_tokenizer(), path, FIELDS | {"method": "ConVIRT", "patch_size": [32, 32]})
    return path


def bert(folder) -> PretrainedTextEncoder:
    write_bert(folder, vocab_size=small_tokenizer().vocab_size)
    return PretrainedTextEncoder(folder, frozen_layers=1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", ["native", "bert"])
def test_all_of_it_comes_back(tmp_path, kind, spatial_dims):
    model = make(bert(tmp_path / "bert") if kind == "bert" else None, spatial_dims, image_hidden=9, text_hidden=7)
    other, tokenizer, manifest = load_image_text(saved(model, tmp_path))
    images, (tokens, mask) = torch.rand(4, 1, *[32] * spatial_dims), draw_tokens()
    torch.testing.assert_close(other.embed_images(images), model.embed_images(images))
    torch.testing.assert_close(other.embed_tokens(tokens, mask), model.embed_tokens(tokens, mask))
    assert not other.training
    assert tokenizer.encode(SENTENCES) == small_tokenizer().encode(SENTENCES)
    assert (manifest["method"], manifest["network"]["architecture"]) == ("ConVIRT", "resnet10")
    assert other.image_encoder.lineage == ({"method": "SimCLR"},)
    frozen = [p.requires_grad for p in other.text_encoder.parameters()]
    assert frozen == [p.requires_grad for p in model.text_encoder.parameters()]


def test_no_path_is_in_the_file(tmp_path):
    path = saved(make(bert(tmp_path / "bert")), tmp_path)
    assert str(tmp_path).encode() not in path.read_bytes()


def test_the_head_of_the_image_network_stays_out(tmp_path):
    from monai.networks.nets import resnet10

    from monai_ssl.networks import ImageEncoder

    encoder = ImageEncoder(
        resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, **THIN), "resnet10", {"conv1_t_stride": 1, **THIN}
    )
    model = lived_in(ImageTextModel(encoder, make().text_encoder, embedding_dim=8))
    path = saved(model, tmp_path)
    with safe_open(path, "pt") as file:
        assert not any(".fc." in key for key in file.keys())  # noqa: SIM118
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(load_image_text(path)[0].embed_images(images), model.embed_images(images))


def test_the_encoder_alone_is_a_file_of_its_own(tmp_path):
    model = make()
    path, alone = saved(model, tmp_path), tmp_path / "encoder.safetensors"
    save_encoder(model.image_encoder, alone, FIELDS)
    fresh = build_encoder("resnet10", **THIN)
    load_encoder(fresh, alone)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(fresh.eval()(images), load_image_text(path)[0].image_encoder(images))
    for call in (read_manifest, lambda file: load_encoder(fresh, file)):
        with pytest.raises(WeightsFileError, match=r"load_image_text opens; the image encoder alone is in .*encoder\."):
            call(path)
    with pytest.raises(WeightsFileError, match="holds no model of images and text"):
        load_image_text(alone)


def test_it_can_be_described(tmp_path):
    text = describe_weights(saved(make(), tmp_path))
    assert "pretrained with ConVIRT" in text and "TextTransformer, mean pooling" in text
    assert "resnet10, 2D, 1 channel(s)" in text and "32 x 32" in text and "load_image_text(" in text


def changed(path, tensors=None, **header):
    """Write the file again with another header or other tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(kept if tensors is None else tensors(kept), path, metadata | header)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"schema": 99}, "written by a newer monai_ssl"),
        (lambda d: d | {"text_encoder": {"kind": "LSTM"}}, "unknown text encoder 'LSTM'"),
        (lambda d: {key: value for key, value in d.items() if key != "image_hidden"}, "is damaged: 'image_hidden'"),
        (lambda d: d | {"embedding_dim": 7}, "does not fit its own description"),
        (lambda d: [], "is damaged"),
        (lambda d: d | {"manifest": {}}, "is damaged"),
        (lambda d: d | {"manifest": d["manifest"] | {"colour": 1}}, "no field 'colour'"),
    ],
)
def test_a_description_that_can_not_be_used(tmp_path, change, message):
    path = saved(make(), tmp_path)
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["monai_ssl_image_text"])
    changed(path, monai_ssl_image_text=json.dumps(change(description)))
    with pytest.raises(WeightsFileError, match=message):
        load_image_text(path)


def test_files_that_are_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image_text(tmp_path / "missing.safetensors")
    path = saved(make(), tmp_path)
    changed(path, lambda kept: dict(list(kept.items())[1:]))
    with pytest.raises(WeightsFileError, match="does not fit its own description"):
        load_image_text(path)
    changed(saved(make(), tmp_path), monai_ssl_tokenizer="{}")
    with pytest.raises(WeightsFileError, match="no description of a tokenizer"):
        load_image_text(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsFileError, match="truncated"):
        load_image_text(path)


def test_a_tokenizer_of_another_encoder_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="do not belong together"):
        saved(make(small_transformer(vocab_size=9000)), tmp_path)
    assert not list(tmp_path.iterdir())
