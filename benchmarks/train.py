"""The training loop: `cvpipe train` against a loop written by hand, with the same network, data and loader.

Ours is the whole command: Lightning, all callbacks, the MLflow tracker on SQLite and system metrics. Both sides take
their batches from the same loader class, which notes when it handed out each of them. What is timed begins after the
first batches and ends with the last one of the epoch; start-up, validation and the model's registration are not in it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, Options, alternate, compare, figures
from benchmarks.images import CLASSES, photo_tree

GOAL = 1.05
SIZE = 96
BATCH = 32
WARMUP = 8
NETWORK = "resnet18"
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.01, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(options: Options, work: Path) -> list[Comparison]:
    batches = WARMUP + (8 if options.quick else 20)
    settings = {"folder": str(photo_tree(options.images, work, batches * BATCH)), "device": options.device}
    runs = alternate(["train.cvpipe", "train.by_hand"], settings, options.rounds)
    what = f"cvpipe train, {NETWORK} at {SIZE} pixels, batches of {BATCH}, against a loop by hand"
    ours, theirs = (figures(runs[f"train.{side}"], "ms_per_image") for side in ("cvpipe", "by_hand"))
    return [compare("train/step", what, "ms/image", ours, theirs, goal=GOAL, at_least=False)]


def cvpipe(folder: str, device: str) -> dict[str, float]:
    """The real command."""
    from cvpipe.training.train import train

    stamps = _note_batches()
    with tempfile.TemporaryDirectory() as work:
        train(_values(folder, device, Path(work)))
    return _per_image(stamps)


def by_hand(folder: str, device: str) -> dict[str, float]:
    """The loop that one would write, with the parts that our defaults name."""
    import timm
    import torch
    from torch.nn import functional as F

    from cvpipe.config_file import parse_config
    from cvpipe.task import find_task
    from cvpipe.utils.device import choose_device

    stamps = _note_batches()
    with tempfile.TemporaryDirectory() as work:
        config = parse_config(_values(folder, device, Path(work)))
    task = find_task("classification")
    loader = task.data_module(config, task.load_data(config)).train_dataloader()

    place = choose_device(device)
    half = place.type == "cuda"
    if half:
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = timm.create_model(NETWORK, num_classes=CLASSES).to(place).to(memory_format=torch.channels_last)
    mean = torch.tensor(MEAN, device=place).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=place).view(1, 3, 1, 1) * 255
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    steps = len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    model.train()
    printed = time.perf_counter()
    for step, batch in enumerate(loader):
        images = batch.images.to(place, non_blocking=True)
        targets = batch.targets.to(place, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
            logits = model((images.float() - mean) / std)
            loss = F.cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if time.perf_counter() - printed > 10:
            print(f"step {step} loss {loss.item():.4f}")
            printed = time.perf_counter()
    return _per_image(stamps)


def _values(folder: str, device: str, work: Path) -> dict[str, Any]:
    return {
        "task": "classification",
        "model": {"name": NETWORK, "pretrained": False},
        "data": {"train": folder, "image_size": SIZE},
        "training": {
            "batch_size": BATCH,
            "epochs": 1,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "gradient_clip": CLIP,
            "optimizer": "adamw",
            "device": device,
            "output_dir": str(work / "run"),
        },
        "evaluation": {"bootstrap": 0, "gallery": 0},
        "tracking": {"tracking_uri": f"sqlite:///{work / 'mlflow.db'}"},
    }


def _note_batches() -> list[tuple[float, int]]:
    """From now on training loaders note in this list when they hand out a batch, and how many images it has."""
    import cvpipe.data.module
    from cvpipe.data.loader import Batch, Loader

    stamps: list[tuple[float, int]] = []

    class NotingLoader(Loader):
        def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
            for batch in super().__iter__():
                if self.batches.shuffle:
                    stamps.append((time.perf_counter(), len(batch.indices)))
                yield batch

    setattr(cvpipe.data.module, "Loader", NotingLoader)  # noqa: B010
    return stamps


def _per_image(stamps: list[tuple[float, int]]) -> dict[str, float]:
    """From handing out one batch to handing out the last one: the work on all between them."""
    seconds = stamps[-1][0] - stamps[WARMUP][0]
    images = sum(count for _, count in stamps[WARMUP:-1])
    return {"ms_per_image": 1000 * seconds / images}
