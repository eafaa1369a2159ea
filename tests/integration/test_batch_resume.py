"""Batch runs that are killed: the same command again ends with each image exactly once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cvpipe.bundle import Bundle

pytestmark = pytest.mark.integration

IMAGES = 300
# slow enough that a kill comes before the end
CODE = """
import sys, time
from cvpipe.inference.batch_inference import predict
from cvpipe.predictor import Predictor

class Slow(Predictor):
    def prepare(self, image):
        time.sleep(0.02)
        return super().prepare(image)

model, photos, output = sys.argv[1:]
print(predict(Slow.load(model, device="cpu", batch_size=8, threads=2), photos, output, save_every=0.05).resumed)
"""


@pytest.fixture(scope="module")
def photos(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images in subfolders, three of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    sources = sorted((digits / "test").rglob("*.png"))
    for number in range(IMAGES):
        target = folder / f"{number % 7}" / f"{number:03d}.png"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(sources[number % len(sources)], target)
    for number in (3, 150, 299):
        (folder / f"{number % 7}" / f"{number:03d}.png").write_bytes(b"broken")
    return folder


def start(model: Path, photos: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(model), str(photos), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_parts(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Returns once `count` parts are there, or the process has ended."""
    folder = output.with_name(f"{output.name}.parts")
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if len(list(folder.glob("part-*.jsonl"))) >= count:
            return
        time.sleep(0.005)
    assert process.poll() == 0, process.communicate()


@pytest.mark.parametrize("kills", [[signal.SIGKILL, signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT]])
def test_each_image_exactly_once(
    kills: list[signal.Signals], photos: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    output = tmp_path / "predictions.json"
    seen = 0
    for number in kills:
        process = start(tiny_bundle.path, photos, output)
        # above what the killed run before left behind
        wait_for_parts(process, output, seen + 4)
        process.send_signal(number)
        text, _ = process.communicate(timeout=60)
        assert process.returncode != 0, text
        assert not output.exists()
        if number != signal.SIGKILL:
            assert "The same command goes on from there." in text
        seen = len(list(output.with_name("predictions.json.parts").glob("part-*.jsonl")))
    process = start(tiny_bundle.path, photos, output)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert int(text.splitlines()[-1]) > 0
    records = json.loads(output.read_text())
    assert [record["path"] for record in records] == sorted(map(str, photos.rglob("*.png")))
    assert Counter(record["error"] for record in records) == {None: 297, "not an image file (no known format)": 3}
    assert os.listdir(tmp_path) == [output.name]


def test_second_process_is_refused(photos: Path, tmp_path: Path, tiny_bundle: Bundle) -> None:
    output = tmp_path / "predictions.csv"
    first = start(tiny_bundle.path, photos, output)
    wait_for_parts(first, output, 1)
    second = start(tiny_bundle.path, photos, output)
    text, _ = second.communicate(timeout=120)
    assert second.returncode != 0
    first.wait(timeout=120)
    if "exists already" not in text:  # where starting took longer than the first one's work
        assert f"Another process writes this output: process {first.pid}" in text
    assert first.returncode == 0
    assert len(output.read_text().splitlines()) == IMAGES + 1
