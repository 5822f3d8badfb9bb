# SPDX-License-Identifier: Apache-2.0
"""The description of a file: true, readable, and its code runs."""

from __future__ import annotations

import textwrap

import pytest
import torch
from safetensors.torch import save_file
from weight_cases import SMALL_VIT, lived_in, saved, thin_resnet

from monai_ssl.networks import build_encoder
from monai_ssl.weights import describe_weights, load_encoder, save_encoder


def test_it_says_what_the_file_is(tmp_path):
    start = saved(thin_resnet(), tmp_path / "1", method="MoCo v2")
    encoder = thin_resnet()
    load_encoder(encoder, start)
    text = describe_weights(
        saved(
            encoder,
            tmp_path,
            method_args={"temperature": 0.07},
            images_seen=64000,
            spacing_mm=[0.14, 0.2],
            patch_size=[224, 224],
            intensity={"policy": "radiograph", "value_range": [0, 1]},
            metrics={"knn_auc": 0.875},
        )
    )
    values = sum(value.numel() for value in encoder.net.state_dict().values())
    for fact in [
        "An encoder pretrained with C2L",
        "resnet10 (monai.networks.nets.resnet.ResNet)",
        "2D, 1 channel(s)",
        "conv1.weight, kernel 7 x 7, stride 2 x 2",
        "64 (pooled)",
        f"75 with {values:,} values",
        "C2L temperature 0.07",
        "after        MoCo v2\n",
        "64,000",
        "policy radiograph, value_range [0, 1]",
        "0.14 x 0.2 mm",
        "224 x 224",
        "knn_auc 0.875",
        "seeds        not recorded",
        f"torch {torch.__version__}",
    ]:
        assert fact in text, fact


@pytest.mark.parametrize("architecture, arguments", [("resnet10", {"widen_factor": 0.125}), ("vit", SMALL_VIT)])
def test_its_code_runs(tmp_path, capsys, architecture, arguments):
    encoder = lived_in(build_encoder(architecture, **arguments))
    text = describe_weights(saved(encoder, tmp_path))
    code = text[text.index("    from monai_ssl") : text.index("load_encoder also finds")]
    scope: dict = {}
    exec(textwrap.dedent(code), scope)
    assert "100.0% of the net's encoder, 100.0% of the file" in capsys.readouterr().out
    x = torch.rand(1, 1, 32, 32)
    assert torch.equal(scope["encoder"].eval()(x), encoder(x)) and scope["net"].eval()(x).shape == (1, 2)


@pytest.mark.parametrize("decoder", [{}, {"out_channels": 3}])
def test_an_encoder_of_volumes(tmp_path, capsys, decoder):
    arguments = {"channels": (4, 8), "strides": (2,), "num_res_units": 0}
    encoder = build_encoder("unet", spatial_dims=3, **arguments, **decoder)
    path = tmp_path / "encoder.safetensors"
    facts = {"method": "SimMIM", "spacing_mm": [3.0, 1.0, 1.0], "patch_size": [16, 32, 32]}
    save_encoder(encoder, path, facts, with_decoder=bool(decoder))
    text = describe_weights(path)
    assert "3D, 1 channel(s)" in text and "kernel 3 x 3 x 3" in text and ("decoder included" in text) == bool(decoder)
    assert "3 x 1 x 1 mm" in text and "16 x 32 x 32" in text
    scope: dict = {}
    exec(textwrap.dedent(text[text.index("    from monai_ssl") : text.index("load_encoder also finds")]), scope)
    assert "100.0% of the net's encoder, 100.0% of the file" in capsys.readouterr().out


def test_files_of_others(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({f"module.{k}": v for k, v in thin_resnet().encoder_state_dict().items()}, path)
    text = describe_weights(path)
    assert "named as torchvision or timm ResNet under 'module.'; its first layer takes 1 channel(s)" in text
    assert f"load_imagenet_weights(net, {str(path)!r})" in text
    save_file({"tower.weight": torch.zeros(2, 3)}, tmp_path / "x.safetensors")
    text = describe_weights(tmp_path / "x.safetensors")
    assert "without manifest, 1 tensors with 6 values, with names that are not known: tower.weight" in text
    with pytest.raises(FileNotFoundError):
        describe_weights(tmp_path / "nothing.pth")
