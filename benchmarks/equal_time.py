# SPDX-License-Identifier: Apache-2.0
"""Quality per minute: frozen features after the same wall-clock time of pretraining, ours beside lightly's.

Everybody gets the same images (those of the bundle's pool, at the size they are stored at), the same network with the
same first weights, the same size of views, the same threads, and as many minutes. The clock runs from the first batch
to the last step, our measurement of precision and memory format included; indexing and storing the images, which both
sides are spared, is not. Then a linear probe is fitted to the frozen features with a share of the labels, the same
images for everybody, several times, drawn by patient, and scored on the test images.

* ours, SimCLR and MoCo v2: the bundle radiograph_joint_embedding_pretraining as it is, with a time budget in place of
  its handlers.
* lightly, SimCLR: its README's loop (SGD at 0.1, batches of 128, temperature 0.5, fp32). lightly, MoCo v2: its example
  (SGD at 0.06, batches of 256, a bank of 4,096, momentum from 0.996 to 1). Its transforms are set to grey.
* lightly tuned, SimCLR (only if asked for): lightly's parts with our recipe: batch, temperature, AdamW with warm-up and
  cosine, bf16 and channels_last.
* random features: the network as it starts. Raw pixels: the image at 32 x 32.

Each cell runs in a process of its own and leaves a JSON file; finished cells are kept, so the same command goes on
where it stopped. The environment needs monai_ssl and lightly, see benchmarks/requirements.txt.

    python -m benchmarks.equal_time --dataset_dir FOLDER --output_dir OUT --where "source=Kermany*" \
        --label_column label --minutes 10 --threads 2
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader

from benchmarks import report
from benchmarks.peers import lightly
from benchmarks.rounds import Spread

BUNDLE = Path(__file__).parents[1] / "bundles/radiograph_joint_embedding_pretraining"
STORED_SIDE = 256  # the bundle's
PIXELS = 32
_UNKNOWN = 1000  # epochs, until the first one was timed
TRAINING: dict[str, Any] = {"device": "cpu", "stored_side": STORED_SIDE}  # further overrides of the bundle
# Settings that all cells of one folder share.
SHARED = ("dataset_dir", "where", "label_column", "minutes", "threads", "image_size", "architecture", "label_fraction")


# ---- contestants -----------------------------------------------------------------------------------------------------


def train_ours(fragment: str | None, arguments: argparse.Namespace, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train by the bundle for some minutes; return the encoder and facts."""
    from monai.bundle import ConfigParser

    from monai_ssl.handlers import TimeBudget

    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.yaml") for name in ("train", fragment) if name])
    overrides = {
        "bundle_root": str(BUNDLE),
        "output_dir": arguments.output_dir,  # whose folder data holds the store
        "dataset_dir": arguments.dataset_dir,
        "where": arguments.where,
        "image_size": arguments.image_size,
        "network": first_encoder(arguments, seed),
        "seed": seed,
        "max_epochs": _UNKNOWN,
        "train#handlers": [],
    }
    parser.update(overrides | TRAINING)
    trainer = parser.get_parsed_content("train#trainer")
    budget = TimeBudget(arguments.minutes)
    budget.attach(trainer)
    trainer.run()
    facts = {
        "seconds": budget.seconds,
        "steps": trainer.optimizer_steps,
        "images": trainer.state.iteration * parser.get_parsed_content("batch_size"),
        "precision": trainer.precision,
        "channels_last": bool(trainer.channels_last),
        "schedule_ended": trainer.optimizer_steps == trainer.total_steps,
    }
    return trainer.method.encoder, facts


