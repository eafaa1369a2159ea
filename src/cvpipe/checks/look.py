"""One image file -> the few numbers that the checks are made from. Runs in worker processes."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cvpipe.checks.hashes import SIDE
from cvpipe.data.decode import MAX_PIXELS, decode
from cvpipe.data.store import read_bytes
from cvpipe.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image
    import torch

SMALL = 256
"""Longest side at which images are looked at, pixels: brightness and sharpness do not depend on the camera."""
INPUT = 160
"""Side at which the network sees images, pixels."""
NETWORK = "package:efficientnet-lite0"
_ORIENTATION = 0x0112
_DRAFTED = frozenset({"L", "RGB"})


class Look(NamedTuple):
    """What is known about one file; all but `reason` and `digest` empty where it can't be decoded.

    Attributes:
        reason: why it can't be decoded, or empty.
        digest: 16 bytes, BLAKE2b of the file's content.
        width, height: upright, pixels.
        format, mode: Pillow's names, such as JPEG and RGB.
        orientation: of EXIF, 1 to 8; 1 is upright.
        low, mean, high: 5th percentile, mean and 99th percentile of grey values, 0 to 255.
        contrast: standard deviation of grey values.
        sharpness: standard deviation of the Laplacian, as a share of `contrast`.
        thumbnail: SIDE x SIDE uint8 grey, the whole image squashed.
        features: float16; empty where none were asked for.
    """

    reason: str
    digest: bytes
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    orientation: int = 1
    low: float = 0.0
    mean: float = 0.0
    high: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0
    thumbnail: bytes = b""
    features: bytes = b""


def look_at(paths: Sequence[str], kind: str, max_pixels: int = MAX_PIXELS) -> list[Look]:
    """Reads and decodes each file once.

    Args:
        paths: addresses of images.
        kind: of the features: network, plain or none.
    """
    looks: list[Look] = []
    seen: list[tuple[int, PIL.Image.Image]] = []
    for path in paths:
        look, small = _look(path, max_pixels)
        if small is not None and kind != "none":
            seen.append((len(looks), _for_features(small, kind)))
        looks.append(look)
    if seen:
        features = describe([image for _, image in seen], kind)
        for (position, _), row in zip(seen, features, strict=True):
            looks[position] = looks[position]._replace(features=row.tobytes())
    return looks


def look_into(jobs: Sequence[tuple[str, Any]], kind: str, max_pixels: int = MAX_PIXELS) -> list[Any]:
    """Features of what is in boxes.

    Args:
        jobs: (address, (n, 4) float32 boxes x1 y1 x2 y2) each.

    Returns:
        For each image (n, length) float16, or None where it can't be decoded.
    """
    from PIL import Image

    found: list[Any] = []
    for path, boxes in jobs:
        try:
            image = Image.fromarray(decode(read_bytes(path), max_pixels).permute(1, 2, 0).contiguous().numpy())
        except ImageError:
            found.append(None)
            continue
        crops = [_for_features(image.crop(_with_border(box, image.size)), kind) for box in boxes]
        found.append(describe(crops, kind))
    return found


def _with_border(box: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box with a tenth of its sides around it, at least one pixel large, inside the image."""
    x1, y1, x2, y2 = (float(value) for value in box)
    dx, dy = (x2 - x1) / 10, (y2 - y1) / 10
    left, top = int(max(0, x1 - dx)), int(max(0, y1 - dy))
    return left, top, max(left + 1, int(min(size[0], x2 + dx))), max(top + 1, int(min(size[1], y2 + dy)))


def _look(path: str, max_pixels: int) -> tuple[Look, PIL.Image.Image | None]:
    digest = b""
    try:
        data = read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        small, header = _small(data, max_pixels)
    except ImageError as error:
        return Look(str(error) or "can't be decoded", digest), None
    grey_image = small.convert("L")
    grey = np.asarray(grey_image, dtype=np.float32)
    low, high = np.percentile(grey, (5, 99))
    contrast = float(grey.std())
    thumbnail = grey_image.resize((SIDE, SIDE), _box())
    look = Look("", digest, *header, float(low), float(grey.mean()), float(high), contrast, _sharpness(grey, contrast))
    return look._replace(thumbnail=thumbnail.tobytes()), small


