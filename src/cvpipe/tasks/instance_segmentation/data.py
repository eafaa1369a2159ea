"""Instance segmentation: what feeds the network while it is trained."""

from __future__ import annotations

from cvpipe.tasks.objects import ObjectsDataModule


class InstanceSegmentationDataModule(ObjectsDataModule):
    """Training batches with a list of `ObjectTensors` that hold boxes and masks."""

    kind = "masks"
