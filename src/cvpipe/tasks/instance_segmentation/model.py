"""Instance segmentation: the LightningModule."""

from __future__ import annotations

from cvpipe.tasks.objects import ObjectsModule


class InstanceSegmentationModule(ObjectsModule):
    """A network that finds masks, with its losses; validation is measured as evaluation is."""

    kind = "masks"
