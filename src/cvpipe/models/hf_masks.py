"""Mask2Former for instance segmentation (Cheng et al., 2022, arXiv:2112.01527)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cvpipe.data.targets import ObjectTensors, boxes_of
from cvpipe.errors import DataError
from cvpipe.models.hf_network import HfNetwork, countable


class HfMasks(HfNetwork):
    """Mask2Former.

    In evaluation: {"boxes": (N, queries, 4) float32 x1 y1 x2 y2 in pixels of the canvas, around the mask, "scores":
    (N, queries) float32, "labels": (N, queries) int64, "mask_maps": (N, queries, h / 4, w / 4) float32 probabilities
    over the canvas}, highest score first. A mask without a pixel has score 0.
    """

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.body(pixel_values=self.pixels(images))
        height, width = images.shape[-2:]
        return best_masks(found.class_queries_logits.float(), found.masks_queries_logits.float(), (height, width))

    def dense_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of all queries."""
        found = self.body(pixel_values=self.pixels(images))
        return {"logits": found.class_queries_logits.float(), "masks": found.masks_queries_logits.float()}

    def losses(self, images: torch.Tensor, targets: Sequence[ObjectTensors]) -> dict[str, torch.Tensor]:
        found = self.body(pixel_values=self.pixels(images), output_auxiliary_logits=True)
        masks, labels = [], []
        for target in countable(targets):
            if target.masks is None:
                raise DataError("Mask2Former learns from masks, and the annotations have none. Take a box detector.")
            masks.append(target.masks.float())
            labels.append(target.labels)
        layers = [
            {name: layer[name] for name in ("class_queries_logits", "masks_queries_logits")}
            for layer in found.auxiliary_logits or ()
        ]
        # in 16 bits the assignment of queries to objects is coarse
        with torch.autocast(images.device.type, enabled=False):
            parts = self.body.get_loss_dict(
                masks_queries_logits=found.masks_queries_logits.float(),
                class_queries_logits=found.class_queries_logits.float(),
                mask_labels=masks,
                class_labels=labels,
                auxiliary_predictions=[{key: value.float() for key, value in layer.items()} for layer in layers],
            )
        terms: dict[str, torch.Tensor] = {}
        for name, value in parts.items():
            kind = "ce" if "cross_entropy" in name else name.split("_")[1]  # loss_dice_3
            terms[kind] = terms[kind] + value if kind in terms else value
        return terms


def best_masks(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The queries' answers as instances: the best pairs of query and class, as many as there are queries.

    The score is the class's probability times the mean probability of the mask's pixels.

    Args:
        class_logits: (N, queries, classes + 1), the last one for "nothing".
        mask_logits: (N, queries, h', w') over the canvas.
        size: (height, width) of the canvas, at which pixels are counted.
    """
    queries, classes = class_logits.shape[1], class_logits.shape[2] - 1
    probabilities = class_logits.softmax(dim=-1)[..., :-1]
    best, found = probabilities.flatten(1).topk(queries, dim=1)
    labels, chosen = found % classes, found // classes
    boxes, scores = [], []
    for row, maps in enumerate(mask_logits):
        # image by image: all queries of a batch at the canvas's size would fill the memory
        large = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        inside = large > 0
        count = inside.flatten(1).sum(dim=1)
        sure = (large.sigmoid() * inside).flatten(1).sum(dim=1) / (count + 1e-6)
        around = boxes_of(inside.to(torch.uint8)).to(maps.device)
        boxes.append(around[chosen[row]])
        scores.append(best[row] * (sure * (count > 0))[chosen[row]])
    ranked, order = torch.stack(scores).sort(dim=1, descending=True, stable=True)
    chosen = chosen.gather(1, order)
    maps = mask_logits.sigmoid().gather(1, chosen[..., None, None].expand(-1, -1, *mask_logits.shape[2:]))
    return {
        "boxes": torch.stack(boxes).gather(1, order[..., None].expand(-1, -1, 4)),
        "scores": ranked,
        "labels": labels.gather(1, order),
        "mask_maps": maps,
    }
