"""PatchCore (Roth et al., 2022, arXiv:2106.08265): how far each place is from all that good images showed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from cvpipe.data.transforms import PAD_GREY
from cvpipe.errors import ModelError, did_you_mean
from cvpipe.models.features import Stages, build_stages, fill_stages

if TYPE_CHECKING:
    from cvpipe.config import Config

_ALL_STAGES = 99
_NEAR = 3
"""Side of the neighbourhood that a patch feature is the mean of, in cells of its feature map; the paper's choice."""
_PROJECTED = 128
"""Dimensions in which the coreset is chosen, as in the authors' code (Johnson and Lindenstrauss: distances stay)."""
_MOST_DISTANCES = 16_000_000  # in memory at a time, 64 MB
_CANDIDATES = 4096
"""Patches among which the coreset is chosen before all others are looked at again: few enough for a CPU's cache."""
_BRIGHTNESS, _CONTRAST = 120.0, 45.0
"""Mean and standard deviation of the pixels of an equalized image; near those of ImageNet's photos."""
_LEAST_CONTRAST = 4.0
"""Standard deviation from which contrast is raised in full: the noise of a blank image stays noise."""
_NAMES = ("patchcore",)


class PatchCore(nn.Module):
    """Features of a frozen network, a memory of good ones, and distances to it.

    Input (N, 3, h, w), uint8 or float in 0..255, RGB. Output, all float32: `score` (N,), `heat` (N, h, w) for each
    pixel of the input, `threshold` (N,) the score from which an image counts as anomalous. The heat is scaled so that a
    pixel counts as anomalous from the same number on. Grey bars that letterboxing put around an image are not looked
    at: their heat is 0.

    Args:
        stages: the feature maps; they stay as they are.
        positions: which of the maps are used. The coarser ones are enlarged to the finest.
        shape: (patches, dimensions) of the memory; (0, dimensions) before the fit.
        neighbours: patches of the memory whose distances weigh the image's score (`reweighted`); 0: off.
        top: places of an image, as a share, whose mean distance is the score; 0: the most distant one alone.
        blur: standard deviation of the Gaussian that smooths the heat, pixels of the input.
        normalize: scale each feature to length 1, so that distances are those of directions: brightness and contrast of
            an image count less.
        equalize: bring each image to the same brightness and contrast first.
    """

    bank: torch.Tensor
    threshold: torch.Tensor
    pixel_threshold: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        stages: Stages,
        positions: Sequence[int],
        shape: tuple[int, int] | None = None,
        *,
        neighbours: int = 9,
        top: float = 0.0,
        blur: float = 4.0,
        normalize: bool = False,
        equalize: bool = False,
    ) -> None:
        super().__init__()
        self.stages, self.positions = stages, tuple(positions)
        self.neighbours, self.top, self.blur, self.normalize = neighbours, top, blur, normalize
        self.equalize = equalize
        self.head: tuple[str, ...] = ()
        self.note = stages.note
        dimensions = sum(stages.channels[position] for position in positions)
        self.register_buffer("mean", torch.tensor(stages.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(stages.std).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("bank", torch.zeros(shape or (0, dimensions)))
        self.register_buffer("threshold", torch.ones(()))
        # of the heat as it is before it is scaled
        self.register_buffer("pixel_threshold", torch.ones(()))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train()

    @property
    def architecture(self) -> dict[str, Any]:
        """What the config does not say: the size of the memory."""
        return {"bank": list(self.bank.shape)}

    def train(self, mode: bool = True) -> PatchCore:
        """As other modules, but the features stay those of inference: nothing in them is fitted."""
        super().train(mode)
        self.stages.eval()
        return self

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if not len(self.bank):
            raise ModelError("the memory of good patches is empty: this network was not fitted.")
        with torch.autocast(images.device.type, enabled=False):
            features, seen = self.dense_outputs(images), visible(images)
            count, _, height, width = features.shape
            patches = features.permute(0, 2, 3, 1).reshape(count, height * width, -1)
            distance, index = nearest(patches.flatten(0, 1), self.bank)
            cells = seen_cells(seen, (height, width)).flatten(1)
            distance = distance.view(count, -1) * cells
            score = self._scores(patches, distance, index.view(count, -1))
            heat = F.interpolate(
                distance.view(count, 1, height, width), size=images.shape[-2:], mode="bilinear", align_corners=False
            )
            heat = gaussian_blur(heat, self.blur)[:, 0] * seen * (self.threshold / self.pixel_threshold)
        return {"score": score, "heat": heat, "threshold": self.threshold.float().expand(count).clone()}

    def dense_outputs(self, images: torch.Tensor) -> torch.Tensor:
        """(N, dimensions, h', w') float32, a feature for each place: means of 3x3 cells of all chosen maps."""
        pixels = images.to(self.mean.dtype, copy=True)
        if self.equalize:
            pixels = equalized(pixels, visible(images))
        maps = self.stages(pixels.sub_(self.mean).div_(self.std))
        found = aggregated([maps[position].float() for position in self.positions])
        return F.normalize(found, dim=1) if self.normalize else found

    @torch.no_grad()
    def patches(self, images: torch.Tensor) -> list[torch.Tensor]:
        """For each image (places, dimensions) float32: the features where the image is, not its grey bars."""
        with torch.autocast(images.device.type, enabled=False):
            features = self.dense_outputs(images)
        cells = seen_cells(visible(images), (features.shape[2], features.shape[3]))
        return [one.permute(1, 2, 0)[seen] for one, seen in zip(features, cells, strict=True)]

    def _scores(self, patches: torch.Tensor, distance: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(N,) from (N, places, dimensions), (N, places) distances and positions of the nearest patches."""
        if self.top:
            wanted = max(1, round(self.top * distance.shape[1]))
            return distance.topk(wanted, dim=1).values.mean(dim=1)
        most, place = distance.max(dim=1)
        if not self.neighbours:
            return most
        rows = torch.arange(len(patches), device=patches.device)
        return reweighted(most, patches[rows, place], index[rows, place], self.bank, self.neighbours)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # the memory is as large as the fit made it, and this network may be from before the fit
        stored = state_dict.get(f"{prefix}bank")
        if stored is not None and stored.ndim == 2 and stored.shape[1] == self.bank.shape[1]:
            self.bank = torch.zeros(stored.shape, dtype=self.bank.dtype, device=self.bank.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def build_patchcore(config: Config, pretrained: bool | str, architecture: Mapping[str, Any] | None = None) -> PatchCore:
    """The network that `config.model` names, without a memory or with room for the one that was recorded.

    Args:
        pretrained: see `ModelConfig.pretrained`; the weights of the backbone.
        architecture: the record of an earlier network.

    Raises:
        ModelError: unknown names, strides that the backbone does not have, weights that can't be had.
    """
    model: Any = config.model
    if model.name not in _NAMES:
        raise ModelError(
            f"{config.where('model.name')}: unknown network for anomaly detection {model.name!r}."
            f"{did_you_mean(model.name, _NAMES)} Known: {', '.join(_NAMES)}."
        )
    size = config.data.image_size
    stages = build_stages(model.backbone, size, _ALL_STAGES, download=pretrained is True)
    wanted = sorted(set(model.strides))
    missing = [stride for stride in wanted if stride not in stages.strides]
    if missing:
        found = ", ".join(map(str, stages.strides))
        raise ModelError(
            f"{config.where('model.strides')}: {model.backbone} has no feature map of stride "
            f"{', '.join(map(str, missing))}. It has: {found}."
        )
    if isinstance(pretrained, str):
        servers = (config.tracking.tracking_uri, config.tracking.registry_uri)
        stages.note = fill_stages(stages, model.backbone, size, pretrained, servers)
    stages.note = stages.note.removesuffix(", new heads")
    rows, columns = architecture["bank"] if architecture else (0, 0)
    return PatchCore(
        stages,
        [stages.strides.index(stride) for stride in wanted],
        (int(rows), int(columns)) if architecture else None,
        neighbours=model.neighbours,
        top=model.top_share,
        blur=model.blur,
        normalize=model.normalize,
        equalize=model.equalize,
    )


def aggregated(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (N, channels, h, w) of several resolutions, finest first -> (N, all channels, h', w') of the finest.

    Each place is the mean of its 3x3 neighbourhood; at the border of the cells that exist.
    """
    near = [F.avg_pool2d(one, _NEAR, stride=1, padding=_NEAR // 2, count_include_pad=False) for one in maps]
    size = near[0].shape[-2:]
    same = [
        one if one.shape[-2:] == size else F.interpolate(one, size=size, mode="bilinear", align_corners=False)
        for one in near
    ]
    return torch.cat(same, dim=1)


def equalized(images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Images of the same brightness and contrast: mean 120 and standard deviation 45 over all channels, in 0..255.

    Args:
        images: (N, 3, h, w) float in 0..255.
        seen: (N, h, w) bool; pixels that are not seen neither count nor change.
    """
    shown = seen[:, None]
    count = 3 * shown.sum(dim=(1, 2, 3), keepdim=True)
    mean = (images * shown).sum(dim=(1, 2, 3), keepdim=True) / count
    deviation = (((images - mean) * shown).square().sum(dim=(1, 2, 3), keepdim=True) / count).sqrt()
    changed = (images - mean) / deviation.clamp_min(_LEAST_CONTRAST) * _CONTRAST + _BRIGHTNESS
    return torch.where(shown, changed.clamp(0, 255), images)


def visible(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, h, w) -> (N, h, w) bool: False in rows and columns at the edges that are nothing but padding grey."""
    other = (images != PAD_GREY).any(dim=1)
    rows, columns = _between(other.any(dim=2)), _between(other.any(dim=1))
    seen = rows[:, :, None] & columns[:, None, :]
    return seen | ~seen.any(dim=(1, 2), keepdim=True)  # an image that is grey all over is looked at


def _between(marked: torch.Tensor) -> torch.Tensor:
    """(N, length) bool: from the first True to the last one."""
    values = marked.to(torch.uint8)
    return (values.cummax(dim=1).values & values.flip(1).cummax(dim=1).values.flip(1)).bool()


def seen_cells(seen: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N, h, w) bool -> (N, h', w') bool: whether the centre of a cell is seen; all cells where no centre is."""
    cells = F.interpolate(seen[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
    return cells | ~cells.any(dim=(1, 2), keepdim=True)


def nearest(patches: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest neighbour of each patch.

    Args:
        patches: (M, dimensions).
        bank: (B, dimensions), at least one.

    Returns:
        (M,) Euclidean distances, (M,) positions in the bank.
    """
    centre = bank.mean(dim=0)  # distances stay, and numbers get smaller: fewer digits are lost in the differences
    near, far = patches - centre, bank - centre
    squares = far.square().sum(dim=1)
    step = max(1, _MOST_DISTANCES // len(bank))
    parts = [torch.addmm(squares, part, far.T, alpha=-2).argmin(dim=1) for part in torch.split(near, step)]
    index = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long, device=patches.device)
    return (patches - bank[index]).norm(dim=1), index


def reweighted(
    most: torch.Tensor, patch: torch.Tensor, index: torch.Tensor, bank: torch.Tensor, neighbours: int
) -> torch.Tensor:
    """The image score of the paper's equation 7: it counts more where the nearest patch of the memory is a rare one.

    Args:
        most: (N,) distance of the image's most distant patch.
        patch: (N, dimensions) that patch.
        index: (N,) position of its nearest patch in the bank.
        neighbours: how many of that one's nearest patches, itself included, are looked at.
    """
    count = min(neighbours, len(bank))
    if count < 2:
        return most
    around = torch.cdist(bank[index], bank, compute_mode="donot_use_mm_for_euclid_dist")
    others = bank[around.topk(count, dim=1, largest=False).indices]
    distances = (others - patch[:, None]).norm(dim=2)
    # exp of distances overflows: the same from their differences to the largest
    share = torch.exp(most - distances.logsumexp(dim=1))
    return most * (1 - share)


def gaussian_blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """(N, 1, h, w) smoothed with a Gaussian cut off at 4 sigma, borders mirrored, as scipy's `gaussian_filter`."""
    if not sigma:
        return maps
    radius = max(1, int(4 * sigma + 0.5))
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    kernel = kernel / kernel.sum()
    rows, columns = (_mirrored(length, radius, maps.device) for length in maps.shape[-2:])
    maps = F.conv2d(maps.index_select(2, rows), kernel.view(1, 1, -1, 1))
    return F.conv2d(maps.index_select(3, columns), kernel.view(1, 1, 1, -1))


def _mirrored(length: int, radius: int, device: torch.device) -> torch.Tensor:
    """Positions -radius … length + radius - 1, mirrored at the outer edges of the first and the last pixel."""
    place = torch.arange(-radius, length + radius, device=device) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


@torch.no_grad()
def coreset(patches: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """A few patches such that none of the others is far from them: greedy k-centre (Sener and Savarese, 2018).

    Begins with the patch nearest to the mean, then takes the one farthest from all that were taken, time and again. Of
    more than 128 dimensions distances are measured after a random projection; beyond that nothing is approximate: the
    choice is made among the farthest patches alone, as long as none of the others can be farther than they are.

    Args:
        patches: (M, dimensions).
        count: how many.
        seed: of the projection.

    Returns:
        (at most count,) int64 positions, in the order they were chosen; fewer where the rest are copies of them.
    """
    count = min(count, len(patches))
    if not count:
        return torch.empty(0, dtype=torch.long, device=patches.device)
    points = patches.float() - patches.float().mean(dim=0)
    if points.shape[1] > _PROJECTED:
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn((points.shape[1], _PROJECTED), generator=generator) / math.sqrt(_PROJECTED)
        points = points @ projection.to(points.device)
    squares = points.square().sum(dim=1)
    # what is left of the differences of large numbers where two patches are the same
    same = 1e-6 * float(squares.max())
    apart = torch.full_like(squares, torch.inf)
    chosen = pending = squares.argmin()[None]
    while True:
        apart = torch.minimum(apart, _apart(points, squares, pending))
        apart[chosen] = 0
        values, candidates = apart.topk(min(_CANDIDATES, len(points)))
        if len(chosen) == count or float(values[0]) <= same:
            return chosen
        # the distances of all others only fall: while a candidate is above them, it is the farthest of all
        others = float(values[-1]) if len(candidates) < len(points) else 0.0
        picked = _farthest(points[candidates], squares[candidates], values, count - len(chosen), max(others, same))
        pending = candidates[picked]
        chosen = torch.cat([chosen, pending])


def _farthest(
    points: torch.Tensor, squares: torch.Tensor, apart: torch.Tensor, count: int, least: float
) -> torch.Tensor:
    """Positions of at most `count` points, the farthest first; after the first one only those beyond `least`.

    Args:
        points: (M, dimensions), their `squares`d lengths (M,), and how far `apart` (M,), squared, from all chosen
            before.
    """
    picked: list[int] = []
    while len(picked) < count:
        value, position = apart.max(dim=0)
        if picked and float(value) <= least:
            break
        last = int(position)
        picked.append(last)
        apart = torch.minimum(apart, squares - 2 * (points @ points[last]) + squares[last])
        apart[last] = 0
    return torch.tensor(picked, dtype=torch.long, device=points.device)


def _apart(points: torch.Tensor, squares: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(M,) squared distance of each point to the nearest of the chosen ones."""
    centres, lengths = points[chosen], squares[chosen]
    step = max(1, _MOST_DISTANCES // len(chosen))
    parts = [torch.addmm(lengths, part, centres.T, alpha=-2).amin(dim=1) for part in torch.split(points, step)]
    return torch.cat(parts) + squares
