"""Predictions as records, and labels that travel."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from cvpipe.predictions import ClassificationPrediction
from cvpipe.types import Failure, Interval, Labels, arrow_schema, is_path


def prediction(*labels: str) -> ClassificationPrediction:
    return ClassificationPrediction(("a", "b", "c"), np.array([0.2, 0.7, 0.1], np.float32), labels)


def test_record_is_json_and_fits_the_arrow_schema() -> None:
    record = prediction("b", "a").to_record()
    assert record == {
        "label": "b",
        "score": pytest.approx(0.7),
        "labels": ["b", "a"],
        "scores": [pytest.approx(0.7), pytest.approx(0.2)],
    }
    assert json.loads(json.dumps(record)) == record
    assert tuple(record) == tuple(name for name, _ in ClassificationPrediction.record_schema)
    schema = arrow_schema(ClassificationPrediction)
    rows = [
        {"path": "x.jpg", **record, "error": None, "model_uri": "m", "model_version": "1"},
        {"path": "y.jpg", **Failure("broken").to_record()},
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    assert table.schema == schema
    assert table.to_pylist()[1] == dict.fromkeys(schema.names) | {"path": "y.jpg", "error": "broken"}


def test_prediction_without_a_label() -> None:
    empty = prediction()
    assert (empty.label, str(empty)) == ("", "(no label)")
    assert empty.score == pytest.approx(0.7)
    assert empty.to_record() == {"label": "", "score": pytest.approx(0.7), "labels": [], "scores": []}


def test_prediction_as_text() -> None:
    assert str(prediction("b", "c")) == "b 0.700, c 0.100"
    assert prediction("b").score_of("a") == pytest.approx(0.2)


def test_labels_survive_json() -> None:
    for labels in (Labels(("ä", "1")), Labels(("x",), multi_label=True)):
        assert Labels.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels


def test_interval() -> None:
    assert str(Interval(0.5)) == "0.5000"
    assert str(Interval(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"


def test_is_path() -> None:
    assert is_path("a")
    assert not is_path(b"a")
