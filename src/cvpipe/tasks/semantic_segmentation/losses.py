"""Losses over class maps. Pixels marked IGNORE take no part in any of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from cvpipe.data.targets import IGNORE

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(N, classes, h, w) logits and (N, h, w) int64 classes -> the scalar to minimise."""

_FOCUS = 2.0


def build_loss(kind: str, weights: torch.Tensor | None, smoothing: float) -> Loss:
    """The loss that `training.loss` names.

    Args:
        weights: (classes,) how much a pixel of each class counts in the cross-entropy, or None.
        smoothing: share of the target that is spread over all classes, in the cross-entropy.
    """

    def pixelwise(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if kind == "focal":
            return focal(logits, target, weights)
        return cross_entropy(logits, target, weights, smoothing)

    regional = {"ce_dice": dice, "ce_lovasz": lovasz_softmax}.get(kind)
    if regional is None:
        return pixelwise
    return lambda logits, target: pixelwise(logits, target) + regional(logits, target)


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """The mean over all pixels with a class; 0 where there is none (torch gives NaN)."""
    if not (target != IGNORE).any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits, target, weight=weights, ignore_index=IGNORE, label_smoothing=smoothing)


def focal(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy in which pixels that are nearly right count little: (1 - p)^2 times theirs.

    Lin et al., 2017, arXiv:1708.02002; over a softmax, as a pixel has one class.
    """
    valid = target != IGNORE
    surprise = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")[valid]
    scale = torch.ones_like(surprise) if weights is None else weights[target[valid]]
    focus = (1 - torch.exp(-surprise)) ** _FOCUS
    return (scale * focus * surprise).sum() / scale.sum().clamp_min(1e-12)


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - the mean soft Dice coefficient of the classes that the batch's targets hold.

    Milletari et al., 2016, arXiv:1606.04797, with their squares in the denominator.
    """
    valid = target != IGNORE
    known = target.where(valid, 0)
    scores = logits.softmax(dim=1) * valid[:, None]
    # gathered, not multiplied with a one-hot target, which would be the largest tensor of the step
    hit = scores.gather(1, known[:, None])[:, 0]
    overlap = hit.new_zeros(logits.shape[1]).index_add(0, known.flatten(), hit.flatten())
    pixels = torch.bincount(target[valid], minlength=logits.shape[1])
    coefficients = 2 * overlap / (scores.square().sum((0, 2, 3)) + pixels).clamp_min(1e-12)
    present = pixels > 0
    return ((1 - coefficients) * present).sum() / present.sum().clamp_min(1)


def lovasz_softmax(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A convex stand-in for 1 - mean IoU over the classes that the batch's targets hold.

    Berman et al., 2018, arXiv:1705.08790, the batch taken as one image. Sorts all pixels once a class.
    """
    valid = target != IGNORE
    labels = target[valid]
    scores = logits.softmax(dim=1).movedim(1, -1)[valid]
    losses = []
    for index in torch.unique(labels).tolist():
        truth = (labels == index).to(scores.dtype)
        errors, order = (truth - scores[:, index]).abs().sort(descending=True)
        ordered = truth[order]
        left = ordered.sum() - ordered.cumsum(0)
        jaccard = 1 - left / (ordered.sum() + (1 - ordered).cumsum(0))
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        losses.append(errors @ steps)
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0


def balanced_weights(pixels: torch.Tensor) -> torch.Tensor:
    """(classes,) number of pixels -> weights 1 / ln(1.02 + share), whose mean over the pixels is 1.

    Paszke et al., 2016, arXiv:1606.02147: unlike 1 / share this is bounded, and so does not make the network find rare
    classes everywhere.
    """
    share = pixels.double() / pixels.sum().clamp_min(1)
    weights = 1 / torch.log(1.02 + share)
    return (weights / (weights * share).sum().clamp_min(1e-12)).float()
