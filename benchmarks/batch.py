"""Batch inference: `cvpipe predict` against a DataLoader over a folder and a loop.

The peer decodes and resizes with Pillow and torchvision v2 in two worker processes and runs the float network in
inference mode. Both sides give softmax scores of the same network for the same photos.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.compare import Comparison, Options, alternate, compare, figures
from benchmarks.images import CLASSES, photo_tree

GOAL = 1.5
SIZE = 224
BATCH = 32
WORKERS = 2
WARMUP = 2 * BATCH
# not timed at the end: what both sides hold ready by then, so that nobody gains by having decoded ahead
TAIL = 5 * BATCH
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure(options: Options, work: Path) -> list[Comparison]:
    found = []
    for network, images in (("resnet18", 320), ("resnet50", 160)):
        count = images // 5 if options.quick else images
        folder = photo_tree(options.images, work, WARMUP + count + TAIL)
        settings = {
            "folder": str(folder),
            "bundle": str(_bundle(network, folder, work)),
            "network": network,
            "device": options.device,
        }
        runs = alternate(["batch.cvpipe", "batch.dataloader"], settings, options.rounds)
        found.append(
            compare(
                f"batch/{network}",
                f"batch inference, {network} at {SIZE} pixels, against DataLoader + eager loop",
                "images/s",
                figures(runs["batch.cvpipe"], "images_per_second"),
                figures(runs["batch.dataloader"], "images_per_second"),
                goal=GOAL,
                at_least=True,
                notes={"command_images_per_second": figures(runs["batch.cvpipe"], "command_images_per_second")},
            )
        )
    return found


def cvpipe(folder: str, bundle: str, network: str, device: str) -> dict[str, float]:
    """Predictor.stream over the paths; then the whole command, its start-up, journal and output file included."""
    import tempfile

    from cvpipe.data.sources import list_images
    from cvpipe.inference.batch_inference import predict
    from cvpipe.predictor import Predictor

    predictor = Predictor.load(bundle, device=device, batch_size=BATCH)
    paths = list_images(Path(folder) / "train")
    stamps = [time.perf_counter() for _ in predictor.stream(paths)]
    first, last = WARMUP - 1, len(paths) - TAIL - 1
    rate = (last - first) / (stamps[last] - stamps[first])
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        result = predict(predictor, paths[TAIL:], Path(output) / "predictions.json")
        whole = result.images / (time.perf_counter() - start)
    return {"images_per_second": rate, "command_images_per_second": whole}


def dataloader(folder: str, bundle: str, network: str, device: str) -> dict[str, float]:
    """What one writes by hand: worker processes, float images, an eager network."""
    import timm
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(256, antialias=True),
            v2.CenterCrop(SIZE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    cuda = torch.cuda.is_available() and device != "cpu"
    place = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    model = timm.create_model(network, num_classes=CLASSES).eval().to(place)
    loader = DataLoader(
        ImageFolder(str(Path(folder) / "train"), transform), batch_size=BATCH, num_workers=WORKERS, pin_memory=cuda
    )
    scores: list[Any] = []
    stamps: list[float] = []
    with torch.inference_mode():
        for images, _ in loader:
            answers = model(images.to(place, non_blocking=True)).softmax(1).cpu()
            scores.extend(answers)
            stamps += [time.perf_counter()] * len(answers)
    first, last = WARMUP - 1, len(stamps) - TAIL - 1
    return {"images_per_second": (last - first) / (stamps[last] - stamps[first])}


def _bundle(network: str, folder: Path, work: Path) -> Path:
    """A model as training leaves it, with random weights."""
    from cvpipe.bundle import Bundle
    from cvpipe.config_file import parse_config
    from cvpipe.task import find_task

    path = work / f"bundle-{network}"
    if not path.is_dir():
        values = {
            "task": "classification",
            "model": {"name": network, "pretrained": False},
            "data": {"train": str(folder), "image_size": SIZE},
        }
        config = parse_config(values)
        task = find_task("classification")
        labels = task.load_data(config).labels
        Bundle.create(path, config, labels, task.network(config, labels, {}))
    return path
