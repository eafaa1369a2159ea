"""The only inference code: evaluation, batch inference and serving all hold a Predictor."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.bundle import Bundle
from cvpipe.errors import ImageError, InputError, did_you_mean
from cvpipe.task import find_task
from cvpipe.types import Failure, Prediction

if TYPE_CHECKING:
    import torch

Prepared = "tuple[torch.Tensor, tuple[int, int]] | Failure"


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

        from cvpipe.utils.device import choose_device

        self.bundle = bundle
        self.task = find_task(bundle.config.task)
        self.device = choose_device(device)
        self.batch_size = batch_size or bundle.config.inference.batch_size
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.processor = self.task.processor(bundle.config, bundle.labels)
        self.network = bundle.network().to(self.device).to(memory_format=torch.channels_last)

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
            images: paths, encoded bytes, arrays (height, width, 3) uint8 RGB, or Pillow images.
            params: the task's, such as `top_k=3` or `threshold=0.4`.
        """
        return list(self.stream([images] if isinstance(images, (str, Path, bytes)) else images, **params))

    def stream(self, images: Iterable[Any], **params: Any) -> Generator[Prediction | Failure, None, None]:
        """The same for any number of images, holding a few batches in memory."""
        self.check_params(params)
        source = iter(images)
        chunk = list(itertools.islice(source, self.batch_size))
        if not chunk:
            return
        with _decoders(min(self.threads, len(chunk))) as pool:
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

    def prepare(self, image: Any) -> Any:
        """Decodes and resizes: (uint8 (3, h, w), original (height, width)), or a Failure."""
        from cvpipe.data.decode import read_image

        try:
            pixels = read_image(image, self.bundle.config.inference.max_pixels)
        except ImageError as error:
            return Failure(str(error))
        return self.processor.preprocess(pixels), (int(pixels.shape[1]), int(pixels.shape[2]))

    def outputs(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) uint8 -> the network's raw outputs, on the CPU."""
        import torch

        with torch.inference_mode():
            moved = batch.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            raw: torch.Tensor = self.network(moved).cpu()
        return raw

    def check_params(self, params: dict[str, Any]) -> None:
        for name in params:
            if name not in self.task.params:
                raise InputError(
                    f"unknown parameter {name!r} for task {self.task.name}.{did_you_mean(name, self.task.params)} "
                    f"Known: {', '.join(self.task.params)}."
                )

    def _run(self, prepared: Sequence[Any], params: dict[str, Any]) -> list[Prediction | Failure]:
        import torch

        good = [item for item in prepared if not isinstance(item, Failure)]
        answers: Iterator[Prediction | Failure] = iter(())
        if good:
            # stacked as NHWC, which is how the decoder left the pixels and what channels_last wants
            batch = torch.stack([pixels.permute(1, 2, 0) for pixels, _ in good]).permute(0, 3, 1, 2)
            raw = self.outputs(batch)
            finite = raw.flatten(1).isfinite().all(dim=1).tolist()
            found = self.processor.postprocess(raw, [size for _, size in good], **params)
            answers = iter(
                [
                    answer if ok else Failure("the network's output is not finite")
                    for answer, ok in zip(found, finite, strict=True)
                ]
            )
        return [item if isinstance(item, Failure) else next(answers) for item in prepared]


_starting = threading.Lock()


def _decoders(count: int) -> ThreadPoolExecutor:
    """A pool whose threads don't start pools of their own for every resize.

    `torch.set_num_threads` holds for the calling thread and for all threads that use torch for the first time
    afterwards. So the number is put back once all of ours have read it: another thread that runs a network later
    (a server's) would otherwise compute on one core.
    """
    import torch

    pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
    together = threading.Barrier(count)

    def start() -> None:
        torch.set_num_threads(1)
        together.wait()

    with _starting:
        before = torch.get_num_threads()
        wait([pool.submit(start) for _ in range(count)])
        torch.set_num_threads(before)
    return pool
