# SPDX-License-Identifier: Apache-2.0
"""ConVIRT: the paper's equations, both spatial dimensions, its options, learning and resuming."""

from __future__ import annotations

import math

import pytest
import torch
from overfitting import overfit
from text_cases import draw_tokens, small_transformer
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from toy_training import ToyImages, toy_trainer

from monai_ssl.engines import build_optimizer
from monai_ssl.losses import image_text_contrast, nt_xent
from monai_ssl.methods import ConVIRT
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import ImageTextModel, build_encoder


class FlatEncoder(nn.Module):
    """The smallest encoder with a nonlinearity, for views of 8 x 8 pixels."""

    num_features, spatial_dims, in_channels = 32, 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def make(
    encoder: nn.Module | None = None, frozen_layers: int | None = None, dropout: float = 0.0, **options
) -> ConVIRT:
    torch.manual_seed(0)
    text = small_transformer(num_layers=2, dropout=dropout, frozen_layers=frozen_layers)
    return ConVIRT(ImageTextModel(encoder or FlatEncoder(), text, embedding_dim=24), **options)


def make_batch(size: int = 6, side: int = 8, views: int = 1, spatial_dims: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    tokens, mask = draw_tokens(size)
    shape = (size, 1) + (side,) * spatial_dims
    images = [torch.rand(shape, generator=generator) for _ in range(views)]
    return {"image": images[0], "views": images, "tokens": tokens, "token_mask": mask}


def test_the_equations_of_the_paper():
    method, batch = make(), make_batch()
    out = method(batch)
    v = normalize(method.model.image_projector(method.encoder(batch["views"][0])), dim=1)
    u = normalize(method.model.text_projector(method.model.text_encoder(batch["tokens"], batch["token_mask"])), dim=1)
    scores, here = v @ u.T, torch.arange(6)
    expected = 0.75 * cross_entropy(scores / 0.1, here) + 0.25 * cross_entropy(scores.T / 0.1, here)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert out["image_to_text_accuracy"] == (scores.argmax(1) == here).float().mean()
    assert out["text_to_image_accuracy"] == (scores.argmax(0) == here).float().mean()
    assert out["positive_similarity"].item() == pytest.approx(scores.diagonal().mean().item(), rel=1e-5)
    assert out["temperature"].item() == pytest.approx(0.1)
    torch.testing.assert_close(out["embedding"], v.detach())
    assert method.encoder is method.model.image_encoder
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")


def test_several_views_are_averaged():
    method, batch = make(), make_batch(views=3)
    single = [method(batch | {"views": [view]})["loss"].item() for view in batch["views"]]
    assert method(batch)["loss"].item() == pytest.approx(sum(single) / 3, rel=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("frozen", [None, 1])
def test_runs_in_2d_and_3d_with_gradients_where_they_belong(spatial_dims, frozen):
    method = make(build_encoder("resnet18", spatial_dims), frozen_layers=frozen)
    method.train()
    method(make_batch(4, 32 if spatial_dims == 2 else 16, spatial_dims=spatial_dims))["loss"].backward()
    trained = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
    beginnings = ("token_embedding", "position_embedding", "embedding_norm", "layers.0.") if frozen else ()
    learning = 0
    for name, parameter in method.named_parameters():
        expected = not name.removeprefix("model.text_encoder.").startswith(beginnings) if frozen else True
        assert (parameter.grad is not None) is expected, name
        assert (id(parameter) in trained) is expected, name
        learning += expected
    assert learning == sum(len(group["params"]) for group in method.parameter_groups(0.1)), "each of them once"
    assert method.model.text_encoder.layers[0].training is (frozen is None)
    assert method.model.text_encoder.layers[1].training


def test_weight_decay_spares_a_learned_temperature():
    method = make(learn_temperature=True, temperature=0.07)
    decayed, spared = method.parameter_groups(0.3)
    assert any(p is method.contrast.log_scale for p in spared["params"]) and spared["weight_decay"] == 0
    assert not any(p is method.contrast.log_scale for p in decayed["params"])
    optimizer = build_optimizer(method, "adamw", 0.1, 0.3)
    out = method(make_batch())
    out["loss"].backward()
    optimizer.step()
    assert out["temperature"].item() == pytest.approx(0.07)
    assert method(make_batch())["temperature"].item() != pytest.approx(0.07)


def test_studies_and_equal_sentences_reach_the_loss():
    batch = make_batch() | {"study_id": torch.tensor([0, 1, 0, 2, 3, 3]), "text_id": torch.tensor([5, 6, 7, 6, 8, 9])}
    method = make()
    v, u = method.model(batch["views"][0], batch["tokens"], batch["token_mask"])
    for options, ids in (
        ({"exclude_own_study": True}, {"study_id": batch["study_id"]}),
        ({"soft_targets": True}, {"text_id": batch["text_id"]}),
        ({"exclude_own_study": True, "soft_targets": True}, {n: batch[n] for n in ("study_id", "text_id")}),
    ):
        loss = make(**options)(batch)["loss"]
        torch.testing.assert_close(loss, image_text_contrast(v, u, **ids), rtol=1e-5, atol=1e-6)
        assert not torch.isclose(loss, method(batch)["loss"]), "without the options they do not count"


def test_the_image_term_is_simclrs_with_a_projector_of_its_own():
    method, batch = make(image_weight=0.5, image_temperature=0.2), make_batch(views=2)
    out = method(batch)
    first, second = (method.image_head(method.encoder(view)) for view in batch["views"])
    assert out["image_loss"].item() == pytest.approx(nt_xent(first, second, 0.2).item(), rel=1e-5)
    torch.testing.assert_close(out["loss"], out["image_text_loss"] + 0.5 * out["image_loss"])
    assert {id(p) for p in method.image_head.parameters()}.isdisjoint({id(p) for p in method.model.parameters()})
    with pytest.raises(ValueError, match="ConVIRT takes 2 or more views of each image, got 1"):
        method(make_batch(views=1))


@pytest.mark.parametrize("size", [2, 32])
def test_the_first_loss_is_about_that_of_chance(size):
    method = make()
    loss = method(make_batch(size))["loss"].item()
    assert math.log(size) - 0.1 < loss < math.log(size) + 3  # untrained texts are much alike, images too


def train(method: ConVIRT, steps: int, start: int = 0, state: dict | None = None) -> tuple[list[float], dict]:
    """Learn 32 pairs by heart, with noise on the images as the only variation."""
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=3e-3)
    tokens, mask = draw_tokens(32)
    words = {"tokens": tokens, "token_mask": mask}
    return overfit(method, optimizer, images, steps, noise=0.05, total_steps=100, start=start, state=state, extra=words)


@pytest.mark.parametrize("options", [{}, {"image_weight": 1.0, "learn_temperature": True}], ids=["paper", "options"])
def test_overfits_a_few_pairs_without_collapse_and_resumes_exactly(options):
    method = make(**options)
    losses, _ = train(method, 60)
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    tokens, mask = draw_tokens(32)
    with torch.no_grad():
        v, u = method.model(images, tokens, mask)
        assert ((v @ u.T).argmax(1) == torch.arange(32)).float().mean() > 0.9
        assert effective_rank(v) > 8 and effective_rank(u) > 8
        unseen = method.encoder(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)))
    assert effective_rank(unseen) > 4
    _, state = train(make(**options), 7)
    assert train(make(**options), 5, start=7, state=state)[0] == losses[7:12]


