# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning as a method of the trainer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events

from monai_ssl.engines import PretrainTrainer, warmup_cosine
from monai_ssl.evaluation import ClassifierMethod, fine_tuning_views
from monai_ssl.networks import build_encoder


def batch_of(labels, side=32):
    g = torch.Generator().manual_seed(0)
    return {"views": [torch.rand(len(labels), 1, side, side, generator=g)], "label": torch.as_tensor(labels)}


def test_losses_are_the_textbook_ones(tiny_classifier):
    batch = batch_of([0, 2, 1, -1])
    weights = torch.tensor([1.0, 2.0, 0.5])
    method = ClassifierMethod(tiny_classifier, class_weights=weights, label_smoothing=0.1, weight_average=0)
    output = method.eval()(batch)
    logits = tiny_classifier(batch["views"][0])
    expected = F.cross_entropy(logits[:3], batch["label"][:3], weights, label_smoothing=0.1)
    torch.testing.assert_close(output["loss"], expected)
    assert output["accuracy"] == (logits[:3].argmax(1) == batch["label"][:3]).float().mean()
    assert output["loss"].requires_grad and not output["embedding"].requires_grad

    findings = torch.tensor([[1, 0, -1], [0, 0, 1]])
    batch = batch_of(findings)
    method = ClassifierMethod(tiny_classifier, multilabel=True, class_weights=weights).eval()
    z = tiny_classifier(batch["views"][0])
    each = F.binary_cross_entropy_with_logits(z, findings.clamp(min=0).float(), pos_weight=weights, reduction="none")
    torch.testing.assert_close(method(batch)["loss"], each[findings >= 0].mean())
    nothing = method(batch_of(torch.full((2, 3), -1)))
    assert nothing["loss"] == 0 and nothing["accuracy"] == 0


def test_head_warmup_freezes_the_encoder_and_its_statistics(tiny_classifier):
    method = ClassifierMethod(tiny_classifier, head_warmup_steps=1).train()
    before = {key: value.clone() for key, value in method.encoder.encoder_state_dict().items()}
    method(batch_of([0, 1, 2]))["loss"].backward()
    assert {name for name, p in tiny_classifier.named_parameters() if p.grad is not None} == {
        "class_layers.out.weight",
        "class_layers.out.bias",
    }
    assert all(torch.equal(value, before[key]) for key, value in method.encoder.encoder_state_dict().items())
    assert method.encoder.training
    method.after_step(0.5)
    method(batch_of([0, 1, 2]))["loss"].backward()
    assert all(p.grad is not None for p in tiny_classifier.parameters())


def test_trains_with_the_trainer_and_its_average_resumes(tiny_classifier):
    rng = torch.Generator().manual_seed(1)
    images = 0.2 * torch.rand(16, 1, 40, 40, generator=rng)
    labels = torch.arange(16) % 2
    images[labels == 1, :, 10:30, 10:30] += 0.7

    def trainer(method, epochs):
        loader = [{"image": images, "index": torch.arange(16), "label": labels}] * 4
        optimizer = torch.optim.AdamW(method.groups(3e-2, backbone_factor=0.5), weight_decay=0.01)
        views = fine_tuning_views(32, strength=0.3)
        schedule = warmup_cosine(0.1)
        return PretrainTrainer(
            "cpu",
            epochs,
            loader,
            method,
            optimizer,
            views,
            precision="fp32",
            channels_last=False,
            learning_rate_schedule=schedule,
        )

    twin = copy.deepcopy(tiny_classifier)
    method = ClassifierMethod(tiny_classifier, weight_average=0.9)
    engine = trainer(method, 6)
    engine.run()
    assert engine.state.output["loss"] < 0.3 and engine.state.output["accuracy"] == 1.0
    assert method.classifier is method.average.module and method.steps == 24
    with torch.no_grad():
        z = method.classifier(fine_tuning_views(32, strength=0, flip_prob=0)(images)[0])
    assert (z[:, :2].argmax(1) == labels).all()

    first = trainer(ClassifierMethod(twin, weight_average=0.9), 6)
    first.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.terminate() if e.state.epoch == 3 else None)
    first.run()
    second_method = ClassifierMethod(copy.deepcopy(twin), weight_average=0.9)
    second = trainer(second_method, 6)
    second.load_state_dict(first.state_dict())
    second.run()
    for key, value in method.state_dict().items():
        assert torch.equal(value, second_method.state_dict()[key]), key


def test_mistakes_are_named(tiny_classifier):
    with pytest.raises(ValueError, match="label_smoothing must be"):
        ClassifierMethod(tiny_classifier, label_smoothing=1.0)
    with pytest.raises(ValueError, match="not for findings"):
        ClassifierMethod(tiny_classifier, multilabel=True, label_smoothing=0.1)
    with pytest.raises(ValueError, match="no head of one linear layer"):
        ClassifierMethod(build_encoder("resnet18").net)
