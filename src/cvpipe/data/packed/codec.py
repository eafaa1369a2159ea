"""Targets as columns: what training knows about an image <-> one row of a shard or a Delta table.

The same columns hold the targets of every task; a task fills those that it has. docs/data_preparation.md tells them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from cvpipe.data.targets import IGNORE, ClassMap, Inspection, Objects
from cvpipe.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["class", "classes", "objects", "class_map", "inspection"]
TARGET_COLUMNS = ("labels", "objects", "mask_path", "mask_values", "mask_segments")
"""What `decode_target` needs, beside the address of the mask."""


def schema() -> pa.Schema:
    """The columns of a shard and of a Delta table of images."""
    import pyarrow as pa

    size = [("height", pa.int32()), ("width", pa.int32())]
    rle = pa.struct([*size, ("text", pa.string()), ("runs", pa.list_(pa.int64()))])
    thing = pa.struct(
        [
            ("label", pa.string()),
            *((name, pa.float32()) for name in ("x1", "y1", "x2", "y2")),
            ("crowd", pa.bool_()),
            ("area", pa.float32()),
            ("id", pa.string()),
            ("rle", rle),
            ("polygons", pa.list_(pa.list_(pa.float32()))),
            ("keypoints", pa.list_(pa.float32())),
        ]
    )
    value = pa.struct([("value", pa.int64()), ("label", pa.string())])
    return pa.schema(
        [
            ("path", pa.string()),
            ("split", pa.string()),
            ("group", pa.string()),
            ("content", pa.binary()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("mode", pa.string()),
            ("format", pa.string()),
            ("bytes", pa.int64()),
            ("sha256", pa.string()),
            ("error", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("objects", pa.list_(thing)),
            ("mask", pa.binary()),
            ("mask_path", pa.string()),
            ("mask_values", pa.list_(value)),
            ("mask_segments", pa.bool_()),
            ("source_bytes", pa.int64()),
            ("source_modified", pa.int64()),
            ("annotation", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Layout:
    """What the targets of a data set have in common, which single rows can't say.

    Attributes:
        kind: what a target is.
        masks: whether objects have masks.
        points: number of keypoints of an object, or None.
    """

    kind: Kind
    masks: bool = False
    points: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "masks": self.masks, "points": self.points}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        return cls(cast(Kind, values["kind"]), bool(values["masks"]), values["points"])

    @classmethod
    def of(cls, targets: Sequence[Any], multi_label: bool, where: str) -> Layout:
        """That of a data set. Raises DataError for targets that no column holds, and for a mixture."""
        found = {cls._of(target, multi_label, where) for target in targets}
        if len(found) != 1:
            raise DataError(f"{where}: targets of {len(found)} kinds, expected one: {sorted(map(str, found))}.")
        return found.pop()

    @classmethod
    def _of(cls, target: Any, multi_label: bool, where: str) -> Layout:
        if isinstance(target, Objects):
            points = None if target.points is None else int(target.points.shape[1])
            return cls("objects", target.masks is not None, points)
        if isinstance(target, ClassMap):
            return cls("class_map")
        if isinstance(target, Inspection):
            return cls("inspection")
        if isinstance(target, tuple):
            return cls("classes")
        if isinstance(target, int) and not multi_label:
            return cls("class")
        raise DataError(
            f"{where}: a target of the type {type(target).__name__} has no columns. Packed data hold classes, objects, "
            "class maps and defect masks; train this task from its files."
        )


def encode_target(target: Any, classes: Sequence[str]) -> dict[str, Any]:
    """The columns of a target, without the bytes of a mask."""
    if isinstance(target, Objects):
        return {"objects": [_encode_object(target, i, classes) for i in range(len(target))]}
    if isinstance(target, ClassMap):
        values = [{"value": v, "label": None if i == IGNORE else classes[i]} for v, i in target.classes]
        return {
            "mask_path": os.path.basename(target.path),
            "mask_values": values,
            "mask_segments": target.segments,
        }
    if isinstance(target, Inspection):
        name = None if target.mask is None else os.path.basename(target.mask)
        return {"labels": [target.label], "mask_path": name}
    if isinstance(target, tuple):
        return {"labels": [classes[i] for i in target]}
    return {"labels": [classes[target]]}


def decode_target(row: Mapping[str, Any], layout: Layout, position: Mapping[str, int], mask: str) -> Any:
    """The target of a row.

    Args:
        row: its `TARGET_COLUMNS`.
        position: of each class in the network's outputs.
        mask: address of the mask.

    Raises:
        KeyError: a class that has no position.
    """
    if layout.kind == "objects":
        return _decode_objects(row["objects"] or [], layout, position)
    if layout.kind == "class_map":
        values = ((v["value"], IGNORE if v["label"] is None else position[v["label"]]) for v in row["mask_values"])
        return ClassMap(mask, tuple(values), bool(row["mask_segments"]))
    if layout.kind == "inspection":
        return Inspection(row["labels"][0], None if row["mask_path"] is None else mask)
    indices = tuple(position[label] for label in row["labels"])
    return indices if layout.kind == "classes" else indices[0]


def mask_of(target: Any) -> str | None:
    """Address of the file that a target names."""
    if isinstance(target, ClassMap):
        return target.path
    return target.mask if isinstance(target, Inspection) else None


def labels_of(row: Mapping[str, Any]) -> list[str]:
    """The classes that a row names, each once. A class map names those that may occur."""
    found = [*(row["labels"] or []), *(thing["label"] for thing in row["objects"] or [])]
    return list(dict.fromkeys(found))


def _encode_object(target: Objects, i: int, classes: Sequence[str]) -> dict[str, Any]:
    x1, y1, x2, y2 = target.boxes[i].tolist()
    thing = {
        "label": classes[int(target.labels[i])],
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "crowd": bool(target.crowd[i]),
        "area": float(target.areas[i]),
        # a number and a text of the same digits are different ids
        "id": json.dumps(target.ids[i]) if i < len(target.ids) else None,
        "keypoints": None if target.points is None else target.points[i].reshape(-1).tolist(),
    }
    mask = None if target.masks is None else target.masks[i]
    if isinstance(mask, Mapping):
        counts, (height, width) = mask["counts"], mask["size"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        runs = None if isinstance(text, str) else list(text)
        thing["rle"] = {"height": height, "width": width, "text": None if runs is not None else text, "runs": runs}
    elif mask is not None:
        thing["polygons"] = [polygon.reshape(-1).tolist() for polygon in mask]
    return thing


def _decode_objects(things: Sequence[Mapping[str, Any]], layout: Layout, position: Mapping[str, int]) -> Objects:
    points = None
    if layout.points is not None:
        flat = [thing["keypoints"] for thing in things]
        points = np.array(flat, np.float32).reshape(len(things), layout.points, 3)
    return Objects(
        boxes=np.array([[t["x1"], t["y1"], t["x2"], t["y2"]] for t in things], np.float32).reshape(-1, 4),
        labels=np.array([position[t["label"]] for t in things], np.int64),
        crowd=np.array([t["crowd"] for t in things], np.bool_),
        areas=np.array([t["area"] for t in things], np.float32),
        masks=tuple(_decode_mask(t) for t in things) if layout.masks else None,
        points=points,
        ids=tuple(json.loads(t["id"]) for t in things if t["id"] is not None),
    )


def _decode_mask(thing: Mapping[str, Any]) -> Any:
    rle = thing["rle"]
    if rle is not None:
        counts = rle["text"] if rle["text"] is not None else rle["runs"]
        return {"size": [rle["height"], rle["width"]], "counts": counts}
    return tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in thing["polygons"])
