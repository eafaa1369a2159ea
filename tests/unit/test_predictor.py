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
from cvpipe.errors import ImageError, InputError
from cvpipe.predictions import ClassificationPrediction
from cvpipe.predictor import Predictor
from cvpipe.task import find_task
from cvpipe.types import Failure, Labels, Prediction


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
    assert np.stack([scores(answer) for answer in answers]).std(axis=0).max() > 1e-4, "images differ in their scores"


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


def test_a_single_image_is_one_image(predictor: Predictor, paths: list[Path]) -> None:
    image = Image.open(paths[0]).convert("RGB")
    array = np.array(image)
    data = paths[0].read_bytes()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = scores(predictor.predict([paths[0]])[0])
    for one in (paths[0], str(paths[0]), data, bytearray(data), memoryview(data), array, array[:, :, 0], image, tensor):
        for answers in (predictor.predict(one), list(predictor.stream(one))):
            assert len(answers) == 1, type(one)
            assert np.abs(scores(answers[0]) - expected).max() < 1e-6, type(one)


def test_batches_of_arrays_and_columns_of_tables_are_many_images(predictor: Predictor, paths: list[Path]) -> None:
    import pandas as pd

    arrays = np.stack([np.array(Image.open(path).convert("RGB")) for path in paths[:3]])
    expected = [scores(answer) for answer in predictor.predict(paths[:3])]
    names = [str(path) for path in paths[:3]]
    batch = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for many in (arrays, batch, pd.Series(names), np.array(names), pd.Series(names).to_numpy(), tuple(paths[:3])):
        answers = predictor.predict(many)
        assert len(answers) == 3, type(many)
        for answer, scored in zip(answers, expected, strict=True):
            assert np.abs(scores(answer) - scored).max() < 1e-6


@pytest.mark.parametrize("error", [ImageError("too thin"), ValueError("too thin"), RuntimeError("too thin\nC++ trace")])
def test_an_image_that_cant_be_prepared_is_a_failure(
    tiny_bundle: Bundle, paths: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")
    real = predictor.processor.preprocess

    def preprocess(image: torch.Tensor) -> torch.Tensor:
        if image.shape[1:] == (5, 7):
            raise error
        return real(image)

    monkeypatch.setattr(predictor.processor, "preprocess", preprocess)
    answers = predictor.predict([paths[0], np.zeros((5, 7, 3), np.uint8), paths[1]])
    assert answers[1] == Failure("the image of 7x5 pixels can't be prepared: too thin")
    assert scores(answers[0]).shape == scores(answers[2]).shape


def test_an_error_in_the_code_is_no_failure_of_an_image(
    tiny_bundle: Bundle, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")

    def broken(image: torch.Tensor) -> torch.Tensor:
        raise TypeError("a mistake")

    monkeypatch.setattr(predictor.processor, "preprocess", broken)
    with pytest.raises(TypeError, match="a mistake"):
        predictor.predict(paths[:2])


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


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 0}, r"parameter top_k: found 0, expected a whole number at least 1"),
        ({"top_k": -3}, r"parameter top_k: found -3, expected a whole number at least 1"),
        ({"top_k": 2.0}, r"parameter top_k: found 2\.0, expected a whole number at least 1"),
        ({"top_k": True}, r"parameter top_k: found True, expected"),
        ({"top_k": "3"}, r"parameter top_k: found '3', expected"),
        ({"threshold": 1.5}, r"parameter threshold: found 1\.5, expected a number at least 0 and at most 1"),
        ({"threshold": -0.1}, r"parameter threshold: found -0\.1, expected"),
        ({"threshold": float("nan")}, r"parameter threshold: found nan, expected"),
        ({"threshold": False}, r"parameter threshold: found False, expected"),
        ({"threshold": [0.5]}, r"parameter threshold: found \[0\.5\], expected"),
    ],
)
def test_params_out_of_range(predictor: Predictor, paths: list[Path], params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictor.predict(paths[0], **params)
    from cvpipe.flavor import BundleModel

    with pytest.raises(InputError, match=message):
        BundleModel(predictor).predict([paths[0].read_bytes()], params)


def test_params_of_other_number_types(predictor: Predictor, paths: list[Path]) -> None:
    given = {"top_k": np.int64(2), "threshold": np.float32(0.5)}
    checked = predictor.check_params(given)
    assert checked == {"top_k": 2, "threshold": 0.5}
    assert [type(value) for value in checked.values()] == [int, float]
    assert predictor.check_params({"top_k": None, "threshold": 1}) == {"threshold": 1.0}
    assert len(predictor.predict(paths[0], **given)[0].labels) == 2  # type: ignore[union-attr]


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


def test_test_time_augmentation_is_the_mean_over_both_mirror_images(tiny_bundle: Bundle, paths: list[Path]) -> None:
    from dataclasses import replace

    plain = Predictor(tiny_bundle, device="cpu", batch_size=4)
    mirrored = [np.asarray(Image.open(path).convert("RGB"))[:, ::-1].copy() for path in paths]
    config = tiny_bundle.config.replace(**{"inference.tta": True})
    both = Predictor(replace(tiny_bundle, config=config), device="cpu", batch_size=3)
    expected = [
        (scores(one) + scores(other)) / 2
        for one, other in zip(plain.predict(paths), plain.predict(mirrored), strict=True)
    ]
    for answer, wanted in zip(both.predict([*paths, b"broken"]), expected, strict=False):
        assert np.abs(scores(answer) - wanted).max() < 1e-5
    assert isinstance(both.predict(b"broken")[0], Failure)
