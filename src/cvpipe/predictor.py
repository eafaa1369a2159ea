"""The only inference code: evaluation, batch inference and serving all hold a Predictor."""

from __future__ import annotations

import itertools
import numbers
import operator
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cvpipe.bundle import Bundle
from cvpipe.config import InferenceConfig
from cvpipe.config_reference import type_text
from cvpipe.errors import ImageError, InputError, did_you_mean
from cvpipe.task import find_task
from cvpipe.types import Failure, Prediction, View
from cvpipe.utils.trees import Outputs, concatenate, finite_rows, map_tensors

if TYPE_CHECKING:
    import torch

_CPU_IMAGES = 8


class Prepared(NamedTuple):
    """One image on its way into the network.

    Attributes:
        pixels: (3, h, w) uint8 for each view, or for the whole image where there are none.
        views: what the task cuts the image into; empty: nothing.
        size: original (height, width).
    """

    pixels: list[torch.Tensor]
    views: Sequence[View]
    size: tuple[int, int]


class Predictor:
    """Applies a bundle to images.

    Decoding and resizing run in threads ahead of the network. One image that can't be read is one `Failure`.

    Args:
        bundle: the model.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: images that go through the network together; the bundle's `inference.batch_size` if left out.
        threads: threads that decode; as many as CPUs, at most 8, if left out.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", batch_size: int | None = None, threads: int | None = None
    ) -> None:
        import torch

        from cvpipe.models.fold import fold_batch_norm
        from cvpipe.utils.device import choose_device

        self.bundle = bundle
        self.task = find_task(bundle.config.task)
        self.device = choose_device(device)
        self.batch_size = batch_size or bundle.config.inference.batch_size
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.processor = self.task.processor(bundle.config, bundle.labels)
        network = bundle.network().to(self.device).to(memory_format=torch.channels_last)
        example = torch.zeros(1, 3, *bundle.config.data.image_size, dtype=torch.uint8, device=self.device)
        example += torch.arange(example.numel(), device=self.device).view_as(example).to(torch.uint8)
        self.network = fold_batch_norm(network, example)
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def load(
        cls,
        uri: str | Path,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
    ) -> Predictor:
        """From a bundle directory, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN_ID/model`."""
        bundle = Bundle.load(uri, tracking_uri, registry_uri)
        return cls(bundle, device=device, batch_size=batch_size, threads=threads)

    def predict(self, images: Iterable[Any], **params: Any) -> list[Prediction | Failure]:
        """One prediction or failure for each image, in order.

        Args:
            images: paths, encoded bytes, arrays (height, width, 3) uint8 RGB, tensors (3, height, width) uint8 RGB,
                or Pillow images; or a single one of them.
            params: the task's, such as `top_k=3` or `threshold=0.4`.
        """
        return list(self.stream(images, **params))

    def stream(self, images: Iterable[Any], **params: Any) -> Generator[Prediction | Failure, None, None]:
        """The same for any number of images, holding a few batches in memory."""
        params = self.check_params(params)
        source = iter([images] if _is_one(images) else images)
        chunk = list(itertools.islice(source, self.batch_size))
        if not chunk:
            return
        with _one_core_threads(min(self.threads, len(chunk)), "decode") as pool:
            waiting: deque[list[Future[Any]]] = deque()
            try:
                while chunk or waiting:
                    while chunk and len(waiting) < 3:
                        waiting.append([pool.submit(self.prepare, image) for image in chunk])
                        chunk = list(itertools.islice(source, self.batch_size))
                    yield from self._run([future.result() for future in waiting.popleft()], params)
            finally:
                for future in itertools.chain.from_iterable(waiting):
                    future.cancel()

    def prepare(self, image: Any) -> Prepared | Failure:
        """Decodes, cuts into views where the task asks for it, and resizes."""
        from cvpipe.data.decode import read_image
        from cvpipe.data.jpeg import pixels_of

        config = self.bundle.config
        try:
            pixels = read_image(image, config.inference.max_pixels, lazy=config.data.scaled_decoding)
        except ImageError as error:
            return Failure(str(error))
        height, width = int(pixels.shape[1]), int(pixels.shape[2])
        try:
            views = self.processor.views((height, width))
            parts = [_cut(pixels, view) for view in views] or [pixels]
            return Prepared([pixels_of(self.processor.preprocess(part)) for part in parts], views, (height, width))
        except (ImageError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Failure(f"the image of {width}x{height} pixels can't be prepared: {reason}")

    def outputs(self, batch: torch.Tensor) -> Outputs:
        """(N, 3, h, w) uint8 -> the network's raw outputs, on the CPU: a tensor or a dict of tensors, (N, …) each."""
        import torch

        with torch.inference_mode():
            moved = batch.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            if self.device.type != "cpu":
                return map_tensors(torch.Tensor.cpu, self.network(moved))
            return self._on_cpu(moved)

    def _on_cpu(self, batch: torch.Tensor) -> Outputs:
        """A few images at a time stay in the caches, and one core for each part beats all cores for every layer."""
        import torch

        parts, cores = torch.split(batch, _CPU_IMAGES), torch.get_num_threads()
        if len(parts) == 1 or cores == 1:
            return concatenate([self.network(part) for part in parts])
        if self._pool is None:
            self._pool = _one_core_threads(cores, "network")

        def run(part: torch.Tensor) -> Outputs:
            with torch.inference_mode():  # holds for the thread that enters it
                return self.network(part)  # type: ignore[no-any-return]

        return concatenate(list(self._pool.map(run, parts)))

    def check_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that were given, as plain Python numbers and texts; None counts as left out.

        Raises:
            InputError: a name the task does not know, or a value of another type or outside its bounds.
        """
        given = {}
        for name, value in params.items():
            if name not in self.task.params:
                raise InputError(
                    f"unknown parameter {name!r} for task {self.task.name}.{did_you_mean(name, self.task.params)} "
                    f"Known: {', '.join(self.task.params)}."
                )
            if value is not None:
                given[name] = _checked(name, value, self.task.params[name], self.bundle.config.inference)
        return given

    def _run(self, prepared: Sequence[Any], params: dict[str, Any]) -> list[Prediction | Failure]:
        import torch

        good = [item for item in prepared if not isinstance(item, Failure)]
        parts = [part for item in good for part in item.pixels]
        outputs: list[Outputs] = []
        # an image in many views must not make the batch larger than the device was asked to hold
        for start in range(0, len(parts), self.batch_size):
            # stacked as NHWC, which is how the decoder left the pixels and what channels_last wants
            stacked = torch.stack([part.permute(1, 2, 0) for part in parts[start : start + self.batch_size]])
            outputs.append(self.outputs(stacked.permute(0, 3, 1, 2)))
        answers = iter(self._answers(good, concatenate(outputs), params) if good else ())
        return [item if isinstance(item, Failure) else next(answers) for item in prepared]

    def _answers(
        self, prepared: Sequence[Prepared], raw: Outputs, params: dict[str, Any]
    ) -> list[Prediction | Failure]:
        finite = finite_rows(raw)
        answers: list[Prediction | Failure] = []
        if not any(item.views for item in prepared):
            found = self.processor.postprocess(raw, [item.size for item in prepared], **params)
            answers.extend(a if ok else _NOT_FINITE for a, ok in zip(found, finite, strict=True))
            return answers
        start = 0
        for item in prepared:
            rows = slice(start, start + len(item.pixels))
            start = rows.stop
            own = map_tensors(operator.itemgetter(rows), raw)
            if not all(finite[rows]):
                answers.append(_NOT_FINITE)
            elif item.views:
                answers.append(self.processor.merge(own, item.views, item.size, **params))
            else:
                answers.extend(self.processor.postprocess(own, [item.size], **params))
        return answers


_NOT_FINITE = Failure("the network's output is not finite")


def _cut(pixels: torch.Tensor, view: View) -> torch.Tensor:
    """(3, H, W) uint8 -> the part that a view shows."""
    top, left, height, width = view.window
    part = pixels[:, top : top + height, left : left + width]
    return part.flip([-1]) if view.hflip else part


def _is_one(images: Any) -> bool:
    """Whether this is one image, not a sequence of images. Arrays and tensors of four dimensions are batches."""
    if isinstance(images, (str, Path, bytes, bytearray, memoryview)) or hasattr(images, "convert"):
        return True
    return getattr(images, "ndim", 0) in (2, 3)


def _checked(name: str, value: Any, kind: type, config: InferenceConfig) -> Any:
    """The value as the task's type, within the bounds that the setting of the same name has."""
    accepted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    info = type(config).model_fields.get(name)
    try:
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
            raise ValueError
        plain = kind(value)
        if info is not None:
            type(config).model_validate({name: plain})
    except ValueError:  # pydantic's error is one
        wanted = type_text(info) if info is not None else kind.__name__
        raise InputError(f"parameter {name}: found {value!r}, expected {wanted}.") from None
    return plain


_starting = threading.Lock()


def _one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads don't start pools of their own for every operation.

    `torch.set_num_threads` holds for the calling thread and for all threads that use torch for the first time
    afterwards. So the number is put back once all of ours have read it: another thread that runs a network later
    (a server's) would otherwise compute on one core.
    """
    import torch

    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    together = threading.Barrier(count)

    def start() -> None:
        torch.set_num_threads(1)
        together.wait()

    with _starting:
        before = torch.get_num_threads()
        wait([pool.submit(start) for _ in range(count)])
        torch.set_num_threads(before)
    return pool
