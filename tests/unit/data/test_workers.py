"""How many processes load images, and how many batches they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import workers as module
from cvpipe.data.module import ImageDataModule
from cvpipe.data.splits import Split, Splits
from cvpipe.data.workers import (
    MEASURE_FROM,
    PREFETCH,
    Rate,
    Workers,
    candidates,
    choose_workers,
    loader_rate,
    measure_rates,
    within_shared_memory,
    worker_count,
)
from cvpipe.tasks.classification.data import CollateTargets
from cvpipe.types import Labels


def never(workers: int) -> Any:
    raise AssertionError("measured")


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(0) == 0
    assert worker_count(13) == 13
    cpus: Callable[[int], set[int]] = lambda _: set(range(64))  # noqa: E731
    monkeypatch.setattr("os.sched_getaffinity", cpus, raising=False)
    assert worker_count("auto") == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert worker_count("auto") == 1


@given(st.integers(1, 200))
def test_candidates_rise_and_include_more_than_the_cpus(cpus: int) -> None:
    found = candidates(cpus)
    assert found == sorted(set(found))
    assert found[0] >= 1
    assert max(found) >= min(32, cpus)


def test_a_setting_and_a_short_run_are_not_measured() -> None:
    assert choose_workers(3, 10**9, never) == Workers(3, PREFETCH, "as configured")
    assert choose_workers("auto", MEASURE_FROM - 1, never).count == worker_count("auto")


@pytest.mark.parametrize(
    ("rates", "count"), [([100, 190, 380], 16), ([100, 105, 900], 4), ([100, 190, 195], 7), ([100, 50, 900], 4)]
)
def test_a_long_run_takes_the_fewest_that_are_about_as_fast(
    rates: list[float], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 8)
    monkeypatch.setattr(module, "loader_rate", lambda loader, seconds: loader)
    by_count = dict(zip([4, 7, 16], rates, strict=True))
    found = choose_workers("auto", MEASURE_FROM, by_count.__getitem__)  # type: ignore[arg-type]
    assert found.count == count
    assert f"4: {rates[0]:.0f}" in found.reason


def test_measuring_stops_where_more_processes_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "loader_rate", lambda loader, seconds: loader)
    by_count = {1: 100.0, 2: 180.0, 4: 181.0, 8: 999.0}
    assert measure_rates(by_count.__getitem__, [1, 2, 4, 8], 1.0) == [Rate(1, 100), Rate(2, 180), Rate(4, 181)]  # type: ignore[arg-type]
    assert len(measure_rates(by_count.__getitem__, [1, 2, 4, 8], 1.0, enough=0)) == 4  # type: ignore[arg-type]


def test_the_rate_counts_images_once_all_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow:
        num_workers = 1

        def __iter__(self) -> Any:
            for _ in range(3):
                now[0] += 0.1
                yield SimpleNamespace(indices=range(8))

    assert loader_rate(Slow(), 5.0) == pytest.approx(80, rel=0.05)  # type: ignore[arg-type]
    assert loader_rate(Slow(), 0.01) == pytest.approx(80, rel=0.05), "batches longer than the time"  # type: ignore[arg-type]


@given(st.integers(0, 64), st.integers(1, 10**9), st.integers(0, 10**10), st.booleans())
def test_what_is_held_ready_fits_into_shared_memory_or_is_said(count: int, size: int, free: int, auto: bool) -> None:
    before = Workers(count, PREFETCH, "x")
    found, said = within_shared_memory(before, size, free, auto)
    assert found.count == count or auto
    assert 1 <= found.prefetch <= PREFETCH
    assert found.count >= min(1, count)
    if found != before:
        assert said
    if found.count * found.prefetch * size > free:
        assert count == 0 or "bus error" in said
    if count * PREFETCH * size <= 0.8 * free - size:
        assert (found, said) == (before, ""), "there was room"


def test_without_shared_memory_nothing_changes() -> None:
    before = Workers(8, PREFETCH, "x")
    assert within_shared_memory(before, 10**9, None, True) == (before, "")


def test_a_data_module_fits_into_a_small_shared_memory(
    tmp_path: Path, tiny_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    split = Split("train", tuple(str(tmp_path / f"{i}.png") for i in range(8)), (0, 1) * 4)
    config = tiny_config.replace(**{"training.num_workers": 2, "training.batch_size": 4, "data.image_size": 16})
    labels = Labels(("a", "b"))

    def plain(image: torch.Tensor) -> torch.Tensor:
        return image[:, :16, :16]

    monkeypatch.setattr("cvpipe.data.module.shared_memory_free", lambda: 4 * 4 * 3 * 16 * 16 * 5 // 4)
    data = ImageDataModule(config, Splits(split, split, None, labels, "x"), plain, CollateTargets(labels))
    assert data.workers().count == 2
    assert data.workers().prefetch == 2
    assert "2 processes hold 2 batches each" in capsys.readouterr().err
    assert data.train_dataloader().prefetch_factor == 2
