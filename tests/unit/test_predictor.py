"""One answer for each image, in order, whatever the images are."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvpipe.bundle import Bundle
from cvpipe.errors import InputError
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.types import ClassificationPrediction, Failure, Labels, Prediction


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> Predictor:
    return Predictor(tiny_bundle, device="cpu", batch_size=4, threads=2)


@pytest.fixture(scope="module")
def paths(digits: Path) -> list[Path]:
    return sorted((digits / "test").rglob("*.png"))[::25]


def scores(answer: Prediction | Failure) -> np.ndarray[Any, Any]:
    assert isinstance(answer, ClassificationPrediction), answer
    return answer.scores


def test_order_and_scores_do_not_depend_on_batches(
    tiny_bundle: Bundle, predictor: Predictor, paths: list[Path]
) -> None:
    answers = predictor.predict(paths)
    assert len(answers) == len(paths) > 8
    one_by_one = [predictor.predict(path)[0] for path in paths]
    together = Predictor(tiny_bundle, device="cpu", batch_size=100, threads=1).predict(paths)
    for a, b, c in zip(answers, one_by_one, together, strict=True):
        assert np.abs(scores(a) - scores(b)).max() < 1e-5
        assert np.abs(scores(a) - scores(c)).max() < 1e-5
        assert abs(float(scores(a).sum()) - 1) < 1e-5
    assert len({answer.label for answer in answers}) > 1  # type: ignore[union-attr]


def test_the_same_as_network_and_processor_by_hand(predictor: Predictor, paths: list[Path]) -> None:
    bundle = predictor.bundle
    processor = find_task("classification").processor(bundle.config, bundle.labels)
    pixels = torch.from_numpy(np.array(Image.open(paths[0]).convert("RGB"))).permute(2, 0, 1)
    with torch.inference_mode():
        expected = bundle.network()(processor.preprocess(pixels)[None]).softmax(1)[0].numpy()
    assert np.abs(scores(predictor.predict(paths[0])[0]) - expected).max() < 1e-5


def test_all_forms_of_an_image_are_equal(predictor: Predictor, paths: list[Path]) -> None:
    image = Image.open(paths[0]).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    forms = [paths[0], str(paths[0]), paths[0].read_bytes(), buffer.getvalue(), np.array(image), image]
    expected = scores(predictor.predict([paths[0]])[0])
    for answer in predictor.predict(forms):
        assert np.abs(scores(answer) - expected).max() < 1e-6


def test_failures_stand_in_their_places(predictor: Predictor, paths: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:60])
    images = [paths[0], cut, b"", paths[1], "/no/such.png", 5, np.zeros((0, 3, 3), np.uint8), paths[2], None]
    answers = predictor.predict(images)
    assert [isinstance(a, Failure) for a in answers] == [False, True, True, False, True, True, True, False, True]
    reasons = [a.reason for a in answers if isinstance(a, Failure)]
    assert "the file is empty" in reasons
    assert any("No such file" in r for r in reasons)
    assert any("found int" in r for r in reasons)
    for position, path in ((0, paths[0]), (3, paths[1]), (7, paths[2])):
        assert np.abs(scores(answers[position]) - scores(predictor.predict(path)[0])).max() < 1e-5


def test_nothing_and_only_failures(predictor: Predictor) -> None:
    assert predictor.predict([]) == []
    assert [type(a) for a in predictor.predict([b"", b"x"] * 5)] == [Failure] * 10


def test_params(predictor: Predictor, paths: list[Path]) -> None:
    assert len(predictor.predict(paths[0])[0].labels) == 5  # type: ignore[union-attr]
    (answer,) = predictor.predict(paths[0], top_k=2)
    assert isinstance(answer, ClassificationPrediction)
    assert answer.labels == tuple(answer.classes[i] for i in np.argsort(-answer.scores)[:2])
    with pytest.raises(InputError, match=r"unknown parameter 'topk' for task classification\. Did you mean 'top_k'\?"):
        predictor.predict(paths[0], topk=2)


def test_a_stream_is_consumed_as_it_is_used(predictor: Predictor, paths: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        data = paths[0].read_bytes()
        while True:
            taken += 1
            yield data

    stream = predictor.stream(endless())
    for _ in range(10):
        next(stream)
    assert taken <= 10 + 5 * predictor.batch_size
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")], "no thread is left behind"


def test_an_error_of_the_source_comes_through(predictor: Predictor, paths: list[Path]) -> None:
    def source() -> Iterator[Path]:
        yield paths[0]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        predictor.predict(source())


def test_pixels_above_the_limit_are_a_failure(tiny_bundle: Bundle, tmp_path: Path) -> None:
    config = tiny_bundle.config.replace(**{"inference.max_pixels": 100})
    bundle = Bundle.create(tmp_path / "b", config, tiny_bundle.labels, tiny_bundle.network())
    image = io.BytesIO()
    Image.new("RGB", (11, 10)).save(image, "PNG")
    (answer,) = Predictor(bundle, device="cpu").predict([image.getvalue()])
    assert answer == Failure("11x10 pixels are more than the limit of 100")


def test_outputs_that_are_not_finite_are_failures(tiny_bundle: Bundle, paths: list[Path]) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")
    with torch.no_grad():
        next(p for p in predictor.network.parameters() if p.ndim == 4).fill_(float("nan"))
    assert predictor.predict(paths[:2]) == [Failure("the network's output is not finite")] * 2


def test_a_device_that_is_not_here(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"device: found 'gpu', expected auto, cpu"):
        Predictor(tiny_bundle, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: cuda is not available here"):
            Predictor(tiny_bundle, device="cuda")


# what classification makes of the network's outputs


def processor(classes: int = 3, multi: bool = False) -> Any:
    from cvpipe.config_file import parse_config
    from cvpipe.tasks.classification.utils import ClassificationProcessor

    config = parse_config({"data": {"train": "x", "image_size": 32}, "inference": {"top_k": 2, "threshold": 0.6}})
    return ClassificationProcessor(config, Labels(tuple("abcdef"[:classes]), multi))


def test_single_label() -> None:
    (answer,) = processor().postprocess(torch.tensor([[0.0, 2.0, 1.0]]), [(1, 1)])
    assert answer.labels == ("b", "c")
    assert answer.label == "b"
    assert answer.scores == pytest.approx(np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum())


def test_multi_label() -> None:
    outputs = torch.tensor([[3.0, -3.0, 1.0], [-1.0, -2.0, -3.0]])
    first, second = processor(multi=True).postprocess(outputs, [(1, 1)] * 2)
    assert first.labels == ("a", "c")
    assert (second.labels, second.label, str(second)) == ((), "", "(no label)")
    assert second.score == pytest.approx(1 / (1 + np.exp(1)))
    first, second = processor(multi=True).postprocess(outputs, [(1, 1)] * 2, threshold=0.01)
    assert first.labels == ("a", "c", "b")
    assert len(second.labels) == 3


def test_preprocess_leaves_the_right_size_alone() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert processor().preprocess(image) is image
    assert processor().preprocess(torch.zeros(3, 50, 99, dtype=torch.uint8)).shape == (3, 32, 32)
