"""Holding out is a partition, stratified, by whole groups, and the same on every machine."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cvpipe.data.splits import BadFile, Split, Splits, hold_out
from cvpipe.types import Labels

counts = st.lists(st.integers(1, 30), min_size=1, max_size=5)
shares = st.floats(0.05, 0.95)


def make(counts: list[int], groups: list[str] | None = None, root: str = "/data") -> tuple[Split, list[str]]:
    targets = tuple(c for c, n in enumerate(counts) for _ in range(n))
    keys = [f"{target}/{i}.png" for i, target in enumerate(targets)]
    split = Split("train", tuple(f"{root}/{key}" for key in keys), targets, tuple(groups) if groups else None)
    return split, keys


@given(counts, shares)
def test_partition_and_strata(counts: list[int], share: float) -> None:
    split, keys = make(counts)
    left, held = hold_out(split, share, split.targets, keys)
    assert sorted(left.paths + held.paths) == sorted(split.paths)
    assert not set(left.paths) & set(held.paths)
    assert (left.name, held.name) == ("train", "val")
    target_of = dict(zip(split.paths, split.targets, strict=True))
    for part in (left, held):
        assert all(target_of[path] == target for path, target in zip(part.paths, part.targets, strict=True))
    found = Counter(held.targets)
    for c, n in enumerate(counts):
        expected = 0 if n == 1 else min(n - 1, max(1, round(n * share)))
        assert found[c] == expected
    assert set(left.targets) == set(split.targets), "each class can still be learnt"


@given(counts, shares, st.randoms(use_true_random=False))
def test_neither_order_nor_root_matters(counts: list[int], share: float, rng: random.Random) -> None:
    split, keys = make(counts)
    expected = {path.removeprefix("/data/") for path in hold_out(split, share, split.targets, keys)[1].paths}
    order = list(range(len(split)))
    rng.shuffle(order)
    moved, _ = make(counts, root="/Volumes/elsewhere")
    shuffled = moved.select(order)
    held = hold_out(shuffled, share, shuffled.targets, [keys[i] for i in order])[1]
    assert {path.removeprefix("/Volumes/elsewhere/") for path in held.paths} == expected


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=60), shares)
def test_groups_stay_whole(rows: list[tuple[int, int]], share: float) -> None:
    rows.sort()
    targets = tuple(target for target, _ in rows)
    paths = tuple(f"/d/{i}.png" for i in range(len(rows)))
    split = Split("train", paths, targets, tuple(f"g{group}" for _, group in rows))
    left, held = hold_out(split, share, targets, list(paths))
    assert sorted(left.paths + held.paths) == sorted(paths)
    assert left.groups is not None
    assert held.groups is not None
    assert not set(left.groups) & set(held.groups)
    assert len(left) > 0


def test_a_huge_group_stays_in_training() -> None:
    groups = ["huge"] * 90 + [f"small{i}" for i in range(10)]
    for name in range(20):  # whatever the hashes say
        split, keys = make([100], [f"{name}-{group}" for group in groups])
        _, held = hold_out(split, 0.2, split.targets, keys)
        assert len(held) == 10


def test_two_images_give_one_each_whatever_the_share() -> None:
    for share in (0.01, 0.5, 0.99):
        split, keys = make([2])
        left, held = hold_out(split, share, split.targets, keys)
        assert (len(left), len(held)) == (1, 1)


def test_without_bad_files() -> None:
    train, _ = make([3, 3])
    val, _ = make([2, 2], root="/val")
    splits = Splits(train, val, None, Labels(("a", "b")), "imagefolder")
    bad = BadFile("train", train.paths[1], "broken")
    clean = splits.without([bad])
    assert clean.train.paths == (train.paths[0], *train.paths[2:])
    assert clean.train.targets == (0, 0, 1, 1, 1)
    assert clean.val == val
    assert clean.bad == (bad,)
    assert len(splits.train) == 6, "the original is left alone"


def test_select_keeps_groups_in_step() -> None:
    split, _ = make([2, 2], ["a", "b", "c", "d"])
    chosen = split.select([3, 0], "val")
    assert (chosen.name, chosen.targets, chosen.groups) == ("val", (1, 0), ("d", "a"))
