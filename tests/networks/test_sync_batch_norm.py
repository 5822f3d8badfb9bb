# SPDX-License-Identifier: Apache-2.0
"""Synchronised batch normalisation is BatchNorm of the whole batch, on the CPU too."""

from __future__ import annotations

import copy

import pytest
import torch
from distributed_helper import run_processes
from torch import nn

from monai_ssl.networks import MomentumCopy
from monai_ssl.networks.sync_batch_norm import SynchronizedBatchNorm, convert_sync_batch_norm


def network(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, affine=False),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
    )
    nn.init.normal_(layers[1].weight)
    return layers


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 3).to(dtype)


def test_conversion_keeps_keys_parameters_and_mode():
    plain = network().eval()
    plain[4].train()
    parameters, state = [id(p) for p in plain.parameters()], {k: v.clone() for k, v in plain.state_dict().items()}
    converted = convert_sync_batch_norm(plain)
    assert converted is plain
    assert [id(p) for p in converted.parameters()] == parameters
    assert list(converted.state_dict()) == list(state)
    assert [type(converted[i]) for i in (1, 4, 7)] == [SynchronizedBatchNorm] * 3
    assert [converted[i].training for i in (1, 4, 7)] == [False, True, False]
    assert type(convert_sync_batch_norm(nn.BatchNorm3d(2))) is SynchronizedBatchNorm
    assert isinstance(convert_sync_batch_norm(copy.deepcopy(converted))[1], SynchronizedBatchNorm)


def test_a_momentum_copy_keeps_batch_statistics_after_conversion():
    teacher = convert_sync_batch_norm(MomentumCopy(network()))
    teacher.train()
    assert teacher.module[1].training
    assert not teacher.module[0].training


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_one_process_is_ordinary_batch_norm(training, momentum):
    plain, converted = network(momentum).train(training), convert_sync_batch_norm(network(momentum)).train(training)
    for _ in range(2):
        assert torch.equal(plain(images()), converted(images()))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, converted.state_dict()[key])


def outcome(layers: nn.Module, x: torch.Tensor, share: slice) -> dict:
    """Loss of a share of the rows: the whole batch's mean is the mean over processes."""
    x = x.clone().requires_grad_()
    output = layers(x)
    (output * torch.arange(30.0).view(6, 5)[share].cos()).pow(2).sum(1).mean().backward()
    return {
        "output": output.detach(),
        "input": x.grad,
        "weights": [p.grad.clone() for p in layers.parameters()],
        "buffers": {k: v.clone() for k, v in layers.state_dict().items() if "running" in k or "tracked" in k},
    }


def work(rank: int, world_size: int) -> dict:
    rows = slice(0, 4) if rank == 0 else slice(4, 6)  # unequal shares: counts matter
    results = {"unequal": outcome(convert_sync_batch_norm(network()), images()[rows], rows)}
    rows = slice(3 * rank, 3 * rank + 3)
    results["equal"] = outcome(convert_sync_batch_norm(network()), images()[rows], rows)
    results["cumulative"] = outcome(convert_sync_batch_norm(network(None)), images()[rows], rows)
    layer = convert_sync_batch_norm(nn.BatchNorm2d(1))
    results["bf16"] = layer(images(torch.bfloat16)[rows])
    results["evaluation"] = layer.eval()(images()[rows])
    results["channels_last"] = SynchronizedBatchNorm(4)(
        torch.rand(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    ).is_contiguous(memory_format=torch.channels_last)
    return results


def test_two_processes_are_one_with_the_whole_batch():
    first, second = run_processes(work)
    for case, momentum in (("equal", 0.1), ("cumulative", None)):
        whole = outcome(network(momentum), images(), slice(0, 6))
        a, b = first[case], second[case]
        torch.testing.assert_close(torch.cat([a["output"], b["output"]]), whole["output"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([a["input"], b["input"]]) / 2, whole["input"], rtol=1e-3, atol=1e-5)
        for one, other, wanted in zip(a["weights"], b["weights"], whole["weights"], strict=True):
            torch.testing.assert_close((one + other) / 2, wanted, rtol=1e-3, atol=1e-4)
        for key, wanted in whole["buffers"].items():
            torch.testing.assert_close(a["buffers"][key], wanted, rtol=1e-4, atol=1e-6, msg=key)
            assert torch.equal(a["buffers"][key], b["buffers"][key])
    unequal = torch.cat([first["unequal"]["output"], second["unequal"]["output"]])
    torch.testing.assert_close(unequal, outcome(network(), images(), slice(0, 6))["output"], rtol=1e-4, atol=1e-5)
    expected = nn.BatchNorm2d(1)(images())
    assert first["bf16"].dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first["bf16"], second["bf16"]]).float(), expected, rtol=0.05, atol=0.05)
    assert first["channels_last"]
    assert first["evaluation"].isfinite().all()
