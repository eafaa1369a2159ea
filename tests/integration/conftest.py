"""Fixtures of the integration tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from training_runs import COUNTS


@pytest.fixture(scope="module")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 training, 30 validation and 20 test digits."""
    root = tmp_path_factory.mktemp("small")
    for split, most in COUNTS.items():
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for path in sorted((digits / split / str(label)).iterdir())[:most]:
                shutil.copy(path, folder)
    return root
