"""The LightningModule of anomaly detection: fills the network's memory, and finds its thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cvpipe.data.batches import seed_of
from cvpipe.data.loader import Batch
from cvpipe.data.targets import IGNORE
from cvpipe.errors import TrainingError
from cvpipe.metrics.anomaly import area_under_roc, best_threshold
from cvpipe.models.patchcore import PatchCore, build_patchcore, coreset, nearest
from cvpipe.tasks.anomaly.config import AnomalyConfig
from cvpipe.tasks.base import TaskModule
from cvpipe.types import Labels

_RANKED, _CLOSE = "val/image_auroc", "val/minus_score"
_LEAST = 1e-6
"""Where good images are all the same nothing is far from the memory, and the heat is divided by its threshold."""
_STEP = 4
"""One in so many rows and columns of the heat is looked at for the pixel threshold: it is smooth."""


class AnomalyModule(TaskModule):
    """Collects patch features of good images, keeps a coreset of them, and sets the thresholds in validation.

    Watches `val/image_auroc`. Where val has no defects: `val/minus_score`, minus the mean score of the held-out good
    images; it is the nearer to 0 the better the memory covers them.
    """

    learns_by_gradient = False
    config: AnomalyConfig
    network: PatchCore

    def __init__(self, config: AnomalyConfig, labels: Labels) -> None:
        network = build_patchcore(config, config.model.pretrained)
        super().__init__(config, network, network.head, _RANKED)
        self.notes.append(network.note)
        self._patches: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._anomalous: list[torch.Tensor] = []
        self._pixels: list[torch.Tensor] = []
        self._defect: list[torch.Tensor] = []

    def setup(self, stage: str) -> None:
        splits = getattr(getattr(self._trainer, "datamodule", None), "splits", None)
        if splits is not None and len({target.is_good for target in splits.val.targets}) < 2:
            self.monitor = _CLOSE

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Batch, batch_index: int) -> None:
        augment = self.config.data.augment
        images = [batch.images]
        if augment.hflip:
            images += [one.flip([3]) for one in images]
        if augment.vflip:
            images += [one.flip([2]) for one in images]
        for way, turned in enumerate(images):
            most = max(1, self.config.model.max_patches // (self._images(len(batch.indices)) * len(images)))
            found = self.network.patches(turned)
            for index, patches in zip(batch.indices.tolist(), found, strict=True):
                if len(patches) > most:
                    seed = seed_of(self.config.training.seed, index, way)
                    kept = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[:most]
                    patches = patches[kept.to(patches.device)]
                self._patches.append(patches.cpu())

    def conclude(self) -> None:
        """Chooses what is remembered of all that was collected.

        Both thresholds are the largest distance of a collected patch to the memory, until validation finds better ones.
        """
        if not self._patches:
            return
        model, network = self.config.model, self.network
        patches = torch.cat(self._patches).to(network.bank.device)
        if not torch.isfinite(patches).all():
            raise TrainingError("features are not finite. Use other weights, or training.precision=32.")
        wanted = min(model.bank_size, max(1, round(model.bank_share * len(patches))))
        network.bank = patches[coreset(patches, wanted, self.config.training.seed)].clone()
        farthest = float(nearest(patches, network.bank)[0].max())
        self._set_thresholds(farthest, farthest)
        self._patches = []

    def on_validation_start(self) -> None:
        # Lightning validates before the epoch ends, and the memory must be there by then
        self.conclude()
        self._scores, self._anomalous, self._pixels, self._defect = [], [], [], []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if not len(batch.indices):
            return
        found, network = self.network(batch.images), self.network
        self._scores.append(found["score"].cpu())
        self._anomalous.append(batch.targets.anomalous.cpu())
        heat, masks = (part[:, ::_STEP, ::_STEP].flatten() for part in (found["heat"], batch.targets.masks))
        known = masks != IGNORE
        self._pixels.append((heat[known] * (network.pixel_threshold / network.threshold)).cpu())
        self._defect.append((masks[known] == 1).cpu())

    def on_validation_epoch_end(self) -> None:
        if not self._scores:
            return
        scores = torch.cat(self._scores).numpy().astype(np.float64)
        anomalous = torch.cat(self._anomalous).numpy()
        if self.trainer.state.fn == "fit":
            training = self.config.training
            heat = torch.cat(self._pixels).numpy().astype(np.float64)
            self._set_thresholds(
                best_threshold(scores, anomalous, training.threshold_quantile),
                best_threshold(heat, torch.cat(self._defect).numpy(), training.pixel_quantile),
            )
        if self.monitor == _RANKED:
            self.log(_RANKED, area_under_roc(scores, anomalous))
        else:
            self.log(_CLOSE, -float(scores[~anomalous].mean()))
        self.log("val/threshold", float(self.network.threshold))

    def _set_thresholds(self, image: float, pixel: float) -> None:
        self.network.threshold.fill_(max(image, _LEAST))
        self.network.pixel_threshold.fill_(max(pixel, _LEAST))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["patches"] = self._patches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._patches = list(checkpoint["patches"])

    def _images(self, least: int) -> int:
        """Training images, or those of the batch where no trainer feeds this module."""
        splits = getattr(getattr(self._trainer, "datamodule", None), "splits", None)
        return max(1, least if splits is None else len(splits.train))
