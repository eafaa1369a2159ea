"""Training batches from real JPEGs, ours against the loaders that people use; memory of a long epoch; our own overhead.

Three scenes, all random crop and flip to 224 pixels, batches of 32, the same number of images and processes:

- `raw`: the photos of `--images` as they are, about 350 to 700 pixels.
- `raw12`: the same photos at 4000x3000, JPEG quality 90, 4:2:0, with the noise of a sensor (standard deviation 3) added
  before encoding, because a photo that was only enlarged compresses too well. 1.3 to 1.8 MB a file.
- `packed`: the photos with a short side of 256 pixels, quality 90, once in each loader's own format, all made of the
  same encoded bytes; ImageFolder reads the files of `raw`, which is what one would do without packing.

Ours gives uint8 batches, which our network normalises; the others' are normalised floats, as their users make them.
A peer that is not installed is named and left out.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare import ROOT, Comparison, Options, compare, figures, run_engine
from benchmarks.images import photo_tree
from benchmarks.loader import BATCH, CROP_SCALE, MEAN, SIZE, STD, WARMUP, WORKERS, _our_loader, _rate

PEERS_PYTHON = ROOT / ".venv" / "peers" / "bin" / "python"
SHORT_SIDE = 256
QUALITY = 90
GOALS = {"raw": 2.5, "raw12": 5.0, "packed": 5.0}
OURS = {"raw": "cvpipe", "raw12": "cvpipe", "packed": "cvpipe_shards"}
TORCHVISION = ("torchvision_v1", "torchvision_v2")
PEERS: dict[str, tuple[str, ...]] = {
    "raw": (*TORCHVISION, "timm", "huggingface"),
    "raw12": (*TORCHVISION, "timm", "huggingface"),
    "packed": (*TORCHVISION, "webdataset", "streaming", "litdata"),
}
_MODULES = {"timm": "timm", "huggingface": "datasets", "webdataset": "webdataset"}
_MODULES |= {"streaming": "streaming", "litdata": "litdata"}


def measure(options: Options, work: Path) -> list[Comparison]:
    """Against torchvision the goals of GOALS, against every other loader at least 1. 20 minutes on 2 cores."""
    found: list[Comparison] = []
    for scene in GOALS:
        batches = 2 if options.quick else {"raw": 40, "raw12": 6, "packed": 80}[scene]
        warm_up = 1 if options.quick else {"raw": WARMUP, "raw12": 4, "packed": WARMUP}[scene]
        count = (batches + warm_up + 1) * BATCH
        if scene == "raw12":
            folder = large_tree(options.images, work, count, 3 if options.quick else 24)
        else:
            folder = photo_tree(options.images, work, count)
        settings = {"folder": str(folder), "batches": batches, "warm_up": warm_up}
        if scene == "packed":
            settings["packed"] = str(_packed(folder, work, count))
        found += _scene(scene, settings, options)
    return found


def _scene(scene: str, settings: dict[str, Any], options: Options) -> list[Comparison]:
    """Every engine in turn; one that fails is said, and does not stop the others."""
    engines = [OURS[scene], *PEERS[scene]]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for turn in range(options.rounds):
        for name in engines if turn % 2 == 0 else reversed(engines):
            if len(runs[name]) < turn:  # failed before
                continue
            result = _attempt(name, name, settings, must=name == OURS[scene])
            if result:
                runs[name].append(result)
                rate = result["images_per_second"]
                print(f"  {turn + 1}/{options.rounds}  {scene}/{name:<20} {rate:.0f}", file=sys.stderr, flush=True)
    ours = figures(runs[OURS[scene]], "images_per_second")
    found = []
    for name in PEERS[scene]:
        theirs = figures(runs[name], "images_per_second")
        if len(theirs) == len(ours):
            goal = GOALS[scene] if name in TORCHVISION else 1.0
            what = f"loader, {scene}, crop and flip, {WORKERS} processes, against {name}"
            title = f"loader/{scene}/{name}"
            found.append(compare(title, what, "images/s", ours, theirs, goal=goal, at_least=True))
    return found


def _attempt(name: str, function: str, settings: dict[str, Any], must: bool = False) -> dict[str, float]:
    """Runs an engine of a loader; {} where it fails (most often: it is not installed), with a line that says why."""
    try:
        return run_engine(f"loader_peers.{function}", settings, _python(name))
    except RuntimeError as error:
        if must:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(f"  {function} left out: {lines[-1]}", file=sys.stderr, flush=True)
        return {}


def _python(name: str) -> str:
    return str(PEERS_PYTHON) if name in _MODULES and PEERS_PYTHON.exists() else sys.executable


# the images


def large_tree(source: Path, work: Path, count: int, photos: int) -> Path:
    """`photo_tree` of so many photos enlarged to 12 megapixels."""
    import numpy as np
    from PIL import Image

    large = work / "large"
    if not large.is_dir():
        noise = np.random.default_rng(0)
        originals = sorted((photo_tree(source, work, 10 * BATCH) / "train").rglob("*.jpg"))
        for number, path in enumerate(originals[:: max(1, len(originals) // photos)][:photos]):
            image = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
            grain = noise.normal(0, 3, (3000, 4000, 3)).astype(np.float32)
            pixels = (np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8)
            target = large / "train" / path.parent.name / f"{number:03d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target, quality=QUALITY, subsampling="4:2:0")
    return photo_tree(large, work / "many-large", count)


def _packed(folder: Path, work: Path, count: int) -> Path:
    """The same encoded images in every format: ours is made by `cvpipe data prepare` of the small files."""
    import subprocess

    packed = work / f"packed-{count}"
    if packed.is_dir():
        return packed
    small = packed / "small"
    for path, data in _small(folder):
        target = small / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    config = packed / "config.yaml"
    config.write_text(f"task: classification\ndata: {{train: {small}}}\nmodel: {{pretrained: false}}\n")
    command = [sys.executable, "-m", "cvpipe.cli", "data", "prepare", "-c", str(config), "--to", str(packed / "shards")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cvpipe data prepare failed:\n{done.stderr[-2000:]}")
    for name in ("webdataset", "streaming", "litdata"):
        _attempt(name, f"pack_{name}", {"small": str(small / "train"), "to": str(packed / name)})
    return packed


def _small(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """(path, encoded with a short side of 256 pixels); links to one photo are encoded once."""
    from PIL import Image

    made: dict[Path, bytes] = {}
    for path in sorted(folder.rglob("*.jpg")):
        original = path.resolve()
        if original not in made:
            image = Image.open(original).convert("RGB")
            scale = SHORT_SIDE / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            target = io.BytesIO()
            image.resize(size, Image.Resampling.BICUBIC).save(target, "JPEG", quality=QUALITY)
            made[original] = target.getvalue()
        yield path, made[original]


def _samples(small: str) -> Iterator[tuple[bytes, int]]:
    """(encoded image, number of its class), well mixed, as a packer should do."""
    import random

    paths = sorted(Path(small).rglob("*.jpg"))
    classes = {name: number for number, name in enumerate(sorted({path.parent.name for path in paths}))}
    random.Random(0).shuffle(paths)
    for path in paths:
        yield path.read_bytes(), classes[path.parent.name]


def pack_webdataset(small: str, to: str) -> dict[str, float]:
    import webdataset

    Path(to).mkdir(parents=True)
    with webdataset.ShardWriter(f"{to}/%04d.tar", maxcount=500, verbose=0) as sink:
        for number, (data, label) in enumerate(_samples(small)):
            sink.write({"__key__": f"{number:08d}", "jpg": data, "cls": label})
    return {}


def pack_streaming(small: str, to: str) -> dict[str, float]:
    from streaming import MDSWriter

    with MDSWriter(out=to, columns={"image": "bytes", "label": "int"}) as sink:
        for data, label in _samples(small):
            sink.write({"image": data, "label": label})
    return {}


def pack_litdata(small: str, to: str) -> dict[str, float]:
    from litdata.streaming.writer import BinaryWriter

    Path(to).mkdir(parents=True)
    writer = BinaryWriter(to, chunk_bytes="64MB")
    for number, (data, label) in enumerate(_samples(small)):
        writer.add_item(number, {"image": data, "label": label})
    writer.done()
    writer.merge()
    return {}


# the engines: each one yields batches of images


def cvpipe(folder: str, batches: int, warm_up: int, packed: str = "") -> dict[str, float]:
    return _rate((batch.images for batch in _our_loader(folder, 0.0)), batches, warm_up)


def cvpipe_shards(folder: str, batches: int, warm_up: int, packed: str) -> dict[str, float]:
    return _rate((batch.images for batch in _our_loader(f"{packed}/shards", 0.0)), batches, warm_up)


def torchvision_v1(folder: str, batches: int, warm_up: int, packed: str = "") -> dict[str, float]:
    return _rate(_image_folder(folder, _pillow_transform(1)), batches, warm_up)


def torchvision_v2(folder: str, batches: int, warm_up: int, packed: str = "") -> dict[str, float]:
    return _rate(_image_folder(folder, _pillow_transform(2)), batches, warm_up)


def timm(folder: str, batches: int, warm_up: int, packed: str = "") -> dict[str, float]:
    """`create_loader` with its defaults for training, less the colour jitter."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=folder, split="train", is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        scale=CROP_SCALE,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=WORKERS,
        use_prefetcher=False,
        pin_memory=False,
        persistent_workers=True,
    )
    return _rate((images for images, _ in loader), batches, warm_up)


