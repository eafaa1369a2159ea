"""The stream of training images depends on seed, epoch and position only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.config import AugmentConfig
from cvpipe.data.batches import EpochBatches, seed_of
from cvpipe.data.loader import Batch, ImageDataset, ImageOnly, Loader
from cvpipe.data.module import ImageDataModule
from cvpipe.data.splits import Split
from cvpipe.data.transforms import Augment, resize
from cvpipe.errors import DataError
from cvpipe.tasks.classification.data import ClassificationDataModule, CollateTargets, class_weights
from cvpipe.types import Labels

COLLATE = CollateTargets(Labels(("a", "b")))


def to_16(image: torch.Tensor) -> torch.Tensor:
    return resize(image, (16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(23):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def split_of(folder: Path, count: int = 23) -> Split:
    return Split("train", tuple(str(folder / f"{i:02d}.png") for i in range(count)), tuple(i % 2 for i in range(count)))


def loader_of(split: Split, workers: int = 0, train: bool = True, batch_size: int = 4, seed: int = 5) -> Loader:
    augment = Augment(AugmentConfig(), (16, 16)) if train else None
    dataset = ImageDataset(split, ImageOnly(to_16, augment), seed, 10_000, replace=train)
    return Loader(dataset, EpochBatches(len(split), batch_size, shuffle=train, seed=seed), COLLATE, workers)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and torch.equal(a.indices, b.indices)
        for a, b in zip(one, other, strict=True)
    )


def epochs(loader: Loader, numbers: range) -> list[Batch]:
    batches = []
    for epoch in numbers:
        loader.batches.set_epoch(epoch)
        batches += list(loader)
    return batches


def test_batches(folder: Path) -> None:
    split = split_of(folder)
    loader = loader_of(split)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    assert sorted(int(i) for b in batches for i in b.indices) == list(range(23))
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets.tolist() == [split.targets[i] for i in batch.indices]
        assert batch.bad == []


def test_the_stream_does_not_depend_on_workers_or_on_the_global_random_state(folder: Path) -> None:
    expected = epochs(loader_of(split_of(folder)), range(3))
    torch.manual_seed(99)
    assert same(epochs(loader_of(split_of(folder), workers=2), range(3)), expected)


def test_loading_leaves_the_global_random_state_alone(folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(loader_of(split_of(folder)))
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_differ(folder: Path) -> None:
    loader = loader_of(split_of(folder))
    first, second = epochs(loader, range(1)), epochs(loader, range(1, 2))
    assert not same(first, second)
    assert not same(first, epochs(loader_of(split_of(folder), seed=6), range(1)))
    assert same(first, epochs(loader, range(1))), "an epoch can be repeated"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [1, 3, 5])
def test_resuming_in_mid_epoch_gives_the_rest(folder: Path, workers: int, used: int) -> None:
    expected = epochs(loader_of(split_of(folder)), range(1, 3))
    first = loader_of(split_of(folder), workers)
    first.batches.set_epoch(1)
    stream = iter(first)
    for _ in range(used):
        next(stream)
    state = first.state_dict()
    assert state == {"epoch": 1, "batch": used}
    del stream

    second = loader_of(split_of(folder), workers)
    second.load_state_dict(state)
    second.batches.set_epoch(1)  # Lightning does this before the epoch
    rest = list(second)
    second.batches.set_epoch(2)
    assert same(rest + list(second), expected[used:])
    assert len(second) == 6, "the length is that of a whole epoch"


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next(folder: Path) -> None:
    loader = loader_of(split_of(folder))
    expected = epochs(loader, range(2))
    loader = loader_of(split_of(folder))
    list(loader)
    other = loader_of(split_of(folder))
    other.load_state_dict(loader.state_dict())
    assert same(list(other), expected[6:])


def test_an_abandoned_epoch_does_not_shorten_the_next(folder: Path) -> None:
    loader = loader_of(split_of(folder))
    for _ in loader:
        break
    loader.batches.set_epoch(1)
    assert len(list(loader)) == 6


def test_evaluation_is_in_order_and_has_no_augmentation(folder: Path) -> None:
    loader = loader_of(split_of(folder), train=False)
    batches = list(loader)
    assert [int(i) for b in batches for i in b.indices] == list(range(23))
    assert same(batches, list(loader))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 10), st.booleans())
def test_epoch_batches(size: int, batch_size: int, epoch: int, shuffle: bool) -> None:
    batches = EpochBatches(size, batch_size, shuffle=shuffle, seed=3)
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(index for batch in found for _, _, index in batch) == list(range(size))
    assert [place for batch in found for _, place, _ in batch] == list(range(size))
    assert {e for batch in found for e, _, _ in batch} == {epoch}
    sizes = [len(batch) for batch in found]
    assert all(n == batch_size for n in sizes[:-1])
    if shuffle and size > batch_size > 1:
        assert sizes[-1] >= 2, "batch normalisation can't train on one image"
        assert sizes[-1] <= batch_size + 1
    else:
        assert sizes[-1] <= batch_size


@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_processes_share_the_images(size: int, batch_size: int, world: int, epoch: int, shuffle: bool) -> None:
    if shuffle and size < world:
        with pytest.raises(DataError, match=f"{size} images are too few for {world} processes"):
            EpochBatches(size, batch_size, shuffle=True, seed=3, world_size=world)
        return
    parts = [
        EpochBatches(size, batch_size, shuffle=shuffle, seed=3, rank=rank, world_size=world) for rank in range(world)
    ]
    for part in parts:
        part.set_epoch(epoch)
    found = [list(part) for part in parts]
    assert [len(batches) for batches in found] == [len(part) for part in parts]
    keys = [key for batches in found for batch in batches for key in batch]
    alone = EpochBatches(size, batch_size * world if shuffle else batch_size, shuffle=shuffle, seed=3)
    alone.set_epoch(epoch)
    assert sorted(keys) == sorted(key for batch in alone for key in batch), "each image once, and augmented the same"
    if shuffle:
        assert len({len(batches) for batches in found}) == 1, "a process without a batch would let the others wait"
        for step in zip(*found, strict=True):
            sizes = [len(batch) for batch in step]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= 1
        together = [sorted(key for batch in step for key in batch) for step in zip(*found, strict=True)]
        if size % (batch_size * world) == 0:
            assert together == [sorted(batch) for batch in alone], "a step is the same for any number of processes"
    else:
        assert max(map(len, found)) - min(map(len, found)) <= 1
    for part, batches in zip(parts, found, strict=True):
        part.start = len(part) // 2
        assert list(part) == batches[len(part) // 2 :], "going on from a checkpoint"


def test_weights_draw_rare_images_more_often() -> None:
    weights = [1.0] * 90 + [9.0] * 10
    batches = EpochBatches(100, 10, shuffle=True, seed=0, weights=weights)
    drawn: Counter[bool] = Counter()
    for epoch in range(20):
        batches.set_epoch(epoch)
        keys = [key for batch in batches for key in batch]
        assert len(keys) == 100
        drawn.update(index >= 90 for _, _, index in keys)
    assert 0.45 < drawn[True] / 2000 < 0.55


def test_an_image_drawn_twice_looks_different_each_time(folder: Path) -> None:
    split = split_of(folder, 2)
    augment = Augment(AugmentConfig(), (16, 16))
    dataset = ImageDataset(split, ImageOnly(to_16, augment), 0, 10_000, replace=True)
    batches = EpochBatches(2, 8, shuffle=True, seed=0, weights=[1.0, 0.0])
    (batch,) = list(Loader(dataset, batches, COLLATE, 0))
    assert batch.indices.tolist() == [0, 0]
    assert not torch.equal(batch.images[0], batch.images[1])


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Split:
    """Image 1 of 4 is cut off, image 2 is missing."""
    paths = [folder / "00.png", tmp_path / "cut.png", tmp_path / "missing.png", folder / "03.png"]
    paths[1].write_bytes((folder / "01.png").read_bytes()[:200])
    return Split("train", tuple(map(str, paths)), (0, 1, 0, 1))


def test_training_replaces_a_broken_image_by_the_next_good_one(broken: Split) -> None:
    loader = loader_of(broken)
    (batch,) = list(loader)
    assert sorted(batch.indices.tolist()) == [0, 3, 3, 3]
    assert batch.targets.tolist() == [broken.targets[i] for i in batch.indices]
    assert len(batch.images) == 4
    assert {file.path for file in batch.bad} == set(broken.paths[1:3])
    reasons = {file.path: file.reason for file in batch.bad}
    assert "No such file" in reasons[broken.paths[2]]


def test_evaluation_leaves_a_broken_image_out(broken: Split) -> None:
    loader = loader_of(broken, train=False)
    (batch,) = list(loader)
    assert batch.indices.tolist() == [0, 3]
    assert batch.targets.tolist() == [0, 1]
    assert len(batch.images) == 2
    assert [file.path for file in batch.bad] == list(broken.paths[1:3])


def test_a_batch_without_a_good_image(broken: Split) -> None:
    loader = loader_of(broken.select([1, 2]), train=False)
    (batch,) = list(loader)
    assert len(batch.images) == len(batch.targets) == len(batch.indices) == 0
    assert len(batch.bad) == 2


def test_too_many_pixels_make_a_bad_file(folder: Path) -> None:
    dataset = ImageDataset(split_of(folder), ImageOnly(to_16, None), 0, 20 * 24 - 1, replace=False)
    (batch, *_) = list(Loader(dataset, EpochBatches(23, 23, shuffle=False, seed=0), COLLATE, 0))
    assert len(batch.bad) == 23


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
def test_seeds_fit_in_63_bits_and_mix_well(parts: list[int]) -> None:
    seed = seed_of(*parts)
    assert 0 <= seed < 2**63
    assert seed == seed_of(*parts)
    assert seed != seed_of(*parts[:-1], parts[-1] + 1)
    assert seed != seed_of(*parts, 0)


# the data module


def test_multi_label_targets_become_a_matrix() -> None:
    collate = CollateTargets(Labels(("a", "b", "c"), multi_label=True))
    assert collate([(0, 2), (), (1,)]).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert collate([]).shape == (0, 3)


def test_class_weights() -> None:
    labels = Labels(("a", "b", "c"))
    weights = class_weights([0, 0, 0, 1], labels)
    assert weights == pytest.approx([4 / 9, 4 / 3, 0.0])
    multi = Labels(("a", "b", "c"), multi_label=True)
    assert class_weights([(0, 1), (0,), ()], multi) == pytest.approx([0.5, 2.0, 1.0])


def test_the_sampler_balances_the_classes(folder: Path, tiny_config: Any) -> None:
    from cvpipe.data.splits import Splits

    split = Split("train", split_of(folder, 20).paths, (0,) * 18 + (1,) * 2)
    config = tiny_config.replace(**{"training.class_balance": "sampler", "data.image_size": 16})
    data = ClassificationDataModule(config, Splits(split, split, None, Labels(("a", "b")), "x"))
    loader = data.train_dataloader()
    drawn = [int(t) for epoch in range(20) for b in epochs(loader, range(epoch, epoch + 1)) for t in b.targets]
    assert 0.4 < sum(drawn) / len(drawn) < 0.6
    (batch,) = list(data.val_dataloader())
    assert batch.indices.tolist() == list(range(20)), "validation is not sampled"


def test_the_data_module_reads_its_batch_size_late(folder: Path, tiny_config: Any) -> None:
    # the trainer halves it when memory runs out
    from cvpipe.data.splits import Splits

    split = split_of(folder)
    data = ImageDataModule(tiny_config, Splits(split, split, None, Labels(("a", "b")), "x"), to_16, COLLATE)
    data.batch_size = 8
    assert len(data.train_dataloader()) == 3
