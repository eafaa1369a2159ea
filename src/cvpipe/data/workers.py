"""How many processes load images: by rule for short runs, tried out for long ones. Batches do not depend on it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cvpipe.data.loader import Batch, Loader

MEASURE_FROM = 100_000
"""Images loaded in the whole run (images x epochs) from which a few seconds of trying out pay."""
PREFETCH = 4
"""Batches that each process holds ready."""
_SECONDS = 0.7
_ENOUGH = 1.1
_SHARE_OF_MEMORY = 0.8
_SHARED_MEMORY = Path("/dev/shm")


class Rate(NamedTuple):
    """What so many processes load: images a second, without anybody else at work."""

    workers: int
    images_per_second: float


@dataclass(frozen=True)
class Workers:
    """A decision.

    Attributes:
        count: processes; 0: the process that trains loads too.
        prefetch: batches that each of them holds ready.
        reason: why, for the start-up messages.
    """

    count: int
    prefetch: int
    reason: str


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | str) -> int:
    """The number of loader processes: the setting, or one less than the CPUs this process may use, at most 8."""
    return setting if isinstance(setting, int) else max(1, min(8, available_cpus() - 1))


def described(setting: int | str, images: int) -> str:
    """What is known before loading starts, for the start-up messages. Arguments as for `choose_workers`."""
    if setting == "auto" and images >= MEASURE_FROM:
        return "as many processes as load fastest, found out before the first epoch"
    return f"{worker_count(setting)} processes"


def choose_workers(setting: int | str, images: int, make: Callable[[int], Loader]) -> Workers:
    """The setting; for `auto` the rule of `worker_count`, or in a long run what loads fastest.

    Args:
        setting: `training.num_workers`.
        images: that the whole run will load.
        make: a fresh loader with so many processes.
    """
    if setting != "auto":
        return Workers(int(setting), PREFETCH, "as configured")
    count, cpus = worker_count(setting), available_cpus()
    if images < MEASURE_FROM:
        return Workers(count, PREFETCH, f"one less than the {cpus} CPUs, at least 1, at most 8")
    rates = measure_rates(make, candidates(cpus), _SECONDS)
    # a process more costs memory: the fewest that load about as fast as the fastest
    best = max(rate.images_per_second for rate in rates)
    chosen = next(rate for rate in rates if rate.images_per_second * _ENOUGH >= best)
    tried = ", ".join(f"{rate.workers}: {rate.images_per_second:.0f}" for rate in rates)
    return Workers(chosen.workers, PREFETCH, f"measured on {cpus} CPUs, images/s with {tried}")


def candidates(cpus: int) -> list[int]:
    """Counts to try, rising. More than CPUs, too: where reading waits for a mount, they pay."""
    return sorted({max(1, cpus // 2), max(1, cpus - 1), min(32, 2 * cpus)})


def measure_rates(
    make: Callable[[int], Loader], counts: Sequence[int], seconds: float, enough: float = _ENOUGH
) -> list[Rate]:
    """The rate of each count, until a further one gains less than the factor `enough`."""
    rates: list[Rate] = []
    for count in counts:
        rates.append(Rate(count, loader_rate(make(count), seconds)))
        if len(rates) > 1 and rates[-1].images_per_second < enough * rates[-2].images_per_second:
            break
    return rates


def loader_rate(loader: Loader, seconds: float) -> float:
    """Images a second once every process is at work. A small data set is gone through several times."""
    stream = _endless(loader)
    begin = time.perf_counter()
    loaded = len(next(stream).indices)
    # each process's first batch comes late; where batches take long, they must do
    for _ in range(2 * loader.num_workers):
        if time.perf_counter() - begin > 4 * seconds:
            return loaded / (time.perf_counter() - begin)
        loaded += len(next(stream).indices)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(stream).indices)
    stream.close()
    return count / (time.perf_counter() - start)


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    while True:
        yield from loader


def within_shared_memory(workers: Workers, batch_bytes: int, free: int | None, auto: bool) -> tuple[Workers, str]:
    """Fewer batches held ready, then fewer processes, where /dev/shm is too small for them; and what to say about it.

    A process that finds /dev/shm full dies with a bus error. Databricks drivers and containers often have little.

    Args:
        batch_bytes: size of a batch with its targets.
        free: bytes; None where the system has no such place.
        auto: whether the number of processes may be changed.
    """
    if free is None or not workers.count:
        return workers, ""
    room = int(_SHARE_OF_MEMORY * free) // max(1, batch_bytes)  # batches
    prefetch = max(1, min(workers.prefetch, room // workers.count))
    count = max(1, min(workers.count, room)) if auto else workers.count
    if (prefetch, count) == (workers.prefetch, workers.count) and prefetch * count <= max(1, room):
        return workers, ""
    said = f"/dev/shm has {free / 1e6:.0f} MB free, a batch takes {batch_bytes / 1e6:.0f} MB: "
    said += f"{count} processes hold {prefetch} batches each"
    if prefetch * count > room:
        said += (
            ", which does not fit: expect a bus error. Set a smaller training.batch_size or training.num_workers=0, or "
            "give the container more (docker run --shm-size=8g)"
        )
    return Workers(count, prefetch, workers.reason), said


def shared_memory_free() -> int | None:
    """Bytes; None where there is no /dev/shm."""
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None
