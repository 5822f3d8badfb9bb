# SPDX-License-Identifier: Apache-2.0
"""The user's own table: found, read, checked, joined and filtered."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from monai_ssl.data import build_index, find_labels_file, join_labels, read_labels, select_rows
from monai_ssl.data.hashing import hash_identifier
from monai_ssl.data.tables import nearest_name, require_columns, write_table

SALT = b"salt of the test"


def facts(*paths, patient=None, view=None):
    columns = {
        "path": list(paths),
        "patient": [patient] * len(paths),
        "view": [view] * len(paths),
        "rows": [1] * len(paths),
    }
    types = {"path": pa.string(), "patient": pa.string(), "view": pa.string(), "rows": pa.int32()}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_join_hashes_patients_and_keeps_the_rest(tmp_path):
    path = write(
        tmp_path / "labels.csv",
        "file,patient_id,group_id,split,label,age,text\n"
        'a.png,007,7,train,ill,3,"two\nlines, quoted"\nb.png,008,7,train,,,\n',
    )
    table = join_labels(facts("a.png", "b.png", "c.png", patient="header"), read_labels(path), tmp_path, SALT, path)
    assert table["patient"].to_pylist() == [
        hash_identifier("007", SALT, "patient"),  # leading zeros are part of a number
        hash_identifier("008", SALT, "patient"),
        "header",
    ]
    assert table["group_id"].to_pylist() == [hash_identifier("7", SALT, "patient")] * 2 + ["header"]
    assert table["split"].to_pylist() == ["train", "train", None]
    assert table["label"].to_pylist() == ["ill", None, None]
    assert table["age"].to_pylist() == [3, None, None]
    assert table["text"].to_pylist() == ["two\nlines, quoted", None, None]
    assert "patient_id" not in table.column_names and "file" not in table.column_names


def test_groups_without_a_table(tmp_path):
    table = join_labels(facts("a.png", "b.png"), None, tmp_path, SALT)
    groups = table["group_id"].to_pylist()
    assert len(set(groups)) == 2 and None not in groups
    table = join_labels(facts("a.png", "b.png", patient="p"), None, tmp_path, SALT)
    assert table["group_id"].to_pylist() == ["p", "p"]


def test_clashing_columns(tmp_path):
    path = write(tmp_path / "l.csv", "file,view,rows\na.png,PA,12\nb.png,,13\n")
    table = join_labels(facts("a.png", "b.png", view="AP"), read_labels(path), tmp_path, SALT, path)
    assert table["view"].to_pylist() == ["PA", "AP"]  # the user knows better, where he says anything
    assert table["rows"].to_pylist() == [1, 1] and table["user_rows"].to_pylist() == [12, 13]


@pytest.mark.parametrize("name", ["./a/x.png", "a\\x.png", "a//x.png", " a/x.png "])
def test_spellings_of_a_path(tmp_path, name):
    labels = pa.table({"file": [name], "label": [1]})
    assert join_labels(facts("a/x.png"), labels, tmp_path, SALT)["label"].to_pylist() == [1]


def test_absolute_paths(tmp_path):
    labels = pa.table({"file": [str(tmp_path / "a" / "x.png")], "label": [1]})
    assert join_labels(facts("a/x.png"), labels, tmp_path, SALT)["label"].to_pylist() == [1]


def test_parquet_of_labels(tmp_path):
    pq.write_table(pa.table({"file": ["a.png"], "patient_id": [12], "label": [0.5]}), tmp_path / "l.parquet")
    table = join_labels(facts("a.png"), read_labels(tmp_path / "l.parquet"), tmp_path, SALT)
    assert table["patient"].to_pylist() == [hash_identifier("12", SALT, "patient")]


def test_missing_and_unlabelled_files_are_said(tmp_path, caplog):
    labels = pa.table({"file": ["a.png", "gone.png"]})
    with caplog.at_level(logging.INFO):
        join_labels(facts("a.png", "b.png", "c.png"), labels, tmp_path, SALT, "l.csv")
    assert "l.csv: 1 of its files are not in the folder, for instance gone.png" in caplog.text
    assert "l.csv: 2 of 3 images have no row" in caplog.text


def test_no_file_matches(tmp_path):
    with pytest.raises(ValueError, match=r"none of its 1 files is in the folder; 'x.png' is probably 'images/x.png'"):
        join_labels(facts("images/x.png"), pa.table({"file": ["x.png"]}), tmp_path, SALT)
    with pytest.raises(ValueError, match=r"the folder has files like images/x.png"):
        join_labels(facts("images/x.png"), pa.table({"file": ["y.png"]}), tmp_path, SALT)


def test_two_rows_for_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"l.csv: 1 files have more than one row, for instance a.png"):
        join_labels(facts("a.png"), pa.table({"file": ["a.png", "./a.png"]}), tmp_path, SALT, "l.csv")


@pytest.mark.parametrize("key", ["patient_id", "group_id"])
def test_a_patient_in_two_splits_is_counted_not_named(tmp_path, key):
    labels = pa.table(
        {
            "file": ["a.png", "b.png", "c.png", "d.png"],
            key: ["Zebrowski", "Zebrowski", "other", "other"],
            "split": ["train", "test", "val", "val"],
        }
    )
    with pytest.raises(ValueError) as caught:
        join_labels(facts("a.png", "b.png", "c.png", "d.png"), labels, tmp_path, SALT, "l.csv")
    message = str(caught.value)
    assert "1 patients or groups (2 images) are in more than one split (test, train)" in message
    assert "Zebrowski" not in message and hash_identifier("Zebrowski", SALT, "patient") not in message


def test_patient_is_checked_even_where_groups_are_given(tmp_path):
    labels = pa.table(
        {"file": ["a.png", "b.png"], "patient_id": ["p", "p"], "group_id": ["1", "2"], "split": ["train", "test"]}
    )
    with pytest.raises(ValueError, match="more than one split"):
        join_labels(facts("a.png", "b.png"), labels, tmp_path, SALT)


def test_shared_header_patient_does_not_contradict_given_groups(tmp_path):
    labels = pa.table({"file": ["a.png", "b.png"], "group_id": ["1", "2"], "split": ["train", "test"]})
    table = join_labels(facts("a.png", "b.png", patient="all the same"), labels, tmp_path, SALT)
    assert len(set(table["group_id"].to_pylist())) == 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,label", "has no column 'file'"),
        ("flie,label", "did you mean 'flie'"),
        ("file,pateint_id", "'pateint_id' looks like a misspelt 'patient_id'"),
        ("file,PatientID", "'PatientID' looks like a misspelt 'patient_id'"),
        ("file,splits", "'splits' looks like a misspelt 'split'"),
    ],
)
def test_misspelt_columns(tmp_path, header, message):
    path = write(tmp_path / "l.csv", f"{header}\na.png,1\n")
    with pytest.raises(ValueError, match=message):
        read_labels(path)


def test_unreadable_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such table of labels"):
        read_labels(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"Row #3: Expected 2 columns, got 3") as caught:
        read_labels(write(tmp_path / "l.csv", "file,label\na.png,1\nZebrowski,2,3\n"))
    assert "Zebrowski" not in str(caught.value)
    with pytest.raises(ValueError, match="1 rows have an empty 'file'"):
        read_labels(write(tmp_path / "l.csv", "file,label\na.png,1\n,2\n"))
    (tmp_path / "l.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="not a readable Parquet"):
        read_labels(tmp_path / "l.parquet")
    (tmp_path / "latin.csv").write_bytes("file,label\na.png,größer\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not a readable UTF-8 CSV"):
        read_labels(tmp_path / "latin.csv")


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbffile,patient_id\na.png,01\n")
    assert read_labels(tmp_path / "l.csv").to_pylist() == [{"file": "a.png", "patient_id": "01"}]


def test_finding_the_table(tmp_path, caplog):
    assert find_labels_file(tmp_path) is None
    write(tmp_path / "other.csv", "name,value\n1,2\n")
    assert find_labels_file(tmp_path) is None
    write(tmp_path / "mistyped.csv", "filename,label\na.png,2\n")
    assert find_labels_file(tmp_path) is None
    assert "no column 'file' (is 'filename' meant?)" in caplog.text
    right = write(tmp_path / "labels.csv", '"file","label"\na.png,2\n')
    assert find_labels_file(tmp_path) == right
    pq.write_table(pa.table({"file": ["a.png"]}), tmp_path / "second.parquet")
    with pytest.raises(ValueError, match=r"several tables with a column 'file' \(labels.csv, second.parquet\)"):
        find_labels_file(tmp_path)


def test_index_joins_and_rejoins(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 99, (9, 9)).astype(np.uint8)).save(root / name)
    write(root / "labels.csv", "file,label,view\na.png,ill,PA\n")
    table = build_index(root, tmp_path / "i.parquet", num_workers=0)
    assert table["label"].to_pylist() == ["ill", None] and table["view"].to_pylist() == ["PA", None]
    write(root / "labels.csv", "file,finding\na.png,\nb.png,none seen\n")
    table = build_index(root, tmp_path / "i.parquet", num_workers=0)
    assert table["finding"].to_pylist() == [None, "none seen"] and table["view"].to_pylist() == [None, None]
    assert "label" not in table.column_names
    write(tmp_path / "elsewhere.csv", "file,split\na.png,test\n")
    table = build_index(root, tmp_path / "i.parquet", num_workers=0, labels=tmp_path / "elsewhere.csv")
    assert table["split"].to_pylist() == ["test", None]


TABLE = pa.table(
    {
        "source": ["Kermany et al.", "Kermany v2", "MHH", None],
        "split": ["train", "test", "train", "val"],
        "age": [3, 4, None, 30],
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (None, [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("source=Kermany*", [0, 1]),
        ("source=kermany*", None),
        ("source=Kermany*;split=train", [0]),
        (" source = Kermany* ; split != train ; ", [1]),
        ("split=train|val", [0, 2, 3]),
        ("source!=MHH", [0, 1, 3]),
        ("source=*", [0, 1, 2]),
        ("age=3*", [0, 3]),
        ("split=t[er]*", [0, 1, 2]),
    ],
)
def test_where(where, rows):
    if rows is None:
        with pytest.raises(ValueError, match=r"no row is left after 'source=kermany.*the column holds: Kermany et al"):
            select_rows(TABLE, where)
    else:
        assert select_rows(TABLE, where).equals(TABLE.take(rows))


def test_where_errors():
    with pytest.raises(ValueError, match=r"has no column 'sorce'; did you mean 'source'\?"):
        select_rows(TABLE, "sorce=x")
    with pytest.raises(ValueError, match="the clause 'train' has no '='"):
        select_rows(TABLE, "split=train;train")


def test_require_columns_and_nearest_name():
    require_columns(TABLE, ["split"])
    with pytest.raises(ValueError, match=r"^it has no column 'zzz'. Columns: source, split, age$"):
        require_columns(TABLE, ["zzz"], "it")
    assert nearest_name("Patient_ID", ["patient_id"]) == "patient_id"


def test_tables_are_written_whole_or_not_at_all(tmp_path):
    write_table(TABLE, tmp_path / "t.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(OSError, match="could not be written"):
        write_table(TABLE, tmp_path / "folder.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.parquet", "t.parquet"]
