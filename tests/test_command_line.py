# SPDX-License-Identifier: Apache-2.0
"""Arguments are read completely before a verb runs, and every mistake is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from monai_ssl.command_line import run_verbs

RAN: list[tuple] = []


def look_up(place: str, *, depth: int = 3, deep: bool = False, note: str | None = None) -> None:
    """Look something up.

    place  where
    """
    RAN.append((place, depth, deep, note))


def fail(*, kind: str) -> None:
    """Fail in some way."""
    if kind == "ours":
        raise ValueError("the bucket has a hole")
    if kind == "library":
        np.zeros(2).reshape(3)
    if kind == "file":
        Path("/no/such/place").read_text()
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise KeyError(kind)


def rank(*, sources: list[str], depth: int = 1) -> None:
    """Rank things."""
    RAN.append((sources, depth))


def run(*arguments: str) -> int:
    RAN.clear()
    return run_verbs({"look-up": look_up, "fail": fail, "rank": rank}, arguments, "Some tools.")


def error_of(capsys) -> str:
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], ("a", 3, False, None)),
        (["--place", "a", "--depth=-4"], ("a", -4, False, None)),
        (["a", "--depth", "-4", "--deep"], ("a", -4, True, None)),
        (["a", "--deep", "True"], ("a", 3, True, None)),
        (["a", "--nodeep", "--note", "b c"], ("a", 3, False, "b c")),
        # Paths that Python would read as numbers, tuples or dictionaries stay as they were typed.
        (["007"], ("007", 3, False, None)),
        (["1_000", "--note", "x,y"], ("1_000", 3, False, "x,y")),
        (["{a}", "--note=None"], ("{a}", 3, False, "None")),
    ],
)
def test_arguments_reach_the_verb(arguments, expected):
    assert run("look-up", *arguments) == 0
    assert [expected] == RAN
    assert run("look_up", *arguments) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sources", "a b", "c,d", "7", "--depth", "2"],
        ["--depth", "2", "--sources", "a b", "c,d", "7"],
        ["--sources=a b", "c,d", "7", "--depth=2"],
    ],
)
def test_a_list_goes_on_to_the_next_flag(arguments):
    assert run("rank", *arguments) == 0
    assert RAN == [(["a b", "c,d", "7"], 2)]
    assert run("rank", "--sources", "a") == 0
    assert RAN == [(["a"], 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rank", "--sources"], "--sources needs one value or more"),
        (["rank", "--sources", "--depth", "2"], "--sources needs one value or more"),
        (["rank", "--depth", "2"], "needs SOURCES; usage: python -m monai_ssl rank --sources A B ... [--depth 1]"),
        (["rank", "a", "--sources", "b"], "does not take 'a'"),
        (["lookup", "a"], "no verb 'lookup'; did you mean look-up?"),
        (["xyzzy"], "--help shows them"),
        (["--deep", "look-up", "a"], "stands before the verb"),
        (["look-up"], "needs PLACE"),
        (["look-up", "a", "b"], "does not take 'b'"),
        (["look-up", "a", "--dept", "2"], "no flag '--dept'; did you mean --depth?"),
        (["look-up", "a", "-d"], "no flag '-d'"),
        (["look-up", "a", "--xyzzy=1"], "usage: python -m monai_ssl look-up PLACE [--depth 3] [--deep] [--note ...]"),
        (["look-up", "a", "--depth", "two"], "--depth is a whole number, not 'two'"),
        (["look-up", "a", "--note"], "--note needs a value"),
        (["look-up", "a", "--note", "--deep"], "--note needs a value"),
        (["look-up", "a", "--deep", "maybe"], "--deep is True or False, not 'maybe'"),
        (["look-up", "a", "--", "--interactive"], "no flag '--'"),
    ],
)
def test_mistakes_are_named_and_nothing_runs(capsys, arguments, words):
    assert run(*arguments) == 2
    assert words in error_of(capsys)
    assert not RAN


def test_help_without_running(capsys):
    assert run() == 2
    overview = capsys.readouterr().out
    assert run("--help") == 0
    assert capsys.readouterr().out == overview
    assert "Some tools." in overview and "look-up  Look something up.\n" in overview
    for arguments in (["look-up", "--help"], ["help", "look-up"], ["look-up", "a", "-h"]):
        assert run(*arguments) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: python -m monai_ssl look-up PLACE") and "place  where" in shown
    assert not RAN


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ours", "error: ValueError: the bucket"),
        ("library", "error: ValueError: cannot reshape array"),
        ("file", "error: /no/such/place: No such file or directory"),
    ],
)
def test_errors_are_one_line(capsys, monkeypatch, kind, words):
    monkeypatch.delenv("MONAI_SSL_TRACEBACK", raising=False)
    assert run("fail", "--kind", kind) == 2
    message = error_of(capsys)
    assert words in message
    assert ("MONAI_SSL_TRACEBACK=1" in message) == (kind != "file")
    monkeypatch.setenv("MONAI_SSL_TRACEBACK", "1")
    assert run("fail", "--kind", kind) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_this_package_is_shown_in_full(capsys):
    def read(*, path: str) -> None:
        """Read."""
        from monai_ssl.data.tables import read_table

        read_table(path)

    assert run_verbs({"read": read}, ["read", "--path", "x.parquet"], "") == 2
    assert error_of(capsys) == "error: x.parquet: no such table\n"


def test_interrupt_is_one_line(capsys):
    assert run("fail", "--kind", "interrupt") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_nobody_reads_the_output():
    code = (
        "import sys; from monai_ssl.command_line import run_verbs; "
        "sys.exit(run_verbs({'v': print}, ['--help'], 'word ' * 99999))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert not process.stderr.read()
    assert process.wait(60) == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run("fail", "--kind", "bug")
