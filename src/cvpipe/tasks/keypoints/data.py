"""Keypoints: what feeds the network while it is trained."""

from __future__ import annotations

from cvpipe.tasks.objects import ObjectsDataModule


class KeypointsDataModule(ObjectsDataModule):
    """Training batches with a list of `ObjectTensors` that hold boxes and keypoints."""

    kind = "points"