def train_lightly(method: str, arguments: argparse.Namespace, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train by lightly's loop for some minutes; return the encoder and facts."""
    encoder = first_encoder(arguments, seed)
    loop = {"simclr": _ReadmeSimCLR, "moco_v2": _ExampleMoCo, "simclr_tuned": _TunedSimCLR}[method](encoder)
    transforms = lightly("lightly.transforms")
    policy = transforms.MoCoV2Transform if method == "moco_v2" else transforms.SimCLRTransform
    grey = {"cj_sat": 0.0, "cj_hue": 0.0, "random_gray_scale": 0.0, "normalize": {"mean": [0.5], "std": [0.25]}}
    views = policy(input_size=arguments.image_size, **grey)
    dataset = lightly("lightly.data").LightlyDataset(
        input_dir=str(pool_folder(arguments)), transform=lambda picture: views(picture.getchannel(0))
    )
    batch = min(loop.batch, len(dataset))  # a pool of fewer images is one batch
    loader = DataLoader(dataset, batch, shuffle=True, drop_last=loop.drop_last)
    start, limit = time.perf_counter(), 60 * arguments.minutes
    steps, images, epoch, total = 0, 0, 0, _UNKNOWN
    while (passed := time.perf_counter() - start) < limit:
        if epoch:  # epochs that there will be, for the schedules
            total = max(epoch + 1, round(epoch * limit / passed))
        for pair, _, _ in loader:
            loop.step(pair, epoch, total, min(1.0, (time.perf_counter() - start) / limit))
            steps, images = steps + 1, images + len(pair[0])
            if time.perf_counter() - start >= limit:
                break
        epoch += 1
    facts = {
        "seconds": time.perf_counter() - start,
        "steps": steps,
        "images": images,
        "precision": "bf16" if loop.fast else "fp32",
        "channels_last": loop.fast,
        "schedule_ended": True,
    }
    return encoder, facts


class _ReadmeSimCLR:
    """lightly's README, "Lightly in Action", on our encoder."""

    batch, drop_last, fast = 128, False, False
    temperature = 0.5

    def __init__(self, encoder: nn.Module) -> None:
        heads, losses = lightly("lightly.models.modules.heads"), lightly("lightly.loss")
        width = encoder.num_features
        self.model = nn.Sequential(encoder, nn.Flatten(), heads.SimCLRProjectionHead(width, width, 128))
        self.criterion = losses.NTXentLoss(temperature=self.temperature)
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1, weight_decay=1e-6)

    def step(self, views: list[Tensor], epoch: int, epochs: int, share: float) -> None:
        """One step; ``share``: of the time that has passed."""
        first, second = (self.model(view) for view in views)
        loss = self.criterion(first, second)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # the README prints it


class _TunedSimCLR(_ReadmeSimCLR):
    """The same with the bundle's recipe, as far as lightly has its parts, and the faster arithmetic."""

    batch, drop_last, fast = 64, True, True
    temperature, learning_rate, warmup = 0.1, 1e-3, 0.1

    def make_optimizer(self) -> torch.optim.Optimizer:
        self.model.to(memory_format=torch.channels_last)
        return torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=0.05)

    def step(self, views: list[Tensor], epoch: int, epochs: int, share: float) -> None:
        """One step of warm-up and cosine over the time."""
        rest = (share - self.warmup) / (1 - self.warmup)
        factor = share / self.warmup if share < self.warmup else (1 + np.cos(np.pi * rest)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * max(factor, 1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            first, second = (self.model(view.contiguous(memory_format=torch.channels_last)) for view in views)
        loss = self.criterion(first.float(), second.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class _ExampleMoCo:
    """lightly's example of MoCo v2, on our encoder."""

    batch, drop_last, fast = 256, True, False

    def __init__(self, encoder: nn.Module) -> None:
        heads, losses = lightly("lightly.models.modules.heads"), lightly("lightly.loss")
        width = encoder.num_features
        self.model = nn.Sequential(encoder, nn.Flatten(), heads.MoCoProjectionHead(width, width, 128))
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.criterion = losses.NTXentLoss(memory_bank_size=(4096, 128))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)

    def step(self, views: list[Tensor], epoch: int, epochs: int, share: float) -> None:
        """One step; the momentum goes by the epoch, as in the example."""
        momentum = lightly("lightly.utils.scheduler").cosine_schedule(min(epoch, epochs - 1), epochs, 0.996, 1)
        lightly("lightly.models.utils").update_momentum(self.model, self.teacher, m=momentum)
        query, key = self.model(views[0]), self.teacher(views[1]).detach()
        self.criterion(query, key).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def first_encoder(arguments: argparse.Namespace, seed: int) -> nn.Module:
    """The network as everybody starts from it; seeds torch."""
    from monai_ssl.networks import build_encoder

    torch.manual_seed(seed)
    return build_encoder(arguments.architecture, 2, 1)


CONTESTANTS: dict[str, Callable[[argparse.Namespace, int], tuple[nn.Module | None, dict[str, Any]]]] = {
    "ours SimCLR": lambda arguments, seed: train_ours(None, arguments, seed),
    "ours MoCo v2": lambda arguments, seed: train_ours("moco_v2", arguments, seed),
    "lightly SimCLR": lambda arguments, seed: train_lightly("simclr", arguments, seed),
    "lightly MoCo v2": lambda arguments, seed: train_lightly("moco_v2", arguments, seed),
    "random features": lambda arguments, seed: (first_encoder(arguments, seed), {}),
    "raw pixels": lambda arguments, seed: (None, {}),
    "lightly SimCLR tuned": lambda arguments, seed: train_lightly("simclr_tuned", arguments, seed),
}
DEFAULT = [name for name in CONTESTANTS if not name.endswith("tuned")]


# ---- images and probe ------------------------------------------------------------------------------------------------


def open_store(arguments: argparse.Namespace):
    """The store that the bundle trains on."""
    from monai_ssl.data import open_radiographs

    return open_radiographs(
        arguments.dataset_dir, Path(arguments.output_dir) / "data", max_side=STORED_SIDE, progress=False
    )


def pool_folder(arguments: argparse.Namespace) -> Path:
    """Where lightly's images lie."""
    return Path(arguments.output_dir) / "data/grey8"


def write_pool(arguments: argparse.Namespace) -> int:
    """Write the pool's images as 8-bit PNG files for lightly, once; return their number."""
    from monai_ssl.data import pretraining_rows

    store = open_store(arguments)
    rows, folder = pretraining_rows(store, where=arguments.where), pool_folder(arguments)
    wanted = {folder / f"{row:06d}.png": row for row in rows.tolist()}
    folder.mkdir(parents=True, exist_ok=True)
    for path in set(folder.iterdir()) - wanted.keys():
        path.unlink()  # of another filter
    for path, row in wanted.items():
        if not path.is_file():
            unfinished = path.with_suffix(".part")
            grey = np.asarray(store.read(row)).squeeze()  # float32 in [0, 1]
            Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8)).save(unfinished, format="PNG")
            unfinished.rename(path)
    return len(wanted)


