"""Pre- and postprocessing of the dense template, its pictures, and its tiny data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cvpipe.data.geometry import Geometry, fit_geometry
from cvpipe.draw import banner
from cvpipe.scaffold.dense_template.config import NAME, DenseTemplateConfig
from cvpipe.scaffold.dense_template.prediction import DenseTemplatePrediction, Floats, map_png
from cvpipe.types import View

if TYPE_CHECKING:
    import PIL.Image

_LOW, _MIDDLE, _HIGH = (68, 1, 84), (33, 145, 140), (253, 231, 37)  # dark blue, green, yellow


class DenseTemplateProcessor:
    """Brings images to the network's size, and its outputs back to the images'."""

    def __init__(self, config: DenseTemplateConfig) -> None:
        self.data, self.tta = config.data, config.inference.tta

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 RGB -> (3, h, w) uint8 RGB."""
        return self._geometry((image.shape[1], image.shape[2])).image(image)

    def views(self, size: tuple[int, int]) -> list[View]:
        """The image and its mirror image with `inference.tta`, else nothing."""
        whole = (0, 0, *size)
        return [View(whole), View(whole, hflip=True)] if self.tta else []

    def postprocess(
        self,
        outputs: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> list[DenseTemplatePrediction]:
        """(N, h', w') values over the network's input -> N predictions of the original sizes."""
        return [self._prediction(values, size) for values, size in zip(outputs, sizes, strict=True)]

    def merge(
        self,
        outputs: torch.Tensor,
        views: Sequence[View],
        size: tuple[int, int],
    ) -> DenseTemplatePrediction:
        """The mean over all views of one image."""
        upright = [values.flip(-1) if view.hflip else values for values, view in zip(outputs, views, strict=True)]
        return self._prediction(torch.stack(upright).mean(dim=0), size)

    def _geometry(self, size: tuple[int, int]) -> Geometry:
        return fit_geometry(size, self.data.image_size, self.data.resize)

    def _prediction(self, values: torch.Tensor, size: tuple[int, int]) -> DenseTemplatePrediction:
        full = self._geometry(size).uncanvas(values[None].float())[0]
        return DenseTemplatePrediction(full.numpy(), self.data.unit)


def draw(image: PIL.Image.Image, what: Any) -> PIL.Image.Image:
    """The values as colours, low dark and high bright, with their range at the top.

    Args:
        what: a prediction, or a target of the data set; where a value is not known, the image shows.
    """
    from PIL import Image

    values: Floats = what.values if isinstance(what, DenseTemplatePrediction) else what.load()
    known = np.isfinite(values)
    canvas = np.array(image.convert("RGB"))
    if known.any():
        low, high = np.quantile(values[known], [0.02, 0.98])
        level = np.clip((values[known] - low) / max(high - low, 1e-12), 0, 1)
        ends = zip(_LOW, _MIDDLE, _HIGH, strict=True)
        canvas[known] = np.stack([np.interp(level, [0, 0.5, 1], colour) for colour in ends], axis=-1)
    text = f"{values[known].min():.2f} to {values[known].max():.2f}" if known.any() else "nothing known"
    return banner(Image.fromarray(canvas), text)


def example(folder: Path) -> dict[str, Any]:
    """A tiny data set below the folder, and settings that learn it in seconds. The contract test trains on it."""
    write_pairs(folder, count=40, side=32)
    return {
        "task": NAME,
        "model": {"backbone": "test_resnet", "pretrained": False},
        "data": {"train": str(folder), "image_size": 32, "augment": {"brightness": 0}},
        "training": {"batch_size": 16, "num_workers": 0, "epochs": 2, "learning_rate": 0.005},
    }


def write_demo(folder: Path) -> None:
    """What `data: demo:dense_template` means."""
    write_pairs(folder, count=160, side=64)


# REPLACE: by a few of your own images, or by something drawn that looks like them
def write_pairs(folder: Path, count: int, side: int) -> None:
    """Scanned digits as reliefs: the more ink, the farther away (0.5 to 2 m), in random colours.

    A strip at the left is not known, as depth cameras leave one.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, digit in enumerate(load_digits().images[:count]):
        grey = Image.fromarray((digit * 15).astype(np.uint8))
        ink = np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 240
        paper, pen = rng.uniform(150, 255, 3), rng.uniform(0, 100, 3)
        picture = paper * (1 - ink[..., None]) + pen * ink[..., None] + rng.normal(0, 4, (side, side, 3))
        depth = (0.5 + 1.5 * ink).astype(np.float32)
        depth[:, : side // 16] = np.nan
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:04d}.png")
        (folder / "maps" / f"{number:04d}.png").write_bytes(map_png(depth, unit=0.001))
