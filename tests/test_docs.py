# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: its Python runs, its commands name what exists, its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_ssl.__main__ import VERBS
from monai_ssl.data.scan import FACTS_SCHEMA
from monai_ssl.data.store import STORE_SCHEMA, VOLUME_STORE_SCHEMA
from monai_ssl.data.volume_scan import VOLUME_SCHEMA
from monai_ssl.weights import MANIFEST_FIELDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
PAGES += [bundle / "docs/README.md" for bundle in BUNDLES]
FENCE = re.compile(r"^(<!-- not run.*-->\n)?```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [
        body for skip, kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language and not skip
    ]


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip()]


def arguments_of(command: list[str]) -> dict[str, str]:
    flags = [place for place, word in enumerate(command) if word.startswith("--") and word != "--standalone"]
    return {command[place][2:].partition("=")[0]: command[place + 1] for place in flags if place + 1 < len(command)}


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file() and blocks(page, "python")], ids=named)
def test_python_blocks_run_in_order(page: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{named(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_name_verbs_flags_and_files_that_exist(page: Path):
    for command in commands(page):
        text = " ".join(command)
        if "monai.bundle run" in text:
            check_bundle_command(command)
        elif command[:3] == ["python", "-m", "monai_ssl"]:
            parameters = inspect.signature(VERBS[command[3]]).parameters
            flags = {name.replace("-", "_") for name in arguments_of(command)} - {"help"}
            assert flags <= set(parameters), text


def check_bundle_command(command: list[str]) -> None:
    """Files of the command exist, and its overrides are keys of the bundle's configuration."""
    given = arguments_of(command)
    root = given["bundle_root"]
    if "NAME" in root:
        return
    files = re.findall(r"[\w./-]+\.(?:yaml|json)", given["config_file"])
    config: dict = {}
    for file in files:
        assert (ROOT / file).is_file(), file
        config |= ConfigParser.load_config_file(str(ROOT / file))
    keys = {re.split("::|#", key.lstrip("+"))[0] for key in config}
    own = {"bundle_root", "config_file", "nproc_per_node", "nnodes"}
    unknown = {re.split("::|#", flag)[0] for flag in given} - keys - own
    assert not unknown, f"{' '.join(command)}: {sorted(unknown)}"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_is_linked(bundle: Path):
    assert f"bundles/{bundle.name}/docs/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{bundle.name}.md" in (DOCS / "bundles/index.md").read_text(encoding="utf-8")
    assert f"bundles/{bundle.name}/docs/README.md" in (DOCS / f"bundles/{bundle.name}.md").read_text(encoding="utf-8")


def test_every_room_verb_column_and_field_has_its_line():
    for room in (path.parent.name for path in (ROOT / "monai_ssl").glob("*/__init__.py")):
        assert room in ("doctor", "show_views") or f"monai_ssl.{room}" in (DOCS / f"reference/{room}.md").read_text(
            encoding="utf-8"
        )
    command_line = (DOCS / "reference/command_line.md").read_text(encoding="utf-8")
    assert all(f"| `{verb}" in command_line for verb in VERBS)
    files = (DOCS / "reference/files.md").read_text(encoding="utf-8")
    tables = (FACTS_SCHEMA.names, VOLUME_SCHEMA.names, STORE_SCHEMA.names, VOLUME_STORE_SCHEMA.names, MANIFEST_FIELDS)
    for name in [name for names in tables for name in names]:
        assert f"`{name}`" in files, name


def test_every_variant_of_the_pretraining_has_its_line():
    page = (DOCS / "how-to/variants.md").read_text(encoding="utf-8")
    configs = (ROOT / "bundles/radiograph_c2l_pretraining/configs").glob("*.yaml")
    for name in sorted(path.name for path in configs):
        assert f"`{name}`" in page, name


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