def questions(store, arguments: argparse.Namespace) -> list:
    """What the probes are asked, a question for each draw of the labelled images.

    Raises:
        ValueError: the labels can't answer it.
    """
    from monai_ssl.evaluation import classification_labels

    options = {"where": arguments.where, "label_fraction": arguments.label_fraction, "splits": ("train", "test")}
    column = arguments.label_column
    return [classification_labels(store, column, seed=draw, **options) for draw in range(arguments.draws)]


def probe(encoder: nn.Module | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Test AUC of linear probes on frozen features, for each draw of the labels."""
    from monai_ssl.data import PadCollate, StoreDataset
    from monai_ssl.evaluation import extract_features, linear_probe
    from monai_ssl.metrics import area_under_roc
    from monai_ssl.transforms import evaluation_view

    store = open_store(arguments)
    draws = questions(store, arguments)
    rows = np.union1d(draws[0].rows["pool"], draws[0].rows["test"])
    loader = DataLoader(StoreDataset(store, rows), 64, collate_fn=PadCollate())
    view = evaluation_view(arguments.image_size)
    if encoder is None:
        features = torch.cat([_pixels(view(batch["image"], None, batch.get("extent"))) for batch in loader]).numpy()
    else:
        encoder.float().to(memory_format=torch.contiguous_format)
        features = extract_features(encoder, loader, view)[0].numpy()
    areas = []
    for draw, labels in enumerate(draws):
        of = {name: features[np.searchsorted(rows, labels.rows[name])] for name in ("pool", "train", "test")}
        train, test = labels.rows["train"], labels.rows["test"]
        fitted = linear_probe(
            of["train"],
            labels.targets[train],
            reference=of["pool"],
            groups=labels.groups[train],
            num_classes=None if labels.multilabel else len(labels.class_names),
            class_names=labels.class_names,
            seed=draw,
        )
        areas.append(area_under_roc(labels.targets[test], fitted.probabilities(of["test"])))
    return {
        "auc": areas,
        "labels": [len(labels.rows["train"]) for labels in draws],
        "subsets": [labels.subset_hash for labels in draws],
        "pool": len(draws[0].rows["pool"]),
        "test": len(draws[0].rows["test"]),
        "classes": draws[0].class_names,
    }


def _pixels(view: Tensor) -> Tensor:
    return adaptive_avg_pool2d(view, PIXELS).flatten(1)


# ---- cells -----------------------------------------------------------------------------------------------------------


def cell_path(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a cell's result lies."""
    return Path(arguments.output_dir) / "cells" / name.lower().replace(" ", "_") / f"seed-{seed}.json"


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What cells must share to be compared."""
    return {name: getattr(arguments, name) for name in SHARED} | {"draws": arguments.draws}


def run_cell(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """Train, probe and write the result (in a process of its own)."""
    torch.set_num_threads(arguments.threads)
    start = report.moment()
    encoder, facts = CONTESTANTS[name](arguments, seed)
    ended = report.moment()
    result = {"contestant": name, "seed": seed, "settings": settings_of(arguments), "training": facts}
    result |= {"start": start, "end": ended, "machine": report.machine(), "probe": probe(encoder, arguments)}
    path = cell_path(arguments, name, seed)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(path)


def start_cell(arguments: argparse.Namespace, name: str, seed: int) -> bool:
    """Run a cell, unless its result is there; return whether there is one now."""
    path = cell_path(arguments, name, seed)
    if path.is_file():
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    values = vars(arguments) | {"cell": name, "cell_seed": seed}
    command = [sys.executable, "-m", "benchmarks.equal_time", "--one_cell", json.dumps(values)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    with open(path.with_suffix(".log"), "w", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    done = "done" if status == 0 else f"FAILED ({status}), see {path.with_suffix('.log')}"
    print(f"{name}, seed {seed}: {done}", flush=True)
    return status == 0


def read_cells(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Results that are there, of all contestants in their order.

    Raises:
        SystemExit: one was made with other settings.
    """
    for name in CONTESTANTS:
        for path in sorted(cell_path(arguments, name, 0).parent.glob("seed-*.json")):
            cell = json.loads(path.read_text(encoding="utf-8"))
            now = settings_of(arguments)
            differing = [key for key, value in now.items() if cell["settings"].get(key) != value]
            if differing:
                told = "; ".join(f"{key}: {cell['settings'].get(key)} and {now[key]}" for key in differing)
                raise SystemExit(f"{path} was made with other settings ({told}): use another output_dir")
            yield cell


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: one row a contestant."""
    columns = ["contestant", "seeds", "test AUC (seeds' least to greatest)", "sd over draws", "minutes", "steps"]
    columns += ["images a second", "computed in"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name in dict.fromkeys(cell["contestant"] for cell in cells):
        own = [cell for cell in cells if cell["contestant"] == name]
        means = [np.mean(cell["probe"]["auc"]) for cell in own]
        spread = np.mean([np.std(cell["probe"]["auc"]) for cell in own])
        row = [name, len(own), f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})", f"{spread:.3f}"]
        trained = [cell["training"] for cell in own if cell["training"]]
        if trained:
            rates = Spread.of(fact["images"] / fact["seconds"] for fact in trained)
            formats = {f"{f['precision']}, channels {'last' if f['channels_last'] else 'first'}" for f in trained}
            minutes, steps = np.mean([f["seconds"] for f in trained]) / 60, Spread.of(f["steps"] for f in trained)
            row += [f"{minutes:.2f}", steps, rates, "; ".join(sorted(formats))]
        else:
            row += ["-"] * 4
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


def described(cells: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """What the table's figures were made with."""
    first, settings = cells[0]["probe"], settings_of(arguments)
    loads = Spread.of(moment["load_average"][0] for cell in cells for moment in (cell["start"], cell["end"]))
    host = cells[0]["machine"]
    return (
        f"{host['cpu']}, {host['cpus']} CPUs, {settings['threads']} threads for everybody, load average {loads}. "
        f"{settings['architecture']}, views of {settings['image_size']} px, {settings['minutes']:g} minutes; "
        f"{first['pool']} images to train on. Linear probe with {settings['label_fraction']:.0%} of the labels "
        f"({Spread.of(first['labels'])} images), {settings['draws']} draws by patient, macro AUC on {first['test']} "
        f"test images, classes {', '.join(first['classes'])}.\n"
    )


def main() -> int:
    if sys.argv[1:2] == ["--one_cell"]:
        arguments = argparse.Namespace(**json.loads(sys.argv[2]))
        run_cell(arguments, arguments.cell, arguments.cell_seed)
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--where", help="which images, as for the bundle")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--label_fraction", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=10, help="of the labelled images")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each contestant")
    parser.add_argument("--contestants", nargs="+", default=DEFAULT, choices=list(CONTESTANTS), metavar="NAME")
    arguments = parser.parse_args()
    arguments.dataset_dir, arguments.output_dir = (
        str(Path(folder).resolve()) for folder in (arguments.dataset_dir, arguments.output_dir)
    )
    if any(name.startswith("lightly") for name in arguments.contestants) and lightly() is None:
        parser.error("lightly is not here: take an environment made by benchmarks/requirements.txt")
    list(read_cells(arguments))  # refuses other settings before anything is trained
    start = time.perf_counter()
    images = write_pool(arguments)
    questions(open_store(arguments), arguments)  # refuses labels that would not do in the end
    print(f"{images} images to train on, ready after {time.perf_counter() - start:.0f} s", flush=True)
    # By seeds, and in turns: a slow hour then meets all contestants.
    done = [start_cell(arguments, name, seed) for seed in range(arguments.seeds) for name in arguments.contestants]
    cells = list(read_cells(arguments))
    if cells:
        text = described(cells, arguments) + "\n" + table(cells)
        (Path(arguments.output_dir) / "equal_time.md").write_text(text, encoding="utf-8")
        print(text)
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
