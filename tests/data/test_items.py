from __future__ import annotations

import blosc2
import numpy as np
import pytest
from array_folders import random_array

from monai_ssl.data import UnreadableImageError
from monai_ssl.data.items import encode, item_facts, item_layout, read_item, shrink, shrunk_shape, write_item


@pytest.mark.parametrize(
    ("bits", "low", "dtype"),
    [(8, 0, np.uint8), (5, 3, np.uint8), (9, 0, np.uint16), (12, -1000, np.uint16), (16, 0, np.uint16)],
)
def test_whole_numbers_keep_every_value_in_the_narrowest_type(bits, low, dtype):
    values = random_array((61, 47), bits).astype(np.int64) + low
    stored, levels = encode(values.astype(np.float32), (low, low + 2**bits - 1))
    assert stored.dtype == dtype and levels == 2**bits - 1
    np.testing.assert_array_equal(stored.astype(np.int64) + low, values)


def test_other_values_keep_16_bits():
    values = np.random.default_rng(0).uniform(-0.1, 1.1, (50, 60)).astype(np.float32)
    stored, levels = encode(values, (0.0, 1.0))
    assert stored.dtype == np.uint16 and levels == 65535
    assert np.abs(stored / 65535 - np.clip(values, 0, 1)).max() <= 0.51 / 65535


def test_window_limits_clip():
    stored, levels = encode(np.array([[0.0, 10.0], [15.0, 30.0]]), (10.0, 20.0))
    assert levels == 10
    np.testing.assert_array_equal(stored, [[0, 0], [5, 10]])


def test_images_that_say_nothing_are_refused():
    with pytest.raises(UnreadableImageError, match="same grey value"):
        encode(np.full((4, 4), 7.0), (0.0, 255.0))
    with pytest.raises(UnreadableImageError, match="same grey value"):
        encode(np.linspace(300, 400, 16).reshape(4, 4), (0.0, 255.0))  # all above the window
    with pytest.raises(UnreadableImageError, match="not finite"):
        encode(np.array([[0.0, np.nan]]), (0.0, 1.0))


@pytest.mark.parametrize("shape", [(64, 48), (200, 300), (20, 31, 42), (70, 150, 90)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_items_come_back_exactly_whole_and_in_part(tmp_path, shape, dtype):
    values = random_array(shape, 8 if dtype == np.uint8 else 16, dtype=dtype)
    path = tmp_path / "a.b2nd"
    size = write_item(path, values, 255, limits=[0.0, 1.0])
    assert path.stat().st_size == size
    full = read_item(path)
    assert full.dtype == dtype
    np.testing.assert_array_equal(full, values)
    rng = np.random.default_rng(1)
    for _ in range(20):
        ends = [np.sort(rng.choice(side + 1, 2, replace=False)) for side in shape]
        np.testing.assert_array_equal(
            read_item(path, [(a, b) for a, b in ends]), values[tuple(slice(*e) for e in ends)]
        )
    np.testing.assert_array_equal(read_item(path, [slice(None, 5)] * len(shape)), values[(slice(5),) * len(shape)])
    facts = item_facts(path)
    assert facts == {
        "shape": list(shape),
        "dtype": str(np.dtype(dtype)),
        "bytes": size,
        "levels": 255,
        "limits": [0, 1],
    }


def test_a_box_reads_only_the_blocks_it_touches(tmp_path):
    values = random_array((512, 512), 16)
    write_item(tmp_path / "a.b2nd", values, 65535)
    whole = (tmp_path / "a.b2nd").read_bytes()
    # Spoil the blocks of the last rows: a box above them must not notice, the whole image must be another.
    spoilt = bytearray(whole)
    end = int(len(whole) * 0.9)
    spoilt[end - 2000 : end] = bytes(2000)
    (tmp_path / "a.b2nd").write_bytes(spoilt)
    np.testing.assert_array_equal(read_item(tmp_path / "a.b2nd", ((0, 224), (3, 227))), values[:224, 3:227])
    try:
        same = np.array_equal(read_item(tmp_path / "a.b2nd"), values)
    except RuntimeError as error:
        assert "the stored image is damaged" in str(error)
    else:
        assert not same


@pytest.mark.parametrize(
    "box", [((0, 5),), ((0, 0), (0, 5)), ((-1, 5), (0, 5)), ((0, 65), (0, 5)), (slice(0, 9, 2),) * 2]
)
def test_wrong_boxes_are_errors(tmp_path, box):
    write_item(tmp_path / "a.b2nd", random_array((64, 64)), 4095)
    with pytest.raises(ValueError, match="box"):
        read_item(tmp_path / "a.b2nd", box)


def test_short_and_missing_items_say_what_to_do(tmp_path):
    write_item(tmp_path / "a.b2nd", random_array((64, 64)), 4095)
    whole = (tmp_path / "a.b2nd").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 3):
        (tmp_path / "a.b2nd").write_bytes(whole[:cut])
        with pytest.raises(RuntimeError, match="damaged; delete this file and prepare"):
            item_facts(tmp_path / "a.b2nd")
    with pytest.raises(FileNotFoundError, match="missing; prepare the store again"):
        read_item(tmp_path / "b.b2nd")


def test_large_volumes_are_cut_into_chunks_of_whole_blocks():
    chunks, blocks = item_layout((600, 512, 512), 2)
    assert np.prod(chunks) * 2 <= 64 * 2**20
    assert all(c % b == 0 or c == s for c, b, s in zip(chunks, blocks, (600, 512, 512), strict=True))
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        item_layout((4, 5, 6, 7), 2)


@pytest.mark.parametrize(("old", "new"), [((60, 40), (30, 20)), ((61, 40), (17, 40)), ((9, 50, 33), (9, 13, 8))])
def test_shrinking_averages_exact_areas(old, new):
    image = np.random.default_rng(0).uniform(0, 4095, old).astype(np.float32)
    expected = image.astype(np.float64)
    for axis, (n, m) in enumerate(zip(old, new, strict=True)):
        # Slow reference: repeat each pixel m times and average runs of n.
        runs = np.moveaxis(np.repeat(expected, m, axis=axis), axis, 0)
        expected = np.moveaxis(runs.reshape(m, n, *runs.shape[1:]).mean(axis=1), 0, axis)
    np.testing.assert_allclose(shrink(image, new), expected, rtol=1e-5)


def test_shrinking_keeps_more_than_8_bits():
    """A ramp of 12 bits over few grey levels must not fall into steps of 1/256 of the range."""
    ramp = np.tile(np.linspace(1000, 1016, 1024, dtype=np.float32), (1024, 1))
    stored, levels = encode(shrink(ramp, (256, 256)), (0.0, 4095.0))
    assert len(np.unique(stored)) == 256
    truth = np.linspace(1000, 1016, 1024).reshape(256, 4).mean(axis=1)
    assert np.abs(stored[0] / levels * 4095 - truth).max() < 0.05  # a step of 8 bits is 16


def test_shapes_keep_the_aspect_ratio_and_never_grow():
    assert shrunk_shape((3000, 2500), 512) == (512, 427)
    assert shrunk_shape((512, 100), 512) == (512, 100)
    assert shrunk_shape((10_000, 3), 512) == (512, 1)
    assert shrunk_shape((40, 80, 60), 40) == (20, 40, 30)


def test_writing_uses_one_thread_and_changes_no_global_setting(tmp_path):
    before = blosc2.nthreads
    write_item(tmp_path / "a.b2nd", random_array((64, 64)), 4095)
    read_item(tmp_path / "a.b2nd")
    assert blosc2.nthreads == before
