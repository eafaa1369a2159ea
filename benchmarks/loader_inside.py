"""What our loader adds to the work that has to be done, and whether its processes keep their memory."""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, Options, alternate, figures
from benchmarks.images import photo_tree
from benchmarks.loader import BATCH, CROP_SCALE, SIZE, WORKERS

OVERHEAD_GOAL = 0.15
SAMPLES = 200_000
GROWTH_GOAL = 20.0


def measure_overhead(options: Options, work: Path) -> list[Comparison]:
    """Under a minute."""
    batches = 3 if options.quick else 20
    folder = photo_tree(options.images, work, (batches + 2) * BATCH)
    runs = alternate(["loader_inside.overhead"], {"folder": str(folder), "batches": batches}, options.rounds)
    shares = figures(runs["loader_inside.overhead"], "share")
    return [
        Comparison(
            "overhead",
            "share of the loader's CPU time, one process, beyond reading, decoding, resizing, mirroring and copying",
            "",
            tuple(shares),
            (),
            statistics.median(shares),
            OVERHEAD_GOAL,
            at_least=False,
        )
    ]


def measure_memory(options: Options, work: Path) -> list[Comparison]:
    """One epoch of 200,000 samples: 3 to 6 minutes on 2 cores."""
    samples = 3_000 if options.quick else SAMPLES
    folder = photo_tree(options.images, work, 20 * BATCH)
    result = alternate(["loader_inside.memory"], {"folder": str(folder), "samples": samples}, 1)[
        "loader_inside.memory"
    ][0]
    growth = result["growth_mb"]
    return [
        Comparison(
            "memory",
            f"growth of a loader process over {samples} samples, its own memory (slope of the last three quarters)",
            "MB",
            (growth,),
            (),
            growth,
            GROWTH_GOAL,
            at_least=False,
            notes=dict(result),
        )
    ]


def overhead(folder: str, batches: int) -> dict[str, float]:
    """The loader's items and batches, and the same bare calls, in turn, in this process. CPU time."""
    import torch

    from cvpipe.data.batches import seed_of
    from cvpipe.data.loader import Collate
    from cvpipe.data.transforms import random_crop

    torch.set_num_threads(1)
    data = _data(folder, 1)
    loader = data.measured_loader(0)
    dataset: Any = loader.dataset
    collate = Collate(data.collate_targets)
    augment = data.config.data.augment
    ours, bare = [], []
    for number, keys in zip(range(batches + 2), loader.batches, strict=False):
        start = time.thread_time()
        batch = collate([dataset[key] for key in keys])
        ours.append(time.thread_time() - start)
        plan = []
        for key in keys:
            rng = random.Random(seed_of(dataset.seed, key[0], key[1]))
            size = _size(str(dataset.paths[key[2]]))
            plan.append((str(dataset.paths[key[2]]), random_crop(*size, augment, rng), rng.random() < augment.hflip))
        start = time.thread_time()
        expected = _bare(plan)
        bare.append(time.thread_time() - start)
        if number == 0 and not torch.equal(batch.images, expected):
            raise RuntimeError("the bare calls make other pixels than the loader: the comparison means nothing")
    # the first batches load code and warm caches
    return {"share": 1 - sum(bare[2:]) / sum(ours[2:]), "ours_ms": 1e3 * sum(ours[2:]) / (batches * BATCH)}


def _bare(plan: list[tuple[str, tuple[int, int, int, int], bool]]) -> Any:
    """Read, decode, crop, resize, mirror, put together: nothing else."""
    import torch
    from torch.nn import functional as F
    from torchvision.io import ImageReadMode, decode_jpeg

    images = []
    for path, (top, left, height, width), mirror in plan:
        data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
        image = decode_jpeg(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        part = image[:, top : top + height, left : left + width].permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        small = F.interpolate(part, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)[0]
        images.append((small.flip([-1]) if mirror else small).permute(1, 2, 0))
    return torch.stack(images).permute(0, 3, 1, 2)


def _size(path: str) -> tuple[int, int]:
    from cvpipe.data.tiles import image_size

    return image_size(path)


def memory(folder: str, samples: int) -> dict[str, float]:
    """One epoch by two processes; the memory that belongs to them alone, 100 times."""
    import numpy as np
    import psutil

    data = _data(folder, samples)
    loader = data.measured_loader(WORKERS)
    seen, every = 0, max(BATCH, samples // 100)
    points: list[tuple[int, float]] = []
    for batch in loader:
        before, seen = seen, seen + len(batch.indices)
        if before // every != seen // every:
            sizes = [child.memory_full_info().uss for child in psutil.Process().children()]
            points.append((seen, sum(sizes) / len(sizes) / 1e6))
    x, y = np.array(points[len(points) // 4 :]).T
    slope = float(np.polyfit(x, y, 1)[0])
    return {"growth_mb": slope * samples, "mb_a_1000": slope * 1000, "first_mb": float(y[0]), "last_mb": float(y[-1])}


def _data(folder: str, samples: int) -> Any:
    """The data module of our benchmark, with the photos repeated until there are that many."""
    from dataclasses import replace

    from cvpipe.config_file import parse_config
    from cvpipe.data.splits import Split
    from cvpipe.task import find_task

    augment = {"crop_scale": list(CROP_SCALE), "color_jitter": 0.0}
    config = parse_config(
        {
            "task": "classification",
            "model": {"pretrained": False},
            "data": {"train": folder, "image_size": SIZE, "augment": augment},
            "training": {"batch_size": BATCH, "num_workers": 0},
        }
    )
    task = find_task("classification")
    splits = task.load_data(config)
    train = splits.train
    rounds = -(-samples // len(train))
    if rounds > 1:
        train = Split(train.name, (train.paths * rounds)[:samples], (tuple(train.targets) * rounds)[:samples])
    return task.data_module(config, replace(splits, train=train))
