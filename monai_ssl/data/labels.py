# SPDX-License-Identifier: Apache-2.0
"""The user's own table: one row an image, joined to the index by file name and checked."""

from __future__ import annotations

import collections
import fnmatch
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from monai_ssl.data.hashing import hash_identifier
from monai_ssl.data.tables import nearest_name, read_table, require_columns

logger = logging.getLogger(__name__)

_RESERVED = ("file", "patient_id", "group_id", "split")
_TEXT = pa.string()


def find_labels_file(root: str | Path, columns: Sequence[str] = ("file",)) -> Path | None:
    """Find the one CSV or Parquet at the top of a folder that has a column ``file``.

    A table whose columns merely resemble ``file`` is not taken, but logged with the column that was probably meant.

    Args:
        root: the folder.
        columns: names of which the table must have one.

    Raises:
        ValueError: if there are several; one must then be given.
    """
    found = []
    for path in sorted(Path(root).iterdir()):
        if path.suffix.lower() not in (".csv", ".parquet") or path.name.startswith(".") or not path.is_file():
            continue
        try:
            names = _column_names(path)
        except (OSError, ValueError):
            continue
        near = nearest_name("file", names) or nearest_name("filename", names)
        if set(columns) & set(names):
            found.append(path)
        elif near:
            logger.warning("%s is not joined: it has no column 'file' (is %r meant?)", path, near)
    if len(found) > 1:
        raise ValueError(
            f"{root} has several tables with a column {' or '.join(map(repr, columns))} "
            f"({', '.join(p.name for p in found)}): name one"
        )
    return found[0] if found else None


