"""`cvpipe data check` against the tools that look for duplicates and bad images, on the same JPEG files.

What each does for an image differs: imagededup computes one perceptual hash; cleanvision looks for duplicates, light,
blur and odd sizes; we do all of that, with plain features, outliers and label errors, and write a report. So the ratios
say how long a user waits, not how fast the same sum is done.

The peers are run where they are installed: in this environment, or in `.venv/peers` (pip install cleanvision
imagededup). One that is not there is named and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.compare import ROOT, Comparison, Options, compare, figures, run_engine
from benchmarks.images import photo_tree

PEERS = ("cleanvision", "imagededup")
PEERS_PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
WORKERS = 2


def measure(options: Options, work: Path) -> list[Comparison]:
    count = 200 if options.quick else 2000
    folder = photo_tree(options.images, work, count)
    runs: dict[str, list[dict[str, float]]] = {"cvpipe": []}
    pythons = {peer: python for peer in PEERS if (python := _python_with(peer)) is not None}
    for peer in PEERS:
        if peer not in pythons:
            print(f"  {peer} is not installed: left out", file=sys.stderr, flush=True)
    for turn in range(options.rounds):
        order = ["cvpipe", *pythons]
        for name in order if turn % 2 == 0 else order[::-1]:
            if name == "cvpipe":
                settings = {"folder": str(folder), "output": str(work / f"check-{turn}")}
                result = run_engine("data_check.cvpipe", settings)
            else:
                result = _run_peer(pythons[name], name, folder)
            runs.setdefault(name, []).append(result)
            print(f"  {turn + 1}/{options.rounds}  {name:<12} {result}", file=sys.stderr, flush=True)
    ours = figures(runs["cvpipe"], "images_per_second")
    if not pythons:
        what = f"data check, plain features, {WORKERS} processes"
        middle = sorted(ours)[len(ours) // 2]
        return [Comparison("data_check", what, "images/s", tuple(ours), (), middle, None, True)]
    return [
        compare(
            f"data_check/{peer}",
            f"data check with plain features, {WORKERS} processes, against {peer}",
            "images/s",
            ours,
            figures(runs[peer], "images_per_second"),
            goal=None,
            at_least=True,
        )
        for peer in pythons
    ]


def cvpipe(folder: str, output: str) -> dict[str, float]:
    """The whole command, report included, with nothing known from before."""
    from cvpipe.checks.check import check

    settings = ("check.features=plain", f"check.workers={WORKERS}")
    started = time.perf_counter()
    result = check(folder, settings, output_dir=Path(output))
    return _rate(result.totals["images"], time.perf_counter() - started)


def cleanvision(folder: str) -> dict[str, float]:
    from cleanvision import Imagelab  # type: ignore[import-not-found]

    started = time.perf_counter()
    lab = Imagelab(data_path=folder)
    lab.find_issues(n_jobs=WORKERS, verbose=False)
    return _rate(len(lab.issues), time.perf_counter() - started)


def imagededup(folder: str) -> dict[str, float]:
    from imagededup.methods import PHash  # type: ignore[import-not-found]

    started = time.perf_counter()
    hasher = PHash(verbose=False)
    hashes = hasher.encode_images(image_dir=folder, recursive=True, num_enc_workers=WORKERS)
    hasher.find_duplicates(encoding_map=hashes, max_distance_threshold=10, num_dist_workers=WORKERS)
    return _rate(len(hashes), time.perf_counter() - started)


def _rate(images: int, seconds: float) -> dict[str, float]:
    return {"images_per_second": images / seconds, "images": float(images), "seconds": seconds}


def _python_with(peer: str) -> str | None:
    """An interpreter that can import the peer."""
    if importlib.util.find_spec(peer) is not None:
        return sys.executable
    if PEERS_PYTHON.is_file():
        done = subprocess.run([str(PEERS_PYTHON), "-c", f"import {peer}"], capture_output=True, check=False)
        if done.returncode == 0:
            return str(PEERS_PYTHON)
    return None


def _run_peer(python: str, peer: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [python, "-m", "benchmarks.data_check", peer, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = {"cleanvision": cleanvision, "imagededup": imagededup}[sys.argv[1]](sys.argv[2])
    print(json.dumps(found))
