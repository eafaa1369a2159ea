"""Box detectors from transformers: DETR and its descendants, which answer with a fixed number of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cvpipe.data.targets import ObjectTensors
from cvpipe.models.hf_network import ExactLoss, HfNetwork, Made, countable


class HfBoxes(HfNetwork):
    """A box detector.

    In evaluation: {"boxes": (N, queries, 4) float32 x1 y1 x2 y2 in pixels of the canvas, "scores": (N, queries)
    float32, "labels": (N, queries) int64}, highest score first. Boxes may reach beyond the canvas.
    """

    def __init__(self, made: Made) -> None:
        super().__init__(made)
        self.body.loss_function = ExactLoss(self.body.loss_function)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.body(pixel_values=self.pixels(images))
        height, width = images.shape[-2:]
        return best_boxes(found.logits.float(), found.pred_boxes.float(), (height, width), self.classes)

    def dense_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder says about each place where the model picks its queries from there, else all queries."""
        found = self.body(pixel_values=self.pixels(images))
        logits = getattr(found, "enc_outputs_class", None)
        if logits is None:
            return {"logits": found.logits.float(), "boxes": found.pred_boxes.float()}
        return {"logits": logits.float(), "boxes": found.enc_outputs_coord_logits.float().sigmoid()}

    def losses(self, images: torch.Tensor, targets: Sequence[ObjectTensors]) -> dict[str, torch.Tensor]:
        height, width = images.shape[-2:]
        labels = [
            {"class_labels": target.labels, "boxes": relative_boxes(target.boxes, (height, width))}
            for target in countable(targets)
        ]
        found = self.body(pixel_values=self.pixels(images), labels=labels)
        terms = loss_terms(found.loss, found.loss_dict, self.body.config)
        if not any(len(label["class_labels"]) for label in labels):
            # without objects there are no denoising queries: their layer gets a zero gradient instead of none, which
            # distributed training would wait for
            idle = getattr(getattr(self.body, "model", None), "denoising_class_embed", None)
            if idle is not None:
                first = next(iter(terms))
                terms[first] = terms[first] + 0 * idle.weight.sum()
        return terms


def relative_boxes(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(n, 4) x1 y1 x2 y2 in pixels of (height, width) -> centre x, centre y, width, height as shares of it."""
    height, width = size
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    return torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], dim=-1)


def best_boxes(
    logits: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], classes: int
) -> dict[str, torch.Tensor]:
    """The queries' answers as detections, as many as there are queries, highest score first.

    Models with a logit for "nothing" after the classes give each query its best class (softmax); the others give the
    best pairs of query and class (sigmoid), so that a query can appear twice.

    Args:
        logits: (N, queries, classes or classes + 1).
        boxes: (N, queries, 4) centre x, centre y, width, height as shares of the canvas.
        size: (height, width) of the canvas.
        classes: number of classes.
    """
    if logits.shape[-1] > classes:
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        scores, queries = scores.sort(dim=1, descending=True, stable=True)
        labels = labels.gather(1, queries)
    else:
        scores, found = logits.sigmoid().flatten(1).topk(logits.shape[1], dim=1)
        labels, queries = found % classes, found // classes
    x, y, w, h = boxes.unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    corners = corners.gather(1, queries[..., None].expand(-1, -1, 4))
    height, width = size
    return {"boxes": corners * corners.new_tensor([width, height, width, height]), "scores": scores, "labels": labels}


def loss_terms(loss: torch.Tensor, parts: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Terms whose sum is the loss, one for each kind: the decoder's layers are added up.

    Args:
        loss, parts: `loss` and `loss_dict` of a transformers output.
        config: the model's config, with the weights of the terms.
    """
    if config.model_type in ("rt_detr", "rt_detr_v2", "d_fine"):
        weights = dict.fromkeys(("vfl", "bbox", "giou", "fgl", "ddf"), 1.0)  # they come weighted
    elif config.model_type in ("detr", "yolos", "table-transformer"):
        weights = {"ce": 1.0, "bbox": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient}
    else:
        return {"loss": loss}
    terms: dict[str, torch.Tensor] = {}
    for name, value in parts.items():
        kind = name.split("_")[1]  # loss_bbox_aux_0
        if name.startswith("loss_") and kind in weights:
            terms[kind] = terms.get(kind, 0) + weights[kind] * value
    return terms
