"""Training batches from JPEG folders: ours against ImageFolder + Pillow + v2 transforms + DataLoader.

The same photos, crop, flip, colour jitter, batch size, worker processes and page-locked memory on both sides. The
peer's batches are normalised floats; ours are uint8, because our network normalises by itself. What it costs to
normalise them in the process that takes them is shown beside the goal, as `loader/…+normalise`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, Options, alternate, compare, figures
from benchmarks.images import photo_tree

GOAL = 2.0
SIZE = 224
BATCH = 32
WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_SCALE = (0.4, 1.0)
# more than both loaders hold ready: the buffers are empty at both ends of what is timed
WARMUP = 12


def measure(options: Options, work: Path) -> list[Comparison]:
    batches = 15 if options.quick else 60
    folder = photo_tree(options.images, work, (batches + WARMUP + 1) * BATCH)
    found = []
    for name, jitter in (("plain", 0.0), ("jitter", 0.2)):
        settings = {"folder": str(folder), "batches": batches, "jitter": jitter}
        engines = ["loader.cvpipe", "loader.torchvision", "loader.cvpipe_normalised"]
        runs = alternate(engines, settings, options.rounds)
        what = "crop and flip" if jitter == 0 else "crop, flip and colour jitter"
        for engine, suffix, goal in (("loader.cvpipe", "", GOAL), ("loader.cvpipe_normalised", "+normalise", None)):
            found.append(
                compare(
                    f"loader/{name}{suffix}",
                    f"loader, {what}, {WORKERS} processes, against ImageFolder + Pillow + v2",
                    "images/s",
                    figures(runs[engine], "images_per_second"),
                    figures(runs["loader.torchvision"], "images_per_second"),
                    goal=goal,
                    at_least=True,
                )
            )
    return found


def cvpipe(folder: str, batches: int, jitter: float) -> dict[str, float]:
    """Our loader: what our network takes, uint8."""
    return _rate((batch.images for batch in _our_loader(folder, jitter)), batches)


def cvpipe_normalised(folder: str, batches: int, jitter: float) -> dict[str, float]:
    """Our loader, and the normalisation that our network would do."""
    import torch

    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    loader = _our_loader(folder, jitter)
    return _rate((batch.images.float().sub_(mean).div_(std) for batch in loader), batches)


def _our_loader(folder: str, jitter: float) -> Any:
    from cvpipe.config_file import parse_config
    from cvpipe.data.prepared import read_splits
    from cvpipe.task import find_task

    config = parse_config(
        {
            "task": "classification",
            "model": {"pretrained": False},
            "data": {
                "train": folder,
                "image_size": SIZE,
                "augment": {"crop_scale": list(CROP_SCALE), "color_jitter": jitter},
            },
            "training": {"batch_size": BATCH, "num_workers": WORKERS},
        }
    )
    task = find_task("classification")
    return task.data_module(config, read_splits(task, config)).train_dataloader()


def torchvision(folder: str, batches: int, jitter: float) -> dict[str, float]:
    """What the documentation of torchvision shows."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    colour = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=CROP_SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            *colour,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        ImageFolder(str(Path(folder) / "train"), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    return _rate((images for images, _ in loader), batches)


def _rate(images: Iterable[Any], batches: int, warm_up: int = WARMUP) -> dict[str, float]:
    """Images a second once the worker processes have started and the first buffers are used up."""
    source = iter(images)
    for _ in range(warm_up):
        next(source)
    start = time.perf_counter()
    count = sum(len(next(source)) for _ in range(batches))
    return {"images_per_second": count / (time.perf_counter() - start)}
