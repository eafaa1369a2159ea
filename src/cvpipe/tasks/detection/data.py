"""Object detection: what feeds the network while it is trained."""

from __future__ import annotations

from cvpipe.tasks.objects import ObjectsDataModule


class DetectionDataModule(ObjectsDataModule):
    """Training batches with a list of `ObjectTensors` that hold boxes."""

    kind = "boxes"
