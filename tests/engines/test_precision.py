# SPDX-License-Identifier: Apache-2.0
"""The automatic choice takes what is fast and right, and nothing that is fast and wrong."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from toy_training import ToyImages, ToyMethod, toy_trainer, toy_views

from monai_ssl.engines import choose_precision, precision


def a_batch(spatial_dims: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    images = ToyImages(12, 8, spatial_dims).images
    return {"views": toy_views(images, generator), "generator": generator, "index": torch.arange(12)}


@pytest.fixture
def fast_bf16(monkeypatch):
    """Make bf16 look fast, whatever this machine does."""
    step = precision._Bench.step

    def timed(bench, candidate):
        _, result = step(bench, candidate)
        return (0.01 if candidate.precision == "bf16" else 0.1) + 0.001 * candidate.channels_last, result

    monkeypatch.setattr(precision._Bench, "step", timed)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_fast_and_right_is_chosen(fast_bf16, spatial_dims):
    torch.manual_seed(0)
    choice = choose_precision(ToyMethod(spatial_dims), a_batch(spatial_dims))
    assert (choice.precision, choice.channels_last) == ("bf16", False), choice.table
    assert "chosen" in choice.table.splitlines()[3]
    assert len(choice.table.splitlines()) == 5


class WrongGradient(torch.autograd.Function):
    """Right value, wrong gradient, in bf16 only: what a broken kernel looks like."""

    @staticmethod
    def forward(ctx, x):
        ctx.wrong = x.dtype == torch.bfloat16
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient if ctx.wrong else gradient


def test_a_wrong_gradient_outside_the_layers_is_caught(fast_bf16):
    class Broken(ToyMethod):
        def forward(self, batch):
            views = batch["views"]
            features = WrongGradient.apply(self.encoder(views[0]))
            return {"loss": self.head(features).float().pow(2).mean(), "embedding": features.detach()}

    choice = choose_precision(Broken(), a_batch())
    assert choice.precision == "fp32"
    assert "the gradient has cosine -" in choice.table


def test_a_wrong_weight_gradient_of_one_layer_is_caught(fast_bf16, monkeypatch):
    """A third of the images are lost in the weight gradient: too little for the whole step's direction to tell."""
    plain = nn.Conv2d._conv_forward

    def broken(self, x, weight, bias):
        if torch.is_autocast_enabled("cpu") and self.in_channels == 8:
            kept = plain(self, x[4:], weight, bias)
            return torch.cat([plain(self, x[:4], weight.detach(), bias), kept])
        return plain(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", broken)
    choice = choose_precision(ToyMethod(), a_batch())
    assert choice.precision == "fp32"
    assert "the weight gradient of Conv2d 8x8x3x3" in choice.table


def test_a_layer_that_is_wrong_in_some_calls_only_is_caught(fast_bf16, monkeypatch):
    plain, calls = nn.Conv2d._conv_forward, []

    def broken(self, x, weight, bias):
        out = plain(self, x, weight, bias)
        if torch.is_autocast_enabled("cpu") and self.in_channels == 1:
            calls.append(0)
            return out * (torch.inf if len(calls) % 3 == 0 else 1)
        return out

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", broken)
    choice = choose_precision(ToyMethod(), a_batch(), channels_last=[False])
    assert choice.precision == "fp32", choice.table


def test_a_kernel_that_does_not_exist_is_a_note_in_the_table(fast_bf16, monkeypatch):
    plain = nn.Conv2d._conv_forward

    def missing(self, x, weight, bias):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive\nC++ frames follow")
        return plain(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", missing)
    choice = choose_precision(ToyMethod(), a_batch())
    assert choice.precision == "fp32"
    assert choice.table.count("could not create a primitive") == 2
    assert "C++" not in choice.table


def test_a_kernel_that_is_broken_on_some_processors_is_never_chosen(fast_bf16):
    """torch 2.13 with AVX-512: conv3d on 2x2x2 maps in bf16 gives garbage as weight gradient, in some calls."""

    class Small(ToyMethod):
        def __init__(self):
            super().__init__(spatial_dims=3)
            self.encoder.net = nn.Sequential(nn.Conv3d(1, 64, 4, stride=4), nn.Conv3d(64, 64, 3, padding=1))
            self.head = nn.Linear(64, 4)
            self.teacher = nn.Sequential(self.encoder, self.head)

    torch.manual_seed(0)
    method, batch = Small(), a_batch(3)
    choice = choose_precision(method, batch, channels_last=[False], tries=10)
    layer = method.encoder.net[1]
    x, gradients = method.encoder.net[0](batch["views"][0]).detach(), {}
    for name in ("fp32", choice.precision):
        for _ in range(10):
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
                out = layer(x)
            (gradient,) = torch.autograd.grad(out, layer.weight, torch.ones_like(out))
            reference = gradients.setdefault("fp32", gradient)
            assert (gradient - reference).norm() < 0.05 * reference.norm(), choice.table


def test_nothing_is_left_changed():
    method, batch = ToyMethod(), a_batch()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    drawn, generator = torch.get_rng_state(), batch["generator"].get_state()
    choose_precision(method, batch)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())
    assert torch.equal(drawn, torch.get_rng_state())
    assert torch.equal(generator, batch["generator"].get_state())


def test_time_is_kept_by_timing_a_part_of_the_batch(monkeypatch):
    class Slow(ToyMethod):
        def forward(self, batch):
            time.sleep(0.002 * len(batch["views"][0]))
            assert len(batch["index"]) == len(batch["views"][0])
            return super().forward(batch)

    generator = torch.Generator()
    images = ToyImages(256, 8).images
    batch = {"views": toy_views(images, generator), "generator": generator, "index": torch.arange(256)}
    start = time.perf_counter()
    choice = choose_precision(Slow(), batch, time_budget_s=0.5)
    assert time.perf_counter() - start < 2.5, "256 images five times are at least 2.56 s"
    assert "256 images" not in choice.table


def test_unknown_precision():
    with pytest.raises(ValueError, match="fp32, bf16, fp16, got int8"):
        choose_precision(ToyMethod(), a_batch(), precisions=["int8"])


def test_the_trainer_measures_once_and_says_so(caplog):
    trainer = toy_trainer(precision="auto", channels_last="auto", max_epochs=1)
    with caplog.at_level("INFO"):
        trainer.run()
    assert trainer.precision in ("fp32", "bf16")
    assert trainer.channels_last in (True, False)
    assert caplog.text.count("measured on this machine") == 1


def test_the_trainer_measures_only_what_is_open(caplog):
    trainer = toy_trainer(precision="bf16", channels_last="auto", max_epochs=1)
    with caplog.at_level("INFO"):
        trainer.run()
    assert trainer.precision == "bf16"
    assert "fp32, channels" not in caplog.text


@pytest.mark.parametrize("shape", [(4, 1, 6, 5), (4, 3, 6, 5), (2, 1, 4, 5, 6), (3, 5)])
def test_memory_format_reaches_the_strides_that_kernels_go_by(shape):
    """With one channel both formats are the same bytes, and ``contiguous`` would leave the strides as they are."""
    x = torch.randn(shape)
    last = precision.to_memory_format(x, True)
    assert torch.equal(last, x)
    if x.ndim > 2:
        assert last.stride(1) == 1
        output = nn.Conv2d(1, 8, 3)(last) if shape == (4, 1, 6, 5) else last
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        assert output.is_contiguous(memory_format=formats[x.ndim])
    plain = precision.to_memory_format(last, False)
    assert torch.equal(plain, x) and plain.stride() == x.stride()
    assert precision.to_memory_format(last, True) is last, "nothing to do, nothing copied"
