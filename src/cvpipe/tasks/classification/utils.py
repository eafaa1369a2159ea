"""Pre- and postprocessing of classification, and its tiny example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cvpipe.config import Config
from cvpipe.data.transforms import fit
from cvpipe.predictions import ClassificationPrediction
from cvpipe.types import Labels, View


class ClassificationProcessor:
    """Resizes to the network's size; turns logits into probabilities and labels."""

    def __init__(self, config: Config, labels: Labels) -> None:
        self.data, self.inference, self.labels = config.data, config.inference, labels

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 RGB -> (3, h, w) uint8 RGB. An image of the network's size passes as it is."""
        if tuple(image.shape[1:]) == self.data.image_size:
            return image
        return fit(image, self.data.image_size, self.data.resize, self.data.crop_pct)

    def views(self, size: tuple[int, int]) -> list[View]:
        """The image and its mirror image with `inference.tta`, else nothing."""
        whole = (0, 0, *size)
        return [View(whole), View(whole, hflip=True)] if self.inference.tta else []

    def postprocess(
        self,
        outputs: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> list[ClassificationPrediction]:
        """(N, classes) logits -> N predictions.

        Args:
            top_k: most labels in an answer; the config's `inference.top_k` if left out.
            threshold: score from which a class counts (multi-label); `inference.threshold` if left out.
        """
        return self._predictions(self._scores(outputs), top_k, threshold)

    def merge(
        self,
        outputs: torch.Tensor,
        views: Sequence[View],
        size: tuple[int, int],
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> ClassificationPrediction:
        """The mean probabilities of all views of one image."""
        return self._predictions(self._scores(outputs).mean(dim=0, keepdim=True), top_k, threshold)[0]

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.labels.multi_label else logits.softmax(dim=1)

    def _predictions(
        self, probabilities: torch.Tensor, top_k: int | None, threshold: float | None
    ) -> list[ClassificationPrediction]:
        multi = self.labels.multi_label
        scores = probabilities.cpu().numpy()
        order = (-scores).argsort(axis=1, kind="stable")
        most = self.inference.top_k if top_k is None else top_k
        least = self.inference.threshold if threshold is None else threshold
        classes = self.labels.classes
        predictions = []
        for row, ranks in zip(scores, order, strict=True):
            ranks = [i for i in ranks if row[i] >= least] if multi else ranks[:most]
            predictions.append(ClassificationPrediction(classes, row, tuple(classes[i] for i in ranks)))
        return predictions


def write_example(folder: Path) -> dict[str, Any]:
    """Forty pictures of two scanned digits; returns a config that learns them in seconds."""
    import shutil

    from cvpipe.data.demo import demo_folder

    source = demo_folder("demo:digits") / "train"
    for digit in ("0", "1"):
        target = folder / "images" / digit
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((source / digit).iterdir())[:20]:
            shutil.copy(path, target)
    return {
        "task": "classification",
        "model": {"name": "test_resnet", "pretrained": False},
        "data": {
            "train": str(folder / "images"),
            "image_size": 32,
            "augment": {"hflip": 0, "crop_scale": [0.9, 1], "color_jitter": 0},
        },
        "training": {"batch_size": 16, "num_workers": 0, "epochs": 2, "learning_rate": 0.003},
    }
