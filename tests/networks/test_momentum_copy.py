# SPDX-License-Identifier: Apache-2.0
"""The momentum teacher: exact start, exact average, its own BatchNorm statistics, no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_ssl.networks import MomentumCopy, cosine_momentum


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))


def disturbed(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net


def values(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_starts_as_an_exact_copy_with_its_own_memory():
    source = small_net()
    source(torch.randn(8, 4)).sum().backward()  # gradients and running statistics exist
    copy = MomentumCopy(source)
    for ours, theirs in zip(copy.module.state_dict().values(), source.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    assert all(not p.requires_grad and p.grad is None for p in copy.parameters())
    assert all(p.requires_grad for p in source.parameters()), "the source still learns"
    disturbed(source)
    assert not torch.equal(copy.module[0].weight, source[0].weight)


def test_momentum_zero_copies_and_one_freezes():
    source = small_net()
    copy = MomentumCopy(source)
    start = values(copy)
    disturbed(source)
    copy.update(source, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(values(copy), start, strict=True))
    copy.update(source, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(values(copy), values(source), strict=True))


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.999])
def test_the_gap_to_a_frozen_source_shrinks_by_the_momentum(momentum):
    source = small_net().double()
    copy = MomentumCopy(source)
    disturbed(source)
    gap = [a - b for a, b in zip(values(copy), values(source), strict=True)]
    for step in range(1, 4):
        copy.update(source, momentum)
        for now, start, theirs in zip(values(copy), gap, values(source), strict=True):
            torch.testing.assert_close(now - theirs, start * momentum**step)


def test_update_writes_in_place_and_leaves_buffers_alone():
    source = small_net()
    copy = MomentumCopy(source)
    addresses = [p.data_ptr() for p in copy.parameters()]
    source(torch.randn(32, 4) + 5)  # moves the source's running mean
    buffers = [buffer.clone() for buffer in copy.buffers()]
    copy.update(disturbed(source), 0.5)
    assert [p.data_ptr() for p in copy.parameters()] == addresses
    assert all(torch.equal(a, b) for a, b in zip(copy.buffers(), buffers, strict=True))


def test_batch_norm_uses_the_batch_while_the_rest_is_in_evaluation_mode():
    torch.manual_seed(0)
    copy = MomentumCopy(small_net()).train()
    x = torch.randn(16, 4) * 3 + 7
    modes = [layer.training for layer in copy.module]
    assert copy.training and modes == [False, True, False, False]
    hidden = copy.module[:2](x)
    torch.testing.assert_close(hidden.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert torch.equal(copy(x), copy(x)), "no dropout"
    assert copy.module[1].num_batches_tracked == 3, "it keeps its own running statistics"
    copy.eval()
    assert not any(layer.training for layer in copy.module.modules())
    assert copy.module[:2](x).mean(0).abs().max() > 0.1, "running statistics in evaluation mode"


def test_the_mode_of_the_source_is_taken_over():
    assert MomentumCopy(small_net().train()).module[1].training
    assert not MomentumCopy(small_net().eval()).module[1].training


def test_no_gradient_is_recorded():
    copy = MomentumCopy(small_net())
    assert not copy(torch.randn(8, 4, requires_grad=True)).requires_grad


def test_another_network_is_refused():
    copy = MomentumCopy(small_net())
    with pytest.raises(ValueError, match=r"not the network that was copied: 3\.bias differs"):
        copy.update(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)), 0.9)
    with pytest.raises(ValueError, match="not the network"):
        copy.update(nn.Linear(4, 6), 0.9)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1\.1"):
        copy.update(small_net(), 1.1)


def test_momentum_goes_along_half_a_cosine():
    assert [cosine_momentum(0.9, 1.0, p) for p in (0, 0.5, 1)] == pytest.approx([0.9, 0.95, 1.0])
    assert cosine_momentum(0.9, 1.0, 1 / 3) == pytest.approx(0.9 + 0.1 * 0.25)  # (1 - cos 60 degrees) / 2 of the way
    assert cosine_momentum(0.996, 0.996, 0.3) == pytest.approx(0.996)
    assert cosine_momentum(0.99, 1.0, 1.0) == 1.0, "never beyond the end by rounding"
