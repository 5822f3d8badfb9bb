# SPDX-License-Identifier: Apache-2.0
"""What MONAI's model zoo checks of a bundle, and some more, for every folder in ``bundles/``."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.reference_resolver import ReferenceResolver
from packaging.version import Version

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if (path / "configs").is_dir())
SCHEMA = Path(__file__).with_name("metadata_schema.json")
SECTIONS = ("Model Description", "Data", "Performance", "Usage", "System Configuration", "Limitations", "References")
LARGEST_FILE = 25 * 2**20
EVALUATING = {"radiograph_report_retrieval"}  # bundles that train nothing
TRACED = {"volume_swin_unetr_pretraining"}  # TorchScript can't follow MONAI's Swin transformer; the zoo leaves it out
ABSOLUTE_PATH = re.compile(r"""^\$?\s*['"]?(/|~|[A-Za-z]:[\\/]|file://)""")

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def configs(bundle: Path) -> list[Path]:
    found = [path for path in (bundle / "configs").iterdir() if path.suffix in (".json", ".yaml", ".yml")]
    return sorted(path for path in found if path.name != "metadata.json")


def metadata(bundle: Path) -> dict:
    return json.loads((bundle / "configs/metadata.json").read_text())


def inference_config(bundle: Path) -> Path:
    return next(path for path in configs(bundle) if path.stem == "inference")


def file_sets(bundle: Path) -> list[list[Path]]:
    """Each config as it is run: those without a ``run`` are fragments, read after train."""
    train = next((path for path in configs(bundle) if path.stem == "train"), None)
    return [[path] if "run" in ConfigParser.load_config_file(path) else [train, path] for path in configs(bundle)]


def parser_of(bundle: Path, files: list[Path]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.read_meta(str(bundle / "configs/metadata.json"))
    parser["bundle_root"] = str(bundle)
    return parser


def strings(config: object):
    if isinstance(config, dict):
        for key, value in config.items():
            yield from strings(value)
            yield str(key), value
    elif isinstance(config, list):
        for value in config:
            yield from strings(value)
            yield "", value


def test_files_of_a_bundle(bundle: Path):
    for name in ("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md"):
        assert (bundle / name).is_file(), name
    needed = {"evaluate", "inference"} if bundle.name in EVALUATING else {"train", "multi_gpu_train"}
    assert needed <= {path.stem for path in configs(bundle)}
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", bundle.name)
    for path in bundle.rglob("*"):
        assert not path.is_file() or path.stat().st_size < LARGEST_FILE, path


def test_metadata_is_complete_and_its_version_is_in_the_changelog(bundle: Path, tmp_path: Path):
    schema = tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)  # MONAI downloads the schema only if there is none
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(schema))
    assert metadata(bundle)["version"] in metadata(bundle)["changelog"]


def test_metadata_names_versions_that_are_not_newer_than_the_installed(bundle: Path):
    """The zoo pins them; here a later release of a dependency must not fail the tests."""
    meta = metadata(bundle)
    named = {"monai": meta["monai_version"], "torch": meta["pytorch_version"], "numpy": meta["numpy_version"]}
    named |= meta["required_packages_version"]
    assert "monai-ssl" in named
    assert named["monai-ssl"] == version("monai-ssl")
    assert not {name: number for name, number in named.items() if Version(version(name)) < Version(number)}


def test_readme_has_the_sections_of_the_template(bundle: Path):
    text = (bundle / "docs/README.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    missing = [section for section in SECTIONS if section not in headings]
    assert text.startswith("# ") and not missing, missing
    assert "python -m monai.bundle run" in text


def test_targets_are_full_paths_to_things_that_exist(bundle: Path):
    for path in configs(bundle):
        for key, value in strings(ConfigParser.load_config_file(path)):
            if key != "_target_" or str(value).startswith(("$", "@")):
                continue
            module, _, name = str(value).rpartition(".")
            parents = []
            while module and importlib.util.find_spec(module.split(".")[0]) is not None:
                try:
                    found = importlib.import_module(module)
                    break
                except ModuleNotFoundError:
                    module, _, parent = module.rpartition(".")
                    parents.insert(0, parent)
            assert module, f"{path.name}: {value} is no full path"
            for part in [*parents, name]:
                found = getattr(found, part)


def test_no_absolute_path_and_no_function_in_a_config(bundle: Path):
    for path in configs(bundle):
        for key, value in strings(ConfigParser.load_config_file(path)):
            if isinstance(value, str):
                assert not ABSOLUTE_PATH.match(value), f"{path.name}: {key}: {value}"
                assert "lambda" not in value, f"{path.name}: {key}: functions belong into the package"


def test_every_reference_has_its_item(bundle: Path):
    for files in file_sets(bundle):
        parser = parser_of(bundle, files)
        parser.parse(reset=True)
        items = parser.ref_resolver.items
        for item_id, item in items.items():
            for reference in ReferenceResolver.find_refs_in_config(config=item.get_config(), id=item_id):
                assert reference in items, f"{files[-1].name}: {item_id} refers to @{reference}"


def test_what_users_set_has_the_same_names_everywhere(bundle: Path):
    for files in file_sets(bundle):
        parser = parser_of(bundle, files)
        assert {"bundle_root", "dataset_dir", "output_dir", "device"} <= parser.get().keys(), files[-1].name
        assert "refuse_unknown_keys" in str(parser["initialize"]), f"{files[-1].name}: a misspelt override is silent"
    if bundle.name in EVALUATING:
        return
    trained = parser_of(bundle, next(files for files in file_sets(bundle) if files[0].stem == "train")).get()
    assert {"max_epochs", "batch_size", "learning_rate", "seed", "resume"} <= trained.keys()


def test_network_takes_and_gives_what_the_metadata_says(bundle: Path):
    config = inference_config(bundle)
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(config),
        device="cpu",
        bundle_root=str(bundle),
    )


def test_weights_export_to_torchscript(bundle: Path, tmp_path: Path):
    config = inference_config(bundle)
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    model = copy / "models/model.pt"
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        parser = parser_of(copy, [copy / "configs" / config.name])
        torch.save(parser.get_parsed_content("network_def").state_dict(), model)
    state = torch.load(model, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    ckpt_export(
        net_id="network_def",
        filepath=str(copy / "models/model.ts"),
        ckpt_file=str(model),
        meta_file=str(copy / "configs/metadata.json"),
        config_file=str(copy / "configs" / config.name),
        bundle_root=str(copy),
        use_trace=bundle.name in TRACED,
    )
    exported = torch.jit.load(str(copy / "models/model.ts"))
    assert exported.state_dict().keys() == state.keys()
