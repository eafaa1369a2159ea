"""Object detection: the LightningModule."""

from __future__ import annotations

from cvpipe.tasks.objects import ObjectsModule


class DetectionModule(ObjectsModule):
    """A network that finds boxes, with its losses; validation is measured as evaluation is."""

    kind = "boxes"
