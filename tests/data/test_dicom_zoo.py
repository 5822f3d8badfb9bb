# SPDX-License-Identifier: Apache-2.0
"""Every odd DICOM file of the zoo does what its table says, and what docs/dicom_support.md says."""

from __future__ import annotations

import csv
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from monai_ssl.data import UnreadableImageError, build_index, read_radiograph

pytestmark = pytest.mark.realdata

DOCUMENT = Path(__file__).parents[2] / "docs" / "dicom_support.md"


@pytest.fixture(scope="module")
def zoo(real_data):
    folder = real_data / "dicom_zoo"
    if not (folder / "dicom_zoo.csv").is_file():
        pytest.skip("no DICOM zoo in MONAI_SSL_DATA")
    with (folder / "dicom_zoo.csv").open(newline="", encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def outcome(zoo):
    folder, rows = zoo
    found = {}
    for row in rows:
        try:
            found[row["file"]] = read_radiograph(folder / row["file"])
        except UnreadableImageError as error:
            found[row["file"]] = error.reason
    return found


def test_every_file_does_what_its_table_says(zoo, outcome):
    wrong = []
    for row in zoo[1]:
        refused = isinstance(outcome[row["file"]], str)
        if (row["should"] == "read as image" and refused) or (row["should"].startswith("refuse") and not refused):
            wrong.append((row["file"], row["should"], outcome[row["file"]] if refused else "read"))
    assert not wrong


def test_images_have_the_tables_size_and_values(zoo, outcome):
    for row in zoo[1]:
        result = outcome[row["file"]]
        if isinstance(result, str):
            continue
        array, meta = result
        assert array.shape == (int(row["rows"]), int(row["cols"])), row["file"]
        assert array.dtype == np.float32 and np.isfinite(array).all(), row["file"]
        assert meta["value_range"][0] < meta["value_range"][1], row["file"]
        assert meta["frames"] == int(row["frames"] or 1), row["file"]
        low, high = meta["value_range"]
        shown = np.clip((array - low) / (high - low), 0, 1)
        if "constant" not in row["file"]:
            assert np.ptp(shown) > 0, f"{row['file']}: nothing to see"


def test_stored_values_survive(zoo):
    """Where no rescale, LUT, inversion or frame choice is in the way, minimum and maximum are the table's."""
    folder, rows = zoo
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
                 "MR_small_bigendian.dcm", "JPEG-LL.dcm", "JPEG2000.dcm", "image_dfl.dcm",
                 "ai4healthcare_test1.dcm", "derived_no_rescale.dcm"):  # fmt: skip
        row = next(row for row in rows if row["file"] == f"files/{name}")
        array, _ = read_radiograph(folder / row["file"])
        assert (array.min(), array.max()) == (float(row["vmin"]), float(row["vmax"])), name


def test_the_same_image_in_other_codings_is_the_same(outcome):
    reference = outcome["files/MR_small.dcm"][0]
    for name in ("implicit", "bigendian", "RLE", "jp2klossless", "jpeg_ls_lossless", "padded"):
        np.testing.assert_array_equal(outcome[f"files/MR_small_{name}.dcm"][0], reference)
    jpeg = outcome["files/CTImage_JPEGProcess14SV1_1.2.840.10008.1.2.4.70.dcm"][0]
    np.testing.assert_array_equal(outcome["files/CTImage_RLELossless_1.2.840.10008.1.2.5.dcm"][0], jpeg)
    np.testing.assert_array_equal(outcome["files/emri_small_RLE.dcm"][0], outcome["files/emri_small.dcm"][0])


def test_lossy_copies_look_like_the_lossless_ones(outcome):
    """Two JPEG processes that pydicom leaves undecoded."""
    for lossy, lossless, least in (
        ("JPEG-lossy.dcm", "JPEG-LL.dcm", 0.98),
        (
            "CTImage_JPEGProcess10_12_1.2.840.10008.1.2.4.55.dcm",
            "CTImage_RLELossless_1.2.840.10008.1.2.5.dcm",
            0.9999,
        ),
    ):
        images = [outcome[f"files/{name}"][0].ravel() for name in (lossy, lossless)]
        assert np.corrcoef(images)[0, 1] > least, lossy


def test_monochrome1_radiographs_are_inverted(zoo, outcome):
    for name in ("RG3_J2KI.dcm", "CR1_6154", "highdicom_dx_image.dcm"):
        assert outcome[f"files/{name}"][1]["inverted"]
    assert outcome["files/CR1_6154"][1]["pixel_spacing_mm"] == (0.1, 0.1)


def test_a_huge_header_allocates_little(zoo):
    path = zoo[0] / "files" / "derived_huge_rows.dcm"
    tracemalloc.start()
    with pytest.raises(UnreadableImageError):
        read_radiograph(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_document_states_the_measured_verdicts(zoo, outcome):
    stated = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`") and cells[1] in ("read", "refused"):
            stated[cells[0].strip("`")] = (cells[1], cells[2])
    for row in zoo[1]:
        if not row["file"].startswith("files/"):
            continue
        result = outcome[row["file"]]
        verdict, note = stated[row["file"].removeprefix("files/")]
        assert verdict == ("refused" if isinstance(result, str) else "read"), row["file"]
        if verdict == "refused":
            assert note == result, row["file"]


def test_index_of_the_zoo(zoo, outcome, tmp_path):
    table = build_index(zoo[0], tmp_path / "zoo.parquet", num_workers=2, progress=False)
    status = dict(zip(table["path"].to_pylist(), table["status"].to_pylist(), strict=True))
    for name, result in outcome.items():
        assert status[name] == ("refused" if isinstance(result, str) else "ok"), name
    reasons = [reason for reason in table["reason"].to_pylist() if reason]
    assert not any("unexpected" in reason or re.search(r"\d+(\.\d+){4,}", reason) for reason in reasons)