def read_labels(path: str | Path, aliases: Mapping[str, str] | None = None) -> pa.Table:
    """Read a CSV or Parquet of labels. ``file``, ``patient_id``, ``group_id`` and ``split`` are read as text.

    Empty cells are null. Rows may have any further columns: labels, text, age.

    Args:
        path: the table.
        aliases: other names that columns may have, ``{"image": "file"}``; used where the column itself is absent.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, has no column ``file``, a misspelt reserved column, or a file twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of labels")
    if path.suffix.lower() == ".parquet":
        table = read_table(path)
    else:
        table = read_csv(path)
    names = [
        aliases[name] if aliases and name in aliases and aliases[name] not in table.column_names else name
        for name in table.column_names
    ]
    table = table.rename_columns(names)
    for name in set(_RESERVED) & set(names):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, table[name].cast(_TEXT))
    require_columns(table, ["file"], str(path))
    for name in ("patient_id", "group_id", "split"):
        near = nearest_name(name, table.column_names, cutoff=0.85)
        if name not in table.column_names and near:
            raise ValueError(f"{path}: the column {near!r} looks like a misspelt {name!r}; rename it")
    blank = pc.or_kleene(pc.is_null(table["file"]), pc.equal(pc.utf8_trim_whitespace(table["file"]), ""))
    if pc.any(blank).as_py():
        raise ValueError(f"{path}: {pc.sum(blank).as_py()} rows have an empty 'file'")
    return table


def join_labels(
    facts: pa.Table,
    labels: pa.Table | None,
    root: str | Path,
    salt: bytes,
    source: str | Path | None = None,
    *,
    names: Sequence[Sequence[Sequence[str]]] | None = None,
    alone: Sequence[str] | None = None,
) -> pa.Table:
    """Add the columns of the user's table to the index.

    ``patient_id`` and ``group_id`` are replaced by salted hashes: ``patient`` (where given) and ``group_id``. An image
    without either is grouped by the patient of its header, or stands alone. ``modality``, ``body_part`` and ``view``
    of the user win over the header's; any other name the index already uses gets the prefix ``user_``.

    Args:
        facts: table with a column ``path``.
        labels: what ``read_labels`` gave, or None.
        root: the folder of images: absolute paths in ``file`` are made relative to it.
        salt: secret for the identifiers.
        source: the labels' file, for messages.
        names: what the user's table may call each row of the index: lists of names, the best list first. Default: its
            ``path``. A name that several rows share stands for all of them.
        alone: what groups each row that has no patient. Default: its ``path``.

    Returns:
        The index with ``group_id`` and the user's columns; null where an image has no row.

    Raises:
        ValueError: if a file appears twice, no file matches, files of one row of the index have rows that differ, or
            one patient is in two splits.
    """
    paths = facts["path"].to_pylist()
    alone = paths if alone is None else alone
    patients = facts["patient"].to_pylist()
    if labels is None:
        return facts.append_column("group_id", pa.array(_groups(alone, patients, None, salt), _TEXT))
    source = source or "the labels"
    names = [[[path]] for path in paths] if names is None else names
    rows = pa.array(_match_rows(labels, names, Path(root), source), pa.int64())
    joined = labels.drop_columns(["file"]).take(rows)  # a null row number gives a row of nulls
    given = {name: joined[name].to_pylist() for name in ("patient_id", "group_id") if name in joined.column_names}
    joined = joined.drop_columns(list(given))

    if "patient_id" in given:
        hashed = [hash_identifier(value, salt, "patient") for value in given["patient_id"]]
        patients = [own or header for own, header in zip(hashed, patients, strict=True)]
        facts = facts.set_column(facts.schema.get_field_index("patient"), "patient", pa.array(patients, _TEXT))
    groups = _groups(alone, patients, given.get("group_id"), salt)
    facts = facts.append_column("group_id", pa.array(groups, _TEXT))
    for name in joined.column_names:
        if name in ("modality", "body_part", "view") and name in facts.column_names:
            mine = pc.coalesce(joined[name].cast(_TEXT), facts[name])
            facts = facts.set_column(facts.schema.get_field_index(name), name, mine)
        else:
            facts = facts.append_column(f"user_{name}" if name in facts.column_names else name, joined[name])
    # The header's patient is no witness here: anonymised files often share one made-up number.
    for name in ("group_id", "patient") if "patient_id" in given else ("group_id",):
        _check_splits(facts, name, source)
    return facts


def select_rows(table: pa.Table, where: str | None) -> pa.Table:
    """Keep the rows that meet all clauses of a filter such as ``"source=Kermany*; split!=test; view=PA|AP"``.

    Args:
        table: any table.
        where: clauses ``column=pattern`` or ``column!=pattern`` joined by ``;``. A pattern is that of a shell (``*``,
            ``?``, ``[ab]``), alternatives are joined by ``|``, case counts, and numbers are compared as written. An
            empty cell meets only ``!=``. None or empty keeps all.

    Raises:
        ValueError: if a clause has no ``=``, a column does not exist, or no row is left.

    >>> table = pa.table({"split": ["train", "val", "test"], "age": [1, 20, None]})
    >>> select_rows(table, "split=t*; age!=1")["split"].to_pylist()
    ['test']
    """
    keep = [True] * len(table)
    for clause in (part.strip() for part in (where or "").split(";")):
        if not clause:
            continue
        name, found, pattern = clause.partition("=")
        if not found:
            raise ValueError(f"where: the clause {clause!r} has no '='; write column=pattern or column!=pattern")
        negated = name.endswith("!")
        name = name.rstrip("!").strip()
        require_columns(table, [name], "where: the table")
        patterns = [part.strip() for part in pattern.split("|")]
        values = table[name].to_pylist()
        matches = {
            value: any(fnmatch.fnmatchcase(str(value), one) for one in patterns)
            for value in set(values)
            if value is not None
        }
        keep = [kept and matches.get(value, False) != negated for kept, value in zip(keep, values, strict=True)]
        if not any(keep):
            raise ValueError(f"where: no row is left after {clause!r}{some_values(values)}")
    return table.filter(pa.array(keep, pa.bool_()))


def some_values(values: Iterable) -> str:
    """The values a column has, if they are few and short enough to help."""
    distinct = sorted({str(value) for value in values if value is not None})
    if len(distinct) > 12 or any(len(value) > 32 for value in distinct):
        return ""
    return f"; the column holds: {', '.join(distinct) or 'nothing'}"


def _groups(alone: Sequence[str], patients: list[str | None], given: list | None, salt: bytes) -> list[str | None]:
    groups = given or [None] * len(alone)
    return [
        hash_identifier(group, salt, "patient") or patient or hash_identifier(name, salt, "file")
        for name, patient, group in zip(alone, patients, groups, strict=True)
    ]


def relative_name(value: str, root: str | Path) -> str:
    """A file's name in a table as the index writes it: relative to the folder, with /.

    >>> relative_name(" ./a\\\\b.nii ", "data"), relative_name("/", "/")
    ('a/b.nii', '.')
    """
    prefix = Path(root).absolute().as_posix().rstrip("/") + "/"
    return PurePosixPath(value.strip().replace("\\", "/").removeprefix(prefix)).as_posix()


def _match_rows(
    labels: pa.Table, names: Sequence[Sequence[Sequence[str]]], root: Path, source: str | Path
) -> list[int | None]:
    """Row of the labels for each row of the index, by the best of its names that the labels have."""
    row_of: dict[str, int] = {}
    twice = collections.Counter()
    for row, value in enumerate(labels["file"].to_pylist()):
        name = relative_name(value, root)
        if name in row_of:
            twice[name] += 1
        row_of[name] = row
    if twice:
        raise ValueError(f"{source}: {len(twice)} files have more than one row, for instance {_some(twice)}")
    known = {name for own in names for some in own for name in some}
    missing = sorted(set(row_of) - known)
    if len(missing) == len(row_of) and row_of:
        ends = {PurePosixPath(name).name: name for name in known}
        near = next(
            (f"{name!r} is probably {ends[n]!r}" for name in missing if (n := PurePosixPath(name).name) in ends), None
        )
        hint = near or f"the folder has files like {_some(own[0][0] for own in names)}"
        raise ValueError(f"{source}: none of its {len(row_of)} files is in the folder; {hint}")
    if missing:
        logger.warning(
            "%s: %d of its files are not in the folder, for instance %s", source, len(missing), _some(missing)
        )
    found, torn = [], []
    for own in names:
        rows = next(filter(None, ({row_of[name] for name in some if name in row_of} for some in own)), {None})
        if len(rows) > 1 and len(set(map(str, labels.drop_columns(["file"]).take(sorted(rows)).to_pylist()))) > 1:
            torn.append(own[0][0])
        found.append(min(rows))
    if torn:
        raise ValueError(f"{source}: the rows of the files of {_some(torn)} differ; give one row for all its files")
    if without := found.count(None):
        logger.info("%s: %d of %d images have no row", source, without, len(names))
    return found


def _some(names) -> str:
    return ", ".join(list(names)[:3])


def _check_splits(table: pa.Table, by: str, source: str | Path) -> None:
    if "split" not in table.column_names:
        return
    groups = table[by].to_pylist()
    splits: dict[str, set] = collections.defaultdict(set)
    for group, split in zip(groups, table["split"].to_pylist(), strict=True):
        if group is not None and split is not None:
            splits[group].add(split)
    leaking = {group for group, names in splits.items() if len(names) > 1}
    if leaking:
        images = sum(group in leaking for group in groups)
        names = sorted(set().union(*(splits[group] for group in leaking)))
        raise ValueError(
            f"{source}: {len(leaking)} patients or groups ({images} images) are in more than one split "
            f"({', '.join(names)}); give all images of a patient the same split"
        )


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path).names
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [name.strip().strip('"') for name in file.readline().split(",")]


def read_csv(path: Path) -> pa.Table:
    """Read a CSV file; columns of reserved names stay text, empty cells are null.

    Raises:
        ValueError: it is no UTF-8 CSV with one header line; its cells are not quoted.
    """
    names = _column_names(path)
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or errors would not name the row
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: _TEXT for name in _RESERVED if name in names}, strings_can_be_null=True
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable UTF-8 CSV with one header line and commas: {_short(error)}"
        ) from error
    foreign = [field.name for field in table.schema if pa.types.is_binary(field.type)]
    if foreign:  # pyarrow keeps what is no UTF-8 as bytes
        raise ValueError(f"{path} is not a readable UTF-8 CSV: the column {foreign[0]!r} is in another encoding")
    return table


def _short(error: Exception) -> str:
    """What pyarrow's message says about lines and columns, without the cells it quotes."""
    found = re.search(r"(Row #\d+: )?Expected \d+ columns, got \d+|In CSV column #\d+", str(error))
    return found.group(0) if found else str(error).split(":")[0][:60]
