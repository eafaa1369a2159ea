"""The tiny data set that the tests of every task train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_SIDE = 64
_COLOURS = ((70, 80, 90), (210, 70, 60), (70, 160, 220))


def write_example(folder: Path) -> dict[str, Any]:
    """Thirty pictures of a red disc and a blue bar on grey; returns a config that learns them in seconds."""
    import json

    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 22), ("val", 8)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            classes = _draw(rng)
            noise = rng.integers(-20, 21, (_SIDE, _SIDE, 3))
            pixels = np.clip(np.array(_COLOURS)[classes] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / "images" / f"{number:02}.png")
            Image.fromarray(classes).save(folder / split / "masks" / f"{number:02}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": ["ground", "disc", "bar"]}))
    return {
        "task": "semantic_segmentation",
        "model": {
            "name": "fpn",
            "backbone": "test_resnet",
            "pretrained": False,
            "options": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
        },
        "data": {"train": str(folder), "format": "masks", "image_size": _SIDE, "augment": {"color_jitter": 0}},
        "training": {"batch_size": 8, "num_workers": 0, "epochs": 2, "learning_rate": 0.003},
    }


def _draw(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(64, 64) uint8: 0 ground, 1 disc, 2 bar."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    classes = np.zeros((_SIDE, _SIDE), np.uint8)
    top, left = rng.integers(4, 36, 2)
    classes[top : top + 10, left : left + 24] = 2
    row, column = rng.integers(14, 50, 2)
    classes[(y - row) ** 2 + (x - column) ** 2 < rng.integers(7, 13) ** 2] = 1
    return classes