class Pairs(ToyImages):
    """Toy images, each with its sentence."""

    def __getitem__(self, i: int) -> dict:
        tokens, mask = draw_tokens(len(self))
        return super().__getitem__(i) | {"tokens": tokens[i], "token_mask": mask[i]}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_the_trainer_hands_the_sentences_on(precision):
    trainer = toy_trainer(dataset=Pairs(), method=lambda: make(frozen_layers=1), max_epochs=1, precision=precision)
    trainer.run()
    output = trainer.state.output
    assert math.isfinite(output["loss"]) and 0 <= output["image_to_text_accuracy"] <= 1
    assert output["embedding"].dtype == torch.float32


def test_the_trainer_refuses_a_loader_without_sentences():
    with pytest.raises(ValueError, match=r"ConVIRT needs batch\['tokens'\]; the batch has image, index"):
        toy_trainer(method=make, max_epochs=1).run()


def test_evaluation_sees_the_same_each_time():
    method, batch = make(dropout=0.5), make_batch()
    assert method(batch)["loss"] != method(batch)["loss"]
    method.eval()
    assert method(batch)["loss"] == method(batch)["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(5, 9, dtype=torch.int64)}, r"must hold integers \(6, T\), got torch.int64 \(5, 9\)"),
        ({"tokens": torch.zeros(6, 9)}, "must hold integers"),
        ({"tokens": torch.full((6, 9), 30)}, "from 30 to 30, and the text encoder knows 0 to 29"),
        ({"token_mask": torch.ones(6, 8, dtype=torch.bool)}, r"token_mask'\] must be bool \(6, 9\)"),
        ({"token_mask": torch.ones(6, 9)}, "must be bool"),
        ({"token_mask": torch.arange(6)[:, None].expand(6, 9) > 0}, "a sentence without a token"),
    ],
)
def test_sentences_that_can_not_be_read(change, message):
    with pytest.raises(ValueError, match=message):
        make().check_batch(make_batch() | change)
    make().check_batch(make_batch())


def test_numbers_that_are_asked_for_must_be_there():
    for option, name in (("exclude_own_study", "study_id"), ("soft_targets", "text_id")):
        for call in (make(**{option: True}).check_batch, make(**{option: True})):
            with pytest.raises(ValueError, match=rf"needs batch\['{name}'\]"):
                call(make_batch())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": 0}, "temperature"),
        ({"image_to_text_weight": 2}, "image_to_text_weight"),
        ({"image_weight": -1}, "image_weight"),
        ({"image_temperature": 0}, "image_temperature"),
    ],
)
def test_wrong_settings_name_themselves(options, word):
    with pytest.raises(ValueError, match=word):
        make(**options)
