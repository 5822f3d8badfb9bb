# SPDX-License-Identifier: Apache-2.0
"""The contact sheet shows what training sees: the right images, crops where they were cut, and no file names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from monai_ssl.data import build_index, prepare_store
from monai_ssl.show_views import describe_draw, save_view_sheet, some_images
from monai_ssl.show_views.image_sheet import _outline
from monai_ssl.transforms import RandomResample, ViewChain, c2l_views


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (40, 30 + number), dtype=np.uint8)).save(folder / f"secret{number}.png")
    for number in (0, 3):
        (folder / f"secret{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return folder


def test_images_are_spread_and_unreadable_ones_are_passed_over(folder):
    assert [Path(image.name).name for image in some_images(folder, 2)] == ["secret1.png", "secret5.png"]
    assert len(some_images(folder, 9)) == 4
    (one,) = some_images(folder / "secret2.png", 9)
    assert one.pixels.shape == (40, 32) and one.caption == "PNG, 8 bit, 40 x 32"
    pixels = np.asarray(Image.open(folder / "secret2.png"))
    np.testing.assert_allclose(one.pixels, pixels / 255, atol=1e-6)


def test_a_store_is_shown_as_it_was_prepared(folder, tmp_path):
    prepare_store(build_index(folder, num_workers=0), folder, tmp_path, max_side=20, num_workers=0)
    images = some_images(tmp_path, 3)
    assert len(images) == 3 and all(max(image.pixels.shape) == 20 for image in images)
    assert images[0].caption.startswith("stored, 16 bit, 20 x 16")


def test_what_cannot_be_shown(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        some_images(tmp_path / "nothing", 1)
    with pytest.raises(ValueError, match="no image among 0 files"):
        some_images(tmp_path, 1)
    with pytest.raises(ValueError, match="secret0"):
        some_images(folder / "secret0.png", 1)
    with pytest.raises(ValueError, match="num_images is 0"):
        some_images(folder, 0)
    image = some_images(folder / "secret1.png", 1)
    for wrong in ({"output": "a.jpg"}, {"preset": "simclr"}, {"num_views": 9}, {"size": 4}):
        with pytest.raises(ValueError):
            save_view_sheet(image, **{"output": tmp_path / "a.png", **wrong})
    assert not (tmp_path / "a.png").exists()


def test_the_sheet_is_the_same_for_a_seed_and_names_no_file(folder, tmp_path):
    images = some_images(folder, 2)
    made = {
        name: save_view_sheet(images, tmp_path / "new" / f"{name}.png", "c2l", 32, 2, seed).read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    assert made["a"] == made["b"] != made["c"]
    assert b"secret" not in made["a"]
    wide, high = Image.open(tmp_path / "new" / "a.png").size
    assert wide > 600 and high > 600


def test_an_outline_lies_where_the_view_was_cut():
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(120.0), indexing="ij")
    image = torch.stack([rows, columns])[None]  # (1, 2, 80, 120): each pixel holds its own position
    size = 64
    chain = ViewChain([RandomResample(size, (0.05, 0.1), rotation_deg=40)])
    for seed in range(5):
        params = chain.draw(image.shape, torch.Generator().manual_seed(seed))
        view = chain.apply(image, params)[0]
        axes = Figure().subplots()
        _outline(axes, chain, params, "red")
        drawn = axes.lines[0].get_xydata()[:, ::-1]  # (5, 2) row, column
        ends = [view[:, row, column].numpy() for row, column in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
        step = max(params["0.crop"][0]) / size
        inside = np.array([(point >= 0).all() and (point < [79, 119]).all() for point in drawn[:4]])
        assert inside.any()
        np.testing.assert_allclose(np.array(ends)[inside], drawn[:4][inside], atol=float(step))


def test_the_caption_names_what_was_drawn():
    chain = c2l_views(32).chains[0]
    params = chain.draw((1, 1, 100, 50), torch.Generator().manual_seed(0))
    params["0.crop"][:] = torch.tensor([50.0, 25.0])
    params["0.angle_deg"][:], params["0.flip"][:] = -7.4, torch.tensor([False, True])
    params["1.brightness"][:], params["1.contrast"][:] = 1.2, 1.0
    assert describe_draw(chain, params).replace("\n", ", ") == (
        "25% of the area, turned -7°, mirrored, brightness 1.20, 3 holes"
    )
