"""Keypoints: the LightningModule."""

from __future__ import annotations

from cvpipe.errors import DataError, few
from cvpipe.tasks.objects import ObjectsModule


class KeypointsModule(ObjectsModule):
    """A network that finds keypoints, with its losses; validation is measured as evaluation is."""

    kind = "points"

    def setup(self, stage: str) -> None:
        """Raises DataError where the network takes one object an image and the data has more."""
        if not getattr(self.network, "one_object", False):
            return
        for split in self.trainer.datamodule.splits.all():  # type: ignore[attr-defined]
            several = [path for path, found in zip(split.paths, split.targets, strict=True) if (~found.crowd).sum() > 1]
            if several:
                raise DataError(
                    f"{self.config.where('model.name')}: {self.config.model.name} takes the whole image for the crop "
                    f"around one object, and {len(several)} images of {split.name} have several: {few(several)}. Cut "
                    "the objects out into images of their own, or take model.name=keypointrcnn, which finds them."
                )
