"""The tiny data set that the tests of every task train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_SIDE = 64


def write_example(folder: Path) -> dict[str, Any]:
    """Striped tiles, some with a bright spot or a dark scratch; returns a config that learns them in seconds."""
    from PIL import Image

    rng = np.random.default_rng(0)
    counts = {"train/good": 12, "val/good": 6, "val/spot": 3, "val/scratch": 3, "test/good": 6, "test/spot": 4}
    for place, count in counts.items():
        split, label = place.split("/")
        (folder / place).mkdir(parents=True)
        masks = folder / "ground_truth" / label
        for number in range(count):
            y, x = np.mgrid[:_SIDE, :_SIDE]
            pixels = (
                120 + 20 * np.sin((x + rng.integers(8)) * np.pi / 4)[..., None] + rng.normal(0, 4, (_SIDE, _SIDE, 3))
            )
            row, column = rng.integers(14, 50, 2)
            defect = np.zeros((_SIDE, _SIDE), bool)
            if label == "spot":
                defect = (y - row) ** 2 + (x - column) ** 2 < 36
                pixels[defect] = 235
            elif label == "scratch":
                defect = (abs(y - row) < 3) & (abs(x - column) < 12)
                pixels[defect] = 15
            name = f"{split}{number:02}"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / place / f"{name}.png")
            if label != "good":
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(defect.astype(np.uint8) * 255).save(masks / f"{name}_mask.png")
    return {
        "task": "anomaly",
        "model": {"name": "patchcore", "backbone": "test_resnet", "pretrained": False, "strides": [4, 8]},
        "data": {"train": str(folder), "image_size": _SIDE},
        "training": {"batch_size": 8, "num_workers": 0},
    }
