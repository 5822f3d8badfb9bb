# SPDX-License-Identifier: Apache-2.0
"""The contrast of images and texts: its formula, its known values, what is excluded and what is shared."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from loss_references import slow_image_text
from torch.nn.functional import cross_entropy, normalize

from monai_ssl.losses import ImageTextContrastLoss, image_text_contrast

STUDY, TEXT = torch.tensor([7, 3, 7, -1, -1, 3]), torch.tensor([1, 2, 1, 1, -1, -1])


def draw(batch=6, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize(
    ("temperature", "weight", "study", "text"),
    list(itertools.product((0.05, 0.1, 1.0), (0.0, 0.5, 0.75, 1.0), (None, STUDY), (None, TEXT))),
)
def test_equals_the_literal_formula(temperature, weight, study, text):
    v, u = draw()
    loss = image_text_contrast(v, u, temperature, weight, study_id=study, text_id=text)
    assert loss.item() == pytest.approx(
        slow_image_text(v.numpy(), u.numpy(), temperature, weight, study, text), rel=1e-9
    )


def test_the_gradient_is_that_of_two_cross_entropies():
    v, u = (x.requires_grad_() for x in draw())
    logits = normalize(v, dim=1) @ normalize(u, dim=1).T / 0.1
    here = torch.arange(6)
    expected = torch.autograd.grad(0.75 * cross_entropy(logits, here) + 0.25 * cross_entropy(logits.T, here), (v, u))
    for ours, theirs in zip(torch.autograd.grad(image_text_contrast(v, u), (v, u)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_random_embeddings_start_where_theory_says():
    values = [image_text_contrast(*draw(32, 512, seed)).item() for seed in range(10)]
    expected = math.log(32) + 1 / (2 * 512 * 0.1**2)  # log N + 1 / (2 d t^2)
    assert expected == pytest.approx(3.56, abs=0.005)
    assert sum(values) / len(values) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("batch", [2, 32])
def test_equal_embeddings_give_log_of_the_number_of_pairs(batch):
    x = torch.ones(batch, 512, dtype=torch.float64)
    assert image_text_contrast(x, x).item() == pytest.approx(math.log(batch), rel=1e-12)


def test_perfect_pairs_of_random_rows():
    values = [image_text_contrast(x, x).item() for x in (draw(32, 512, seed)[0] for seed in range(10))]
    assert sum(values) / len(values) == pytest.approx(0.0017, abs=0.0002)


def test_the_least_loss_is_that_of_a_simplex():
    count = 32
    simplex = torch.eye(count, dtype=torch.float64) - 1 / count  # cosines of -1 / (N - 1)
    bound = math.log(1 + (count - 1) * math.exp(-(1 + 1 / (count - 1)) / 0.1))
    assert bound == pytest.approx(0.0010, abs=5e-5)
    assert image_text_contrast(simplex, simplex).item() == pytest.approx(bound, rel=1e-9)


def test_swapping_modalities_swaps_the_weights():
    v, u = draw()
    options = {"study_id": STUDY, "text_id": TEXT}
    for weight in (0.0, 0.3, 0.75):
        torch.testing.assert_close(
            image_text_contrast(v, u, 0.1, weight, **options), image_text_contrast(u, v, 0.1, 1 - weight, **options)
        )
    torch.testing.assert_close(image_text_contrast(v, u, 0.1, 0.5), image_text_contrast(u, v, 0.1, 0.5))
    assert not torch.isclose(image_text_contrast(v, u), image_text_contrast(u, v))


def test_only_directions_and_who_is_paired_with_whom_count():
    v, u = draw(32, 512)
    u = u + v  # pairs that belong together
    loss, order = image_text_contrast(v, u), torch.randperm(32, generator=torch.Generator().manual_seed(1))
    length = torch.rand(32, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(image_text_contrast(v * length, u / length), loss)
    torch.testing.assert_close(image_text_contrast(v[order], u[order]), loss)
    assert image_text_contrast(v, u[order]) > loss + 1
    unit = normalize(v, dim=1), normalize(u, dim=1)
    torch.testing.assert_close(image_text_contrast(*unit, normalized=True), loss)
    assert not torch.isclose(image_text_contrast(v, u, normalized=True), loss)


@pytest.mark.parametrize(("study", "text"), list(itertools.product((None, STUDY), (None, TEXT))))
def test_gradients(study, text):
    v, u = (x.requires_grad_() for x in draw())
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: image_text_contrast(*x, study_id=study, text_id=text), (v, u, temperature)
    )


def test_pairs_of_one_study_are_no_negatives():
    v, u = draw(4)
    loss = image_text_contrast(v, u)
    for nobody in (torch.arange(4), torch.full((4,), -1)):
        torch.testing.assert_close(image_text_contrast(v, u, study_id=nobody), loss)
    study = torch.tensor([0, 1, 2, 2])
    assert image_text_contrast(v, u, study_id=study) < loss
    u_last = u.clone().requires_grad_()
    image_text_contrast(v[2:], u_last[2:], study_id=study[2:]).backward()
    assert (u_last.grad == 0).all(), "the two of one study alone have nothing to be told from"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_of_one_study_has_no_loss_and_no_gradient(dtype):
    v, u = (x.requires_grad_() for x in draw(dtype=dtype))
    loss = image_text_contrast(v, u, 0.01, study_id=torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert (v.grad == 0).all() and (u.grad == 0).all()


def test_equal_texts_share_the_target():
    """Nothing tells whose an equal text is: the floor is the logarithm of their number."""
    x = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    text = torch.tensor([4, 4, 5, 6])
    floor = math.log(2) / 2  # half of the pairs have two right answers
    assert image_text_contrast(x, x, 0.1, text_id=text).item() == pytest.approx(floor, abs=1e-3)
    v, u = draw(4)
    u[1] = u[0]  # equal vectors of equal texts: then the sum over the pairs is the same as without
    torch.testing.assert_close(image_text_contrast(v, u, text_id=text), image_text_contrast(v, u))
    u[1] = u[0] + 0.1 * u[2]  # as dropout makes them
    assert not torch.isclose(image_text_contrast(v, u, text_id=text), image_text_contrast(v, u))


def test_equal_texts_of_one_study_are_positives_still():
    v, u = draw(4)
    ids = torch.tensor([0, 0, 1, 2])
    torch.testing.assert_close(
        image_text_contrast(v, u, study_id=ids, text_id=ids), image_text_contrast(v, u, text_id=ids)
    )


def test_a_learned_temperature_is_clips():
    loss = ImageTextContrastLoss(0.07, learn_temperature=True)
    assert [(name, p.ndim) for name, p in loss.named_parameters()] == [("log_scale", 0)]
    assert loss.temperature.item() == pytest.approx(0.07)
    v, u = draw(dtype=torch.float32)
    loss(v, u).backward()
    assert loss.log_scale.grad.item() != 0
    torch.testing.assert_close(loss(v, u), image_text_contrast(v, u, 0.07))
    with torch.no_grad():
        loss.log_scale.add_(10)
    loss(v, u).backward()
    assert loss.temperature.item() == pytest.approx(0.01)
    assert loss.log_scale.item() == pytest.approx(math.log(100)), "held, not only cut where it is used"
    other = ImageTextContrastLoss(0.5, learn_temperature=True)
    other.load_state_dict(loss.state_dict())
    assert other(v, u) == loss(v, u)
    with pytest.raises(ValueError, match="starts at 1 / 100 or above"):
        ImageTextContrastLoss(0.005, learn_temperature=True)


def test_a_learned_temperature_falls_for_perfect_pairs():
    loss = ImageTextContrastLoss(0.5, learn_temperature=True)
    x = draw(16, 64, dtype=torch.float32)[0]
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(x, x).backward()
        optimizer.step()
    assert 0.01 <= loss.temperature.item() < 0.1


def test_refuses_what_cannot_be():
    v, u = draw()
    with pytest.raises(ValueError, match="at least two pairs"):
        image_text_contrast(v[:1], u[:1])
    for bad in (u[:3], u[:, :3]):
        with pytest.raises(ValueError, match="embeddings of one shape"):
            image_text_contrast(v, bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        image_text_contrast(v, u, 0)
    for make in (ImageTextContrastLoss, lambda *args: image_text_contrast(v, u, *args)):
        with pytest.raises(ValueError, match=r"image_to_text_weight must be in \[0, 1\], got 1.5"):
            make(0.1, 1.5)
    with pytest.raises(ValueError, match="study_id must hold 6 integers"):
        image_text_contrast(v, u, study_id=STUDY[:2])
    with pytest.raises(ValueError, match="text_id must hold 6 integers"):
        image_text_contrast(v, u, text_id=TEXT.float())


def test_module_is_the_function():
    v, u = draw()
    loss = ImageTextContrastLoss(0.2, 0.6)
    torch.testing.assert_close(
        loss(v, u, STUDY, TEXT), image_text_contrast(v, u, 0.2, 0.6, study_id=STUDY, text_id=TEXT)
    )
    assert loss.distribution == "gathers_negatives"
    assert loss.state_dict() == {}
