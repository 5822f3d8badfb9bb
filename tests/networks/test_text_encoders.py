# SPDX-License-Identifier: Apache-2.0
"""Text encoders: padding does not count, frozen layers stay, and a BERT of transformers is read without unpickling."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from text_cases import draw_tokens, small_transformer, write_bert
from torch import nn

from monai_ssl.networks import (
    ImageTextModel,
    PretrainedTextEncoder,
    SentenceEncoder,
    TextTransformer,
    build_encoder,
    pool_tokens,
)

POOLINGS = ("max", "mean", "cls")
KINDS = ("native", "Bert", "Roberta", "DistilBert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("berts")
    return {kind: write_bert(root / kind, kind) for kind in KINDS[1:]}


def make(kind: str, folders, **options) -> SentenceEncoder:
    if kind == "native":
        return small_transformer(**options)
    return PretrainedTextEncoder(folders[kind], **({"frozen_layers": None} | options))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_its_formula(pooling):
    features, mask = torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    for row, length in zip(range(3), (5, 2, 1), strict=True):
        real = features[row, :length]
        expected = {"max": real.amax(0), "mean": real.mean(0), "cls": real[0]}[pooling]
        torch.testing.assert_close(pool_tokens(features, mask, pooling)[row], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_a_row_of_padding_gives_zero_and_no_gradient(pooling, dtype):
    features = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    pooled = pool_tokens(features, torch.tensor([[True, True, False], [False] * 3]), pooling)
    pooled.sum().backward()
    assert pooled.dtype == dtype
    assert (pooled[1] == 0).all() and (features.grad[1] == 0).all() and (features.grad[0, 2] == 0).all()
    assert features.grad.isfinite().all() and (features.grad[0, :2] != 0).any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_the_vector_of_a_sentence(kind, pooling, folders):
    encoder = make(kind, folders, pooling=pooling).eval()
    tokens, mask = draw_tokens()
    vectors = encoder(tokens, mask)
    assert vectors.shape == (4, encoder.num_features) == (4, 16)
    longer = nn.functional.pad(tokens, (0, 3))
    torch.testing.assert_close(encoder(longer, nn.functional.pad(mask, (0, 3))), vectors, rtol=1e-4, atol=1e-5)
    for row in range(4):
        length = int(mask[row].sum())
        alone = encoder(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], vectors[row], rtol=1e-4, atol=1e-5)
    if kind != "Roberta":  # which counts its positions from the padding's number
        torch.testing.assert_close(encoder(torch.where(mask, tokens, 7), mask), vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_their_order_count(kind, folders):
    encoder = make(kind, folders, pooling="mean").eval()
    tokens = torch.tensor([[2, 5, 9, 3], [2, 9, 5, 3], [2, 5, 8, 3]])
    vectors = encoder(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert (vectors[0] - vectors[1]).abs().max() > 1e-4
    assert (vectors[0] - vectors[2]).abs().max() > 1e-4


@pytest.mark.parametrize(("frozen", "expected"), [(None, []), (0, ["embedding"]), (2, ["embedding", "0", "1"])])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_have_no_gradient_no_dropout_and_no_place_in_the_optimiser(kind, frozen, expected, folders):
    encoder = make(kind, folders, frozen_layers=frozen)
    for mode in (True, False, True):
        encoder.train(mode)
    encoder(*draw_tokens()).sum().backward()
    layers = (
        encoder.layers
        if kind == "native"
        else next(
            part
            for name, part in encoder.net.named_modules()
            if name.endswith("layer") and isinstance(part, nn.ModuleList)
        )
    )
    embeddings = [encoder.token_embedding, encoder.position_embedding] if kind == "native" else [encoder.net.embeddings]
    parts = {"embedding": embeddings} | {str(i): [layer] for i, layer in enumerate(layers)}
    for name, modules in parts.items():
        for module in modules:
            assert module.training is (name not in expected), name
            for parameter in module.parameters():
                assert parameter.requires_grad is (name not in expected), name
                assert (parameter.grad is None) is (name in expected), name
    total, trained = (sum(p.numel() for p in encoder.parameters() if p.requires_grad or all_) for all_ in (True, False))
    assert (trained < total) is bool(expected)
    copied = copy.deepcopy(encoder)
    copied.train()
    assert sum(module.training for module in copied.modules()) == sum(module.training for module in encoder.modules())
    assert not any(a is b for a in copied.modules() for b in encoder.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_that_learns_gets_a_gradient(kind, folders):
    encoder = make(kind, folders, pooling="mean")
    tokens = torch.arange(30)[:, None].repeat(1, encoder.max_length).clamp(min=4)
    encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).square().sum().backward()
    assert not [name for name, parameter in encoder.named_parameters() if parameter.grad is None]


def test_positions_of_roberta_begin_after_those_of_the_padding(folders):
    encoder = make("Roberta", folders)
    assert encoder.max_length == 15
    tokens = torch.full((1, 15), 5)
    assert encoder(tokens, tokens > 0).isfinite().all()


@pytest.mark.parametrize("kind", ["native", "Bert"])
def test_a_description_builds_the_same_network(kind, folders):
    encoder = make(kind, folders, frozen_layers=1, pooling="mean").eval()
    description = encoder.description()
    assert str(folders["Bert"].parent) not in str(description), "a path may name a person"
    other = SentenceEncoder.from_description(description).eval()
    other.load_state_dict(encoder.state_dict())
    assert (other.frozen_layers, other.pooling) == (1, "mean")
    torch.testing.assert_close(other(*draw_tokens()), encoder(*draw_tokens()))
    with pytest.raises(ValueError, match="unknown text encoder 'LSTM'"):
        SentenceEncoder.from_description({"kind": "LSTM"})
    with pytest.raises(ValueError, match="can't be built as described"):
        SentenceEncoder.from_description(description | {"colour": 3})


def test_a_saved_bert_keeps_its_weights(folders):
    import transformers

    theirs = transformers.BertModel.from_pretrained(folders["Bert"], use_safetensors=True).eval()
    tokens, mask = draw_tokens()
    expected = theirs(tokens, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(make("Bert", folders).eval().token_features(tokens, mask), expected)


def test_pickled_weights_are_not_read(tmp_path, folders):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((folders["Bert"] / "config.json").read_bytes())

    class Trap:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"embeddings.word_embeddings.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights in safetensors format"):
        PretrainedTextEncoder(folder)


def test_folders_and_names_that_are_no_bert(tmp_path, folders, monkeypatch):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        PretrainedTextEncoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        PretrainedTextEncoder(tmp_path / "missing")
    with pytest.raises(ValueError, match="frozen_layers must be None or from 0 to the 3 layers, got 6"):
        PretrainedTextEncoder(folders["Bert"])
    other = write_bert(tmp_path / "gpt", "Bert")
    text = (other / "config.json").read_text().replace('"bert"', '"no_such_model"')
    (other / "config.json").write_text(text)
    with pytest.raises(ValueError, match="transformers can't open"):
        PretrainedTextEncoder(other)
    with pytest.raises(ValueError, match="GPT2Model is not built as BERT is"):
        PretrainedTextEncoder(config={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 9})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"monai-ssl\[text\]"):
        PretrainedTextEncoder(folders["Bert"])


def test_sentences_that_do_not_fit():
    encoder = small_transformer()
    tokens, mask = draw_tokens(length=13)
    with pytest.raises(ValueError, match="up to 13 tokens, the text encoder takes 12"):
        encoder(tokens, mask)
    with pytest.raises(ValueError, match="must have one shape"):
        encoder(tokens[:, :5], mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "last"}, "pooling must be one of"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"dropout": 1.0}, "dropout in"),
        ({"frozen_layers": 4}, "from 0 to the 3 layers"),
    ],
)
def test_wrong_settings_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        small_transformer(**options)


def test_the_documented_size_of_the_default():
    encoder = TextTransformer(vocab_size=4096)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(4.2e6, rel=0.02)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_both_towers_meet_in_one_space(spatial_dims):
    encoder = build_encoder("resnet18", spatial_dims)
    model = ImageTextModel(encoder, small_transformer()).eval()
    tokens, mask = draw_tokens()
    images, sentences = model(torch.rand(4, 1, *[32] * spatial_dims), tokens, mask)
    for vectors in (images, sentences):
        assert (vectors.shape, vectors.dtype) == ((4, 512), torch.float32)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed_tokens(tokens, mask).dtype == torch.float32


def test_projectors_have_one_hidden_layer_each_and_share_nothing():
    model = ImageTextModel(build_encoder("resnet18"), small_transformer())
    for projector, width in ((model.image_projector, 512), (model.text_projector, 16)):
        assert [type(layer) for layer in projector.layers] == [nn.Linear, nn.ReLU, nn.Linear]
        assert [tuple(layer.weight.shape) for layer in projector.layers[::2]] == [(width, width), (512, width)]
    wide = ImageTextModel(build_encoder("resnet18"), small_transformer(), 8, image_hidden=20, text_hidden=10)
    assert (wide.image_projector.layers[0].out_features, wide.text_projector.layers[0].out_features) == (20, 10)
    shared = {id(p) for p in model.image_projector.parameters()} & {id(p) for p in model.text_projector.parameters()}
    assert not shared
