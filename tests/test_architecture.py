# SPDX-License-Identifier: Apache-2.0
"""The house keeps its shape: imports go down the floors, names are our own, importing the package is light."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import monai
import pytest

import monai_ssl

PACKAGE = Path(monai_ssl.__file__).parent
FLOORS = [
    {"losses", "transforms", "networks", "metrics"},
    {"data", "weights"},
    {"methods"},
    {"engines"},
    {"handlers"},
    {"evaluation"},
    {"transferability"},
    {"search"},
    {"label", "command_line", "describe", "doctor", "show_views"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
NEVER_IMPORTED = {"torchvision", "timm", "lightning", "pytorch_lightning", "cv2", "pandas"}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = ("monai_ssl", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, node.module] if node.module else base)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "monai_ssl" and len(parts) > 1 else None


def source_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path):
    own_room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own_room == "__init__":
        assert not any(room_of(module) for module in imported_modules(path)), "the package itself imports no room"
        return
    assert own_room in FLOOR_OF, f"{own_room} is on no floor: DESIGN.md names the rooms"
    for module in imported_modules(path):
        room = room_of(module)
        if room in (None, own_room, "__version__"):
            continue
        assert FLOOR_OF[room] < FLOOR_OF[own_room], (
            f"{path.name} in {own_room} imports {module} from its own floor or above"
        )


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_forbidden_import_and_a_docstring(path: Path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & NEVER_IMPORTED
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "a module says what it is for"


def own_public_names() -> dict[str, str]:
    """Name -> module of every public class and function that the package defines."""
    names = {}
    for info in pkgutil.walk_packages(monai_ssl.__path__, "monai_ssl."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in inspect.getmembers(module):
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == info.name:
                names[name] = info.name
    return {name: module for name, module in names.items() if not name.startswith("_")}


def test_no_public_name_clashes_with_monai():
    """MONAI's bundle parser scans packages called monai*: a shared short name would replace MONAI's own class."""
    taken = set()
    for info in pkgutil.walk_packages(monai.__path__, "monai."):
        try:
            module = importlib.import_module(info.name)
        except Exception:  # parts of MONAI need packages that are not installed
            continue
        taken.update(
            name
            for name, value in inspect.getmembers(module)
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("monai.")
        )
    assert len(taken) > 1000, "MONAI's modules were not found"
    clashes = {name: module for name, module in own_public_names().items() if name in taken}
    assert not clashes


def test_importing_the_package_is_light():
    code = "import sys, monai_ssl; print(sorted({'torch', 'monai', 'numpy', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_rooms_need_no_optional_package():
    rooms = ", ".join(f"monai_ssl.{room}" for rooms in FLOORS for room in rooms if (PACKAGE / room).is_dir())
    hidden = "sys.modules.update(dict.fromkeys(('transformers', 'itk', 'mlflow')))"  # as if they were not installed
    code = f"import sys; {hidden}; import {rooms}; print(sorted({NEVER_IMPORTED!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"