def _small(data: bytes, max_pixels: int) -> tuple[PIL.Image.Image, tuple[int, int, str, str, int]]:
    """The upright image in RGB, at most SMALL pixels long, and its width, height, format, mode and orientation.

    JPEG is decoded at a fraction of its size. That reads the data to the end all the same, so a truncated file is
    found. What Pillow refuses is judged by the decoder of training: both give the same verdict.

    Raises:
        ImageError: as `decode`.
    """
    from PIL import Image, ImageOps

    try:
        image: PIL.Image.Image = Image.open(io.BytesIO(data))
        (width, height), mode, form = image.size, image.mode, image.format or ""
        turn = _orientation(image)
        quick = form in ("JPEG", "MPO") and mode in _DRAFTED and 0 < width * height <= max_pixels
        if quick:
            image.draft(mode, (SMALL // 2, SMALL // 2))
            image.load()
            if turn != 1:
                image = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        decode(data, max_pixels)  # says why, in the words of training
        quick, width, height, mode, form, turn = False, 0, 0, "", "", 1
    if not quick:
        pixels = decode(data, max_pixels)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        width, height = image.size
    elif 5 <= turn <= 8:
        width, height = height, width
    if max(image.size) > SMALL:
        image.thumbnail((SMALL, SMALL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return image.convert("RGB"), (width, height, form, mode, turn)


def _orientation(image: PIL.Image.Image) -> int:
    try:
        turn = int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, TypeError, SyntaxError, KeyError, struct.error):
        return 1
    return turn if 1 <= turn <= 8 else 1


def _sharpness(grey: npt.NDArray[np.float32], contrast: float) -> float:
    """How much of the contrast is between neighbouring pixels; small for blurred images, however dark."""
    if min(grey.shape) < 3 or contrast == 0:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.std()) / contrast


def _for_features(image: PIL.Image.Image, kind: str) -> PIL.Image.Image:
    from PIL import Image

    side = INPUT if kind == "network" else SIDE
    return image.resize((side, side), Image.Resampling.BILINEAR)


def describe(images: Sequence[PIL.Image.Image], kind: str) -> npt.NDArray[np.float16]:
    """(n, length) float16 features of square RGB images, each of length 1."""
    if not images:
        return np.zeros((0, 0), np.float16)
    pixels = np.stack([np.asarray(image) for image in images])
    found = _network_features(pixels) if kind == "network" else plain_features(pixels)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float16] = (found / np.maximum(length, 1e-6)).astype(np.float16)
    return scaled


def plain_features(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 32, 32, 3) uint8 RGB -> (n, 384) float32: a thumbnail, colours, and directions of edges.

    8x8 pixels of RGB (192); a histogram of 4x4x4 colours (64); for each of 4x4 cells a histogram of 8 directions of
    the grey value's gradient, weighted by its length (128). Each part has length 1 before they are put together.
    """
    n = len(pixels)
    values = pixels.astype(np.float32) / 255
    thumbnail = values.reshape(n, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(n, -1) - 0.5
    bins = (pixels >> 6).astype(np.int64)
    codes = (bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]).reshape(n, -1)
    colours = _histogram(codes, np.ones_like(codes, np.float32), 64)
    grey = values.mean(axis=3)
    dy, dx = np.gradient(grey, axis=(1, 2))
    direction = np.floor((np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 8).astype(np.int64) % 8
    cell = np.repeat(np.arange(4), 8)
    place = (cell[:, None] * 4 + cell[None, :])[None] * 8 + direction
    edges = _histogram(place.reshape(n, -1), np.hypot(dx, dy).reshape(n, -1), 128)
    parts = (thumbnail, np.sqrt(colours), np.sqrt(edges))
    return np.concatenate([p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-6) for p in parts], axis=1)


def _histogram(codes: Any, weights: Any, length: int) -> npt.NDArray[np.float32]:
    """(n, k) codes below `length` and weights -> (n, length) sums."""
    n = len(codes)
    flat = (np.arange(n)[:, None] * length + codes).reshape(-1)
    return np.bincount(flat, weights.reshape(-1), n * length).reshape(n, length).astype(np.float32)


_network: list[Any] = []


def _network_features(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, INPUT, INPUT, 3) uint8 RGB -> (n, 1280) float32, what stands before the network's last layer."""
    import torch

    if not _network:
        _network.append(_build_network())
    network, mean, std = _network[0]
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 32):
            batch = torch.from_numpy(pixels[start : start + 32]).permute(0, 3, 1, 2).float()
            maps = network.forward_features((batch / 255 - mean) / std)
            found.append(network.forward_head(maps, pre_logits=True).numpy())
    return np.concatenate(found)


def _build_network() -> tuple[Any, torch.Tensor, torch.Tensor]:
    import torch

    from cvpipe.models.fold import fold_batch_norm
    from cvpipe.models.sources import classifier

    body = classifier("tf_efficientnet_lite0", num_classes=1000, image_size=(INPUT, INPUT), pretrained=NETWORK)
    folded = fold_batch_norm(body.module.eval(), torch.zeros(1, 3, INPUT, INPUT)).to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (body.mean, body.std))
    return folded, mean, std


def _box() -> Any:
    from PIL import Image

    return Image.Resampling.BOX
