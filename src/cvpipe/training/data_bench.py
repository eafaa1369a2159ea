"""`cvpipe data bench`: how fast images come, how fast the network takes them, and which of the two waits."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvpipe.config import Config
from cvpipe.config_file import as_config
from cvpipe.errors import DataError, ImageError
from cvpipe.utils.console import facts, say, table

if TYPE_CHECKING:
    from cvpipe.data.loader import Batch, ImageDataset
    from cvpipe.data.module import ImageDataModule
    from cvpipe.data.splits import Splits
    from cvpipe.data.workers import Rate
    from cvpipe.task import Task

STAGES = ("read", "decode", "resize", "augment", "collate")
_MOST_STAGED = 400
_WARM_UP = 2
_CLOSE = 1.1


@dataclass(frozen=True)
class DataBench:
    """What was measured.

    Attributes:
        stages: milliseconds an image on one core, median: read (until the bytes are there), decode, resize (as in
            validation), augment (what training adds to that), collate.
        megapixels: of an image as stored, median.
        loader: images a second of so many processes, with nothing else at work.
        chosen: the number of processes that training would take.
        network: images a second of training steps on random pixels.
        device, precision, batch_size: of these steps.
        unreadable: images that could not be decoded, of those tried.
        bottleneck: loader, network, or both.
        advice: what to change, the most effective first.
    """

    stages: dict[str, float]
    megapixels: float
    loader: dict[int, float]
    chosen: int
    network: float
    device: str
    precision: str
    batch_size: int
    unreadable: int
    bottleneck: str
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return values | {"loader": {str(count): rate for count, rate in self.loader.items()}, "advice": [*self.advice]}


def bench(config: Config | str | Path, overrides: Iterable[str] = (), seconds: float = 10.0) -> DataBench:
    """Measures the single steps of loading, the loader, and the network. Prints what it finds.

    Args:
        seconds: for each of the three.

    Raises:
        InputError: config or data can't work as they are.
        DataError: no image of train can be decoded.
    """
    from cvpipe.data.prepared import read_splits
    from cvpipe.data.workers import available_cpus, measure_rates, worker_count
    from cvpipe.task import find_task

    config = as_config(config, overrides)
    task = find_task(config.task)
    splits = read_splits(task, config)
    data = task.data_module(config, splits)
    say(f"cvpipe data bench: {config.task}, {len(splits.train)} training images, about {3 * seconds:.0f} seconds")
    found, megapixels, unreadable = stage_times(data, seconds)
    _print_stages(found, megapixels, unreadable)

    cpus, setting = available_cpus(), config.training.num_workers
    powers = [2**power for power in range(8) if 2**power <= cpus]
    counts = sorted({*powers, worker_count(setting) or 1, *([2 * cpus] if setting == "auto" else [])})
    rates = measure_rates(data.measured_loader, counts, seconds / len(counts), enough=0.0)
    chosen = _chosen(rates, setting)
    say("\nloader alone")
    table([{"processes": r.workers, "images/s": round(r.images_per_second), "": _mark(r, chosen)} for r in rates])

    network, device, precision = network_rate(task, config, splits, data, seconds)
    say("\nnetwork alone: training steps on random pixels")
    facts(
        {
            "images/s": f"{network:.1f}",
            "on": f"{device}, precision {precision}, batches of {data.batch_size}, {config.model.name}",
        }
    )
    loader = next(rate.images_per_second for rate in rates if rate.workers == chosen)
    bottleneck, advice = verdict(found, rates, chosen, loader, network, cpus, device)
    say(f"\nbottleneck: {_NAMES[bottleneck]}")
    for line in advice:
        say(f"  - {line}")
    return DataBench(
        stages=found,
        megapixels=megapixels,
        loader={rate.workers: rate.images_per_second for rate in rates},
        chosen=chosen,
        network=network,
        device=device,
        precision=precision,
        batch_size=data.batch_size,
        unreadable=unreadable,
        bottleneck=bottleneck,
        advice=tuple(advice),
    )


_NAMES = {
    "loader": "the loader: the network waits for images",
    "network": "the network: images wait for it",
    "both": "neither: both are about as fast",
}


def stage_times(data: ImageDataModule, seconds: float) -> tuple[dict[str, float], float, int]:
    """(milliseconds of each stage, megapixels of an image, unreadable images): medians, on one core."""
    import torch

    from cvpipe.data.loader import Collate

    dataset: ImageDataset = data.measured_loader(0).dataset  # type: ignore[assignment]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: dict[str, list[float]] = {name: [] for name in STAGES}
        pixels: list[float] = []
        items: list[Any] = []
        unreadable = 0
        end = time.perf_counter() + seconds
        for index in _spread(len(dataset), _MOST_STAGED):
            if pixels and time.perf_counter() > end:
                break
            try:
                item, size = _one(dataset, data, index, times)
            except ImageError:
                unreadable += 1
                continue
            pixels.append(size)
            items.append(item)
            if len(items) == data.batch_size:
                _collated(Collate(data.collate_targets), items, times)
                items = []
        if not pixels:
            raise DataError(f"none of {unreadable} training images can be decoded. See: cvpipe data check.")
        if not times["collate"]:
            _collated(Collate(data.collate_targets), items, times)
    finally:
        torch.set_num_threads(before)
    found = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return found, statistics.median(pixels) / 1e6, unreadable


def _one(dataset: ImageDataset, data: ImageDataModule, index: int, times: dict[str, list[float]]) -> tuple[Any, float]:
    """One image through all stages; the time of each is added to `times`. CPU time, but for reading, which waits."""
    from cvpipe.data.decode import read_image
    from cvpipe.data.jpeg import pixels_of
    from cvpipe.data.store import read_bytes

    start = time.perf_counter()
    encoded = read_bytes(str(dataset.paths[index]))
    read = time.perf_counter() - start

    def timed(work: Any) -> tuple[Any, float]:
        start = time.thread_time()
        result = work()
        return result, time.thread_time() - start

    def resize() -> Any:
        return pixels_of(data.preprocess(image))

    def transform() -> Any:
        return dataset.transform(image, dataset.targets[index], index, dataset._another)

    image, decode = timed(lambda: read_image(encoded, dataset.max_pixels, lazy=dataset.scaled))
    # the first use decodes what is lazy; the second finds it decoded
    _, first = timed(resize)
    _, resized = timed(resize)
    _, trained = timed(transform)
    (pixels, target), trained = timed(transform)
    times["read"].append(read)
    times["decode"].append(decode + max(0.0, first - resized))
    times["resize"].append(resized)
    times["augment"].append(max(0.0, trained - resized))
    return (pixels_of(pixels), target, index, []), float(image.shape[1] * image.shape[2])


def _collated(collate: Any, items: list[Any], times: dict[str, list[float]]) -> None:
    start = time.thread_time()
    collate(items)
    times["collate"].append((time.thread_time() - start) / len(items))


def _spread(size: int, most: int) -> list[int]:
    """Positions all over the split: neighbours are often alike."""
    step = max(1, size // most)
    return list(range(0, size, step))[:most]


def network_rate(
    task: Task, config: Config, splits: Splits, data: ImageDataModule, seconds: float
) -> tuple[float, str, str]:
    """(images a second of training steps, device, precision): pixels at random, targets of a real batch.

    Published weights are not loaded: a step takes as long without them.
    """
    import torch
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader, IterableDataset

    from cvpipe.training.fit import _device_options, _prepare_network, seed_everything
    from cvpipe.training.progress import quiet_lightning
    from cvpipe.utils.device import choose_device, choose_precision

    quiet_lightning()
    seed_everything(config.training.seed)
    if config.model.pretrained is True:
        config = config.replace(**{"model.pretrained": False})
    module = task.module(config, splits.labels)
    module.total_steps = 1_000_000
    device = choose_device(config.training.device)
    _prepare_network(module, config, device)
    batch = next(iter(data.measured_loader(0)))
    shape = batch.images.permute(0, 2, 3, 1).shape
    batch = batch._replace(images=torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2))
    clock: list[float] = []

    class Repeated(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Batch]:
            # asked for a batch, the loop has handed the one before to the device
            end = 0.0
            while len(clock) < _WARM_UP + 2 or time.perf_counter() < end:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                clock.append(time.perf_counter())
                end = end or (time.perf_counter() + seconds if len(clock) > _WARM_UP else 0.0)
                yield batch

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **_device_options(config, device),
            max_epochs=1,
            accumulate_grad_batches=config.training.accumulate,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(module, train_dataloaders=DataLoader(Repeated(), batch_size=None))
    steps = [after - before for before, after in zip(clock[_WARM_UP:], clock[_WARM_UP + 1 :], strict=False)]
    precision, _ = choose_precision(config.training.precision, device)
    return len(batch.indices) / statistics.median(steps), str(device), precision


def verdict(
    stages: dict[str, float],
    rates: list[Rate],
    chosen: int,
    loader: float,
    network: float,
    cpus: int,
    device: str,
) -> tuple[str, list[str]]:
    """(loader, network or both; what to do about it). Rates in images/s, stages in ms an image."""
    ratio = loader / network
    if ratio >= _CLOSE:
        advice = [f"images come {ratio:.1f} times as fast as they are used: the data path needs no work"]
        if device == "cpu":
            advice.append(
                "both share the CPUs here; a GPU, or a smaller model or data.image_size, makes training faster"
            )
        else:
            advice.append("a smaller model or data.image_size, bf16 or training.compile=true make training faster")
        return "network", advice
    total = sum(stages.values())
    best = max(rates, key=lambda rate: rate.images_per_second)
    advice = []
    if best.images_per_second > _CLOSE * loader:
        advice.append(
            f"training.num_workers={best.workers}: {best.images_per_second:.0f} images/s instead of {loader:.0f}"
        )
    if stages["read"] > 0.3 * total:
        advice.append(
            f"reading takes {stages['read'] / total:.0%} of the time: copy the data to a local disk, set data.cache, "
            "or pack it: cvpipe data prepare --config CONFIG --to DIR"
        )
    if stages["decode"] > 0.5 * total:
        advice.append(
            f"decoding takes {stages['decode'] / total:.0%} of the time: pack the data at the size that training "
            "needs: cvpipe data prepare --config CONFIG --to DIR --short-side PIXELS"
        )
    if stages["augment"] > 0.3 * total:
        advice.append(
            f"augmentation takes {stages['augment'] / total:.0%} of the time: lower data.augment.color_jitter and what "
            "else is set there"
        )
    if not advice:
        advice.append(f"all {cpus} CPUs are at work: a machine with more of them loads faster")
    return ("both" if ratio > 1 / _CLOSE else "loader"), advice


def _chosen(rates: list[Rate], setting: int | str) -> int:
    """What training would take: the setting (0 is measured as 1), or the fewest processes near the best rate."""
    if isinstance(setting, int):
        return setting or 1
    best = max(rate.images_per_second for rate in rates)
    return next(rate.workers for rate in rates if rate.images_per_second * _CLOSE >= best)


def _mark(rate: Rate, chosen: int) -> str:
    return "<- training takes these" if rate.workers == chosen else ""


def _print_stages(found: dict[str, float], megapixels: float, unreadable: int) -> None:
    total = sum(found.values())
    say(
        f"\none image of {megapixels:.2f} megapixels, on one core"
        + (f" ({unreadable} unreadable)" if unreadable else "")
    )
    rows: list[dict[str, object]] = [
        {"step": name, "ms": round(value, 3), "share": f"{value / total:.0%}"} for name, value in found.items()
    ]
    table([*rows, {"step": "all", "ms": round(total, 3), "share": f"{1e3 / total:.0f} images/s"}])
