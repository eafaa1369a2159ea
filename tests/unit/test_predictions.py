"""Records of every kind of prediction: JSON-safe, of their schema, and with the values that were put in."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.data.targets import decode_rle, encode_rle
from cvpipe.predictions import (
    AnomalyPrediction,
    DetectionPrediction,
    InstancePrediction,
    KeypointPrediction,
    SegmentationPrediction,
    pixels_of,
    png_of,
)
from cvpipe.types import Labels, arrow_schema

CLASSES = ("cat", "dog", "car")


def detection(count: int = 2, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    return {
        "classes": CLASSES,
        "boxes": rng.uniform(0, 50, (count, 4)).astype(np.float32),
        "scores": np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1].copy(),
        "indices": rng.integers(0, 3, count),
        **more,
    }


def every_kind() -> list[Any]:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 1
    return [
        DetectionPrediction(**detection()),
        DetectionPrediction(**detection(0)),
        InstancePrediction(**detection(), masks=(encode_rle(mask), encode_rle(1 - mask)), size=(6, 8)),
        KeypointPrediction(**detection(), points=np.ones((2, 5, 3), np.float32)),
        SegmentationPrediction.of(CLASSES, mask, 0.75),
        AnomalyPrediction(1.5, 2.0, np.array([[0.5, 1.5]], np.float32), (6, 8)),
    ]


@pytest.mark.parametrize("prediction", every_kind(), ids=lambda p: type(p).__name__)
def test_records(prediction: Any) -> None:
    record = prediction.to_record()
    assert list(record) == [name for name, _ in prediction.record_schema]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    tail = {"path": "x", "error": None, "model_uri": "u", "model_version": ""}
    table = pa.Table.from_pylist([record | tail], schema=arrow_schema(type(prediction)))
    assert table.to_pylist() == [{name: (record | tail)[name] for name in table.column_names}]
    assert str(prediction)


def test_objects() -> None:
    found = DetectionPrediction(**detection(7))
    assert len(found) == 7
    assert found.labels == tuple(CLASSES[i] for i in found.indices)
    assert str(found).endswith("and 2 more")
    assert np.allclose(found.to_record()["boxes"], found.boxes, atol=1e-3)
    assert str(DetectionPrediction(**detection(0))) == "(no object)"


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        (DetectionPrediction, {"boxes": np.zeros((2, 3))}, r"boxes: expected shape \(2, 4\), got \(2, 3\)"),
        (DetectionPrediction, {"indices": np.zeros(1)}, r"indices: expected shape \(2,\), got \(1,\)"),
        (InstancePrediction, {"masks": ()}, "masks: expected 2, got 0"),
        (KeypointPrediction, {"points": np.zeros((1, 5, 3))}, r"points: expected shape \(2, points, 3\)"),
    ],
)
def test_shapes_are_checked(kind: Any, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        kind(**(detection() | change))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20))
def test_class_maps_and_masks_survive(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    found = SegmentationPrediction.of(CLASSES, pixels, 1.0)
    assert (found.mask == pixels).all()
    assert found.shares.sum() == pytest.approx(1)
    assert found.shares == pytest.approx([(pixels == c).mean() for c in range(3)])
    record = found.to_record()
    assert (pixels_of(base64.b64decode(record["mask_png"])) == pixels).all()
    assert record["shares"] == sorted(record["shares"], reverse=True)
    assert (decode_rle(encode_rle(pixels == 1)) == (pixels == 1)).all()
    assert (pixels_of(png_of(pixels)) == pixels).all()


def test_an_anomaly_is_what_reaches_the_threshold() -> None:
    heat = np.array([[0.0, 2.0], [4.0, 1.0]], np.float32)
    assert AnomalyPrediction(2.0, 2.0, heat, (4, 4)).label == "anomalous"
    found = AnomalyPrediction(1.99, 2.0, heat, (4, 4))
    assert (found.label, found.is_anomalous) == ("good", False)
    scaled = pixels_of(base64.b64decode(found.to_record()["heat_png"]))
    assert scaled.tolist() == [[0, 128], [255, 64]], "128 is the threshold, what is twice as high is cut off"


def test_labels_travel() -> None:
    labels = Labels(CLASSES, keypoints=("left", "right"), skeleton=((0, 1),), flip_pairs=((0, 1),))
    assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    assert Labels(CLASSES).to_dict() == {"classes": list(CLASSES), "multi_label": False}