def huggingface(folder: str, batches: int, warm_up: int, packed: str = "") -> dict[str, float]:
    """`imagefolder` with a crop and flip, then the image processor of a ViT, as its examples do."""
    import datasets
    import torch
    from torchvision.transforms import v2
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(do_resize=False, image_mean=list(MEAN), image_std=list(STD))
    augment = v2.Compose([v2.RandomResizedCrop(SIZE, scale=CROP_SCALE, antialias=True), v2.RandomHorizontalFlip()])
    files = [str(path) for path in sorted((Path(folder) / "train").rglob("*.jpg"))]
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        images = [augment(image.convert("RGB")) for image in rows["image"]]
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"]}

    loader = torch.utils.data.DataLoader(
        table.with_transform(transform), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return _rate((batch["pixel_values"] for batch in loader), batches, warm_up)


def webdataset(folder: str, batches: int, warm_up: int, packed: str) -> dict[str, float]:
    import webdataset as wds

    transform = _pillow_transform(2)
    shards = sorted(str(path) for path in Path(packed, "webdataset").glob("*.tar"))
    stream = wds.WebDataset(shards, shardshuffle=len(shards), resampled=True).shuffle(1000).decode("pil")
    stream = stream.to_tuple("jpg", "cls").map_tuple(transform, int).batched(BATCH, partial=False)
    loader = wds.WebLoader(stream, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return _rate((images for images, _ in loader), batches, warm_up)


def streaming(folder: str, batches: int, warm_up: int, packed: str) -> dict[str, float]:
    import torch
    from PIL import Image
    from streaming import StreamingDataset

    transform = _pillow_transform(2)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            row = super().__getitem__(index)
            return transform(Image.open(io.BytesIO(row["image"])).convert("RGB")), row["label"]

    loader = torch.utils.data.DataLoader(
        Images(local=f"{packed}/streaming", shuffle=True, batch_size=BATCH),
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return _rate((images for images, _ in _again(loader)), batches, warm_up)


def litdata(folder: str, batches: int, warm_up: int, packed: str) -> dict[str, float]:
    from litdata import StreamingDataLoader, StreamingDataset
    from PIL import Image

    transform = _pillow_transform(2)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return transform(Image.open(io.BytesIO(row["image"])).convert("RGB")), row["label"]

    loader = StreamingDataLoader(
        Images(f"{packed}/litdata", shuffle=True), batch_size=BATCH, num_workers=WORKERS, persistent_workers=True
    )
    return _rate((images for images, _ in _again(loader)), batches, warm_up)


def _again(loader: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _image_folder(folder: str, transform: Any) -> Iterator[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(Path(folder) / "train"), transform)
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return (batch for batch, _ in loader)


def _pillow_transform(version: int) -> Any:
    """Pillow image -> normalised float tensor, as torchvision's documentation writes it for v1 and v2."""
    import torch
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    if version == 1:
        steps = [v1.RandomResizedCrop(SIZE, scale=CROP_SCALE), v1.RandomHorizontalFlip(), v1.ToTensor()]
        return v1.Compose([*steps, v1.Normalize(MEAN, STD)])
    crop = [v2.RandomResizedCrop(SIZE, scale=CROP_SCALE, antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
