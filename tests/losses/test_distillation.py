# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: closed forms, slow references, gradients, the centre's state, and memory."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from loss_references import slow_distillation, slow_patch_distillation
from torch.nn.functional import log_softmax, normalize

from monai_ssl.losses import TeacherCodes, distillation, patch_distillation, sinkhorn


def outputs(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def codes_of(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return (2 * outputs(*shape, seed=seed, dtype=dtype)).softmax(-1)


@pytest.mark.parametrize("views, large", [(2, 2), (6, 2), (5, 3), (3, 1)])
def test_equals_the_loop_over_pairs(views, large):
    student, codes = outputs(views, 4, 7), codes_of(large, 4, 7)
    loss = distillation(student, codes, 0.2)
    assert loss.item() == pytest.approx(slow_distillation(student.numpy(), codes.numpy(), 0.2), rel=1e-12)


def test_patches_equal_the_loop_over_images():
    student, codes = outputs(6, 7), codes_of(6, 7)
    image = [0, 0, 0, 2, 2, 5]  # images 1, 3 and 4 have no masked patch
    counts = {0: 3, 2: 2, 5: 1}
    weights = torch.tensor([1 / (3 * counts[i]) for i in image], dtype=torch.float64)
    loss = patch_distillation(student, codes, weights, 0.2)
    assert loss.item() == pytest.approx(slow_patch_distillation(student.numpy(), codes.numpy(), image, 0.2), rel=1e-12)
    even = patch_distillation(student, codes, temperature=0.2)
    assert even.item() == pytest.approx(-(codes * log_softmax(student / 0.2, 1)).sum(1).mean().item(), rel=1e-12)


@pytest.mark.parametrize("outputs_", [16, 65536])
def test_equal_outputs_cost_log_k(outputs_):
    codes = torch.full((2, 1, outputs_), 1 / outputs_)
    assert distillation(torch.zeros(3, 1, outputs_), codes).item() == pytest.approx(math.log(outputs_), rel=1e-5)
    assert patch_distillation(torch.zeros(1, outputs_), codes[0]).item() == pytest.approx(math.log(outputs_), rel=1e-5)
    if outputs_ == 65536:  # 11.09 in the literature
        assert math.log(outputs_) == pytest.approx(11.09, abs=0.001)


def test_random_cosines_cost_half_the_variance_of_their_logits_more():
    """log K + 1 / (2 d t^2) for K independent directions and unit features of length d."""
    generator = torch.Generator().manual_seed(0)
    directions, features = (normalize(torch.randn(n, 64, generator=generator), dim=1) for n in (2048, 64))
    loss = patch_distillation(features @ directions.T, torch.full((64, 2048), 1 / 2048))
    assert loss.item() == pytest.approx(math.log(2048) + 1 / (2 * 64 * 0.1**2), abs=0.05)


def test_a_student_that_knows_pays_the_codes_entropy():
    codes = codes_of(1, 5, 7).expand(2, -1, -1)
    student = codes[0].log().mul(0.3).expand(4, -1, -1) + 5  # a constant changes nothing
    loss = distillation(student, codes, 0.3)
    assert loss.item() == pytest.approx(torch.special.entr(codes).sum(-1).mean().item(), rel=1e-12)


def test_order_of_images_and_outputs_and_of_large_crops_does_not_matter():
    student, codes = outputs(5, 4, 7), codes_of(2, 4, 7)
    loss = distillation(student, codes)
    for axis, size in ((1, 4), (2, 7)):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(3))
        moved = distillation(student.index_select(axis, order), codes.index_select(axis, order))
        torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(distillation(student[[1, 0, 4, 2, 3]], codes[[1, 0]]), loss)


def test_a_crops_own_code_teaches_it_nothing():
    student, codes = outputs(2, 3, 5).requires_grad_(), codes_of(2, 3, 5)
    other = codes.clone()
    other[0] = codes_of(3, 5, seed=9)
    grads = [torch.autograd.grad(distillation(student, q), student)[0] for q in (codes, other)]
    assert torch.allclose(grads[0][0], grads[1][0]) and not torch.allclose(grads[0][1], grads[1][1])


def test_gradients():
    codes = codes_of(2, 3, 5)
    assert torch.autograd.gradcheck(lambda s: distillation(s, codes, 0.5), outputs(4, 3, 5).requires_grad_())
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: patch_distillation(s, codes[0], weights, 0.5), outputs(3, 5).requires_grad_()
    )
    student = outputs(4, 3, 5, dtype=torch.float32).requires_grad_()
    teacher = codes.float().requires_grad_()
    distillation(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("temperature", [0.1, 0.01, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype, temperature):
    student = (5 * outputs(4, 3, 9, dtype=torch.float32)).to(dtype).requires_grad_()
    codes = codes_of(2, 3, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation(student, codes, temperature) + patch_distillation(student[0], codes[0], None, temperature)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert student.grad.dtype == dtype and student.grad.isfinite().all()
    wide = distillation(student.detach().double(), codes.double(), temperature)
    assert distillation(student, codes, temperature).item() == pytest.approx(wide.item(), rel=1e-5)


def test_it_holds_one_tensor_beside_the_outputs():
    """Counted by what is saved for the backward pass; the outputs themselves are the caller's."""
    saved = []
    student, codes = outputs(6, 4, 100, dtype=torch.float32).requires_grad_(), codes_of(2, 4, 100, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        distillation(student, codes)
    assert sum(saved) < 1.1 * student.numel()


def test_memory_stays_near_two_tensors_of_outputs():
    """The codes and the gradient; the outputs of student and teacher are the caller's."""
    student, teacher = outputs(2, 512, 512, dtype=torch.float32).requires_grad_(), outputs(2, 512, 512).float()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        distillation(student, TeacherCodes(512)(teacher, 0.04)).backward()
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    highest = np.cumsum([e.nbytes() for e in sorted(changes, key=lambda event: event.start_ns())]).max()
    assert student.nbytes <= highest < 2.2 * student.nbytes


def test_codes_are_centred_sharpened_probabilities():
    codes = TeacherCodes(7)
    codes.center.copy_(outputs(7, seed=5))
    teacher = outputs(2, 4, 7, dtype=torch.float32).requires_grad_()
    out = codes(teacher, 0.04)
    expected = ((teacher.detach() - codes.center) / 0.04).softmax(-1)
    torch.testing.assert_close(out, expected)
    assert not out.requires_grad and out.shape == (2, 4, 7)
    assert codes(teacher.bfloat16(), 0.04).dtype == torch.float32
    assert codes(teacher + 3, 0.04).allclose(out, atol=1e-4), "an equal shift of all outputs changes nothing"


def test_the_centre_is_a_running_mean_that_moves_with_update_only():
    codes, teacher = TeacherCodes(7, momentum=0.9), outputs(3, 2, 4, 7, dtype=torch.float32)
    codes(teacher[0], 0.04)
    assert codes.center.abs().sum() == 0
    codes.update()
    torch.testing.assert_close(codes.center, 0.1 * teacher[0].mean((0, 1)))
    before = codes.center.clone()
    codes.update()  # nothing waits
    assert torch.equal(codes.center, before)
    codes(teacher[1], 0.04)
    codes(teacher[2], 0.04)  # two batches, one step
    codes.update()
    torch.testing.assert_close(codes.center, 0.9 * before + 0.1 * teacher[1:].mean((0, 1, 2)))
    codes.eval()(teacher[0], 0.04)
    before = codes.center.clone()
    codes.update()
    assert torch.equal(codes.center, before), "evaluation leaves the centre alone"


def test_the_centre_is_in_the_state():
    codes = TeacherCodes(5)
    codes(outputs(2, 4, 5, dtype=torch.float32), 0.04)
    codes.update()
    other = TeacherCodes(5)
    other.load_state_dict(copy.deepcopy(codes.state_dict()))
    teacher = outputs(2, 4, 5, seed=8, dtype=torch.float32)
    assert torch.equal(codes(teacher, 0.04), other(teacher, 0.04))


def test_sinkhorn_codes_use_all_outputs_whatever_all_images_share():
    codes = TeacherCodes(6, centering="sinkhorn")
    teacher = outputs(2, 30, 6, dtype=torch.float32)
    teacher[..., 0] += 4  # one output wins everywhere
    out = codes(teacher, 0.5)
    torch.testing.assert_close(out, sinkhorn(teacher.flatten(0, 1), 0.5, 3).view(2, 30, 6))
    torch.testing.assert_close(out.sum(-1), torch.ones(2, 30))
    assert out.mean((0, 1)).max() < 1.5 / 6 < TeacherCodes(6)(teacher, 0.5).mean((0, 1)).max()
    codes.update()
    assert codes.center.numel() == 0


def test_plain_errors():
    student, codes = outputs(3, 4, 5), codes_of(2, 4, 5)
    for wrong in (outputs(4, 5), outputs(3, 4, 6), outputs(3, 3, 5)):
        with pytest.raises(ValueError, match="student and codes must have shapes"):
            distillation(wrong, codes)
    with pytest.raises(ValueError, match="two crops or more and a code of some"):
        distillation(student[:1], codes[:1])
    with pytest.raises(ValueError, match="two crops or more and a code of some"):
        distillation(student[:2], codes_of(3, 4, 5))
    with pytest.raises(ValueError, match="temperature must be positive"):
        distillation(student, codes, 0)
    with pytest.raises(ValueError, match="one shape"):
        patch_distillation(student[0], codes[0, :3])
    with pytest.raises(ValueError, match=r"weights must have shape \(4,\)"):
        patch_distillation(student[0], codes[0], torch.ones(3))
    with pytest.raises(ValueError, match="centering must be 'mean' or 'sinkhorn', got 'median'"):
        TeacherCodes(4, "median")
    with pytest.raises(ValueError, match="momentum of the centre"):
        TeacherCodes(4, momentum=1.5)
    with pytest.raises(ValueError, match="num_outputs and iterations"):
        TeacherCodes(0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        TeacherCodes(5)(student, 0.0)
