"""torchvision's detectors on the feature maps of any timm network, with anchors that suit the image size."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from cvpipe.errors import ModelError, did_you_mean
from cvpipe.models.detector_network import Detector
from cvpipe.models.features import Backbone, ExtraLevels, PyramidNeck, build_stages, fill_stages, lite_norm
from cvpipe.models.weights import Servers, fit_state, read_source

if TYPE_CHECKING:
    from cvpipe.tasks.objects_config import ObjectsConfig
    from cvpipe.types import Labels

_PRIOR = 0.01  # what a focal loss starts with: nearly everything is background
_RECIPE_SIDE = 800  # short side of the images that torchvision's anchor sizes are made for
_SSD_LEVELS = 6
_SSD_WIDTH = 256


def build_torchvision_detector(config: ObjectsConfig, labels: Labels, pretrained: bool | str) -> Detector:
    """The network that `config.model.name` names; see `cvpipe.models.detectors.build_detector`."""
    model = config.model
    one_stage = model.name in ("fcos", "retinanet", "ssdlite")
    wanted = 3 if one_stage else 4
    stages = build_stages(model.backbone, config.data.image_size, wanted, pretrained is True)
    neck: PyramidNeck | ExtraLevels
    if model.name == "ssdlite":
        neck = ExtraLevels(stages.channels, _SSD_LEVELS, _SSD_WIDTH)
    else:
        top: Literal["p6p7", "pool"] = "p6p7" if one_stage else "pool"
        neck = PyramidNeck(stages.channels, stages.strides, wanted, model.neck_channels, top)
    build = {
        "fcos": _fcos,
        "retinanet": _retinanet,
        "ssdlite": _ssdlite,
        "fasterrcnn": _fasterrcnn,
        "maskrcnn": _maskrcnn,
        "keypointrcnn": _keypointrcnn,
    }[model.name]
    network = build(Backbone(stages, neck), config, labels)
    if isinstance(pretrained, str):
        network.note = _fill(network, config, pretrained)
    network.hold(model.frozen_stages, model.freeze_norm)
    return network


def _fcos(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection.fcos import FCOS, FCOSHead

    classes = len(labels.classes)
    strides = _strides(backbone)
    head = FCOSHead(config.model.neck_channels, 1, classes, _convs(config, 4))
    for part in (head.classification_head, head.regression_head):
        for position, layer in enumerate(part.conv):
            if isinstance(layer, nn.GroupNorm) and layer.num_channels < 4 * layer.num_groups:
                # a group of one channel has nothing to be compared with on the 1x1 maps of small images
                part.conv[position] = nn.GroupNorm(layer.num_channels // 4, layer.num_channels)
    # a side of 0 gets no gradient through the ReLU behind it: begin with boxes of four strides
    nn.init.constant_(head.regression_head.bbox_reg.bias, 2.0)
    generator = _Anchors(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
    options = _options(config, FCOS, {"anchor_generator": generator, "head": head, **_choice(config)})
    last = ("model.head.classification_head.cls_logits",)
    return Detector(FCOS(backbone, classes, **options), config.inference.max_detections, 0, last)


def _retinanet(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

    classes = len(labels.classes)
    sizes = anchor_sides(_strides(backbone), config.data.image_size, 4.0, config.model.anchor_scale)
    generator = _Anchors(
        tuple(tuple(round(side * 2 ** (step / 3)) for step in range(3)) for side in sizes),
        ((0.5, 1.0, 2.0),) * len(sizes),
    )
    head = RetinaNetHead(config.model.neck_channels, generator.num_anchors_per_location()[0], classes)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[: _convs(config, 4)]
    options = _options(config, RetinaNet, {"anchor_generator": generator, "head": head, **_choice(config)})
    last = ("model.head.classification_head.cls_logits",)
    return Detector(RetinaNet(backbone, classes, **options), config.inference.max_detections, 0, last)


def _ssdlite(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    channels = backbone.out_channels
    assert isinstance(channels, list)
    size = config.data.image_size
    smallest = (config.model.anchor_scale or 3.0) * backbone.stages.strides[0] / min(size)
    generator = _DefaultBoxes([[2, 3]] * len(channels), scales=default_box_scales(smallest, len(channels)))
    classes = len(labels.classes) + 1
    head = SSDLiteHead(channels, generator.num_anchors_per_location(), classes, lite_norm)
    options = _options(config, SSD, {"head": head, **_choice(config)})
    last = ("model.head.classification_head",)
    return Detector(SSD(backbone, generator, size, classes, **options), config.inference.max_detections, 1, last)


def _fasterrcnn(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection import FasterRCNN

    options = _options(config, FasterRCNN, _rcnn(backbone, config, labels))
    last = ("model.roi_heads.box_predictor",)
    return Detector(FasterRCNN(backbone, **options), config.inference.max_detections, 1, last)


def _maskrcnn(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    width = config.model.head_channels or 256
    options = _rcnn(backbone, config, labels)
    options["mask_roi_pool"] = _roi_align(backbone, 14)
    options["mask_head"] = MaskRCNNHeads(config.model.neck_channels, (width,) * _convs(config, 4), 1)
    options["mask_predictor"] = predictor = MaskRCNNPredictor(width, width, len(labels.classes) + 1)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    options = _options(config, MaskRCNN, options)
    last = ("model.roi_heads.box_predictor", "model.roi_heads.mask_predictor.mask_fcn_logits")
    return Detector(MaskRCNN(backbone, **options), config.inference.max_detections, 1, last)


def _keypointrcnn(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> Detector:
    from torchvision.models.detection import KeypointRCNN
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

    if not labels.keypoints:
        raise ModelError(f"{config.where('model.name')}: keypointrcnn needs names of keypoints, and the data has none.")
    width = config.model.head_channels or 512
    options = _rcnn(backbone, config, labels)
    options["keypoint_roi_pool"] = _roi_align(backbone, 14)
    options["keypoint_head"] = KeypointRCNNHeads(config.model.neck_channels, (width,) * _convs(config, 8))
    predictor = KeypointRCNNPredictor(width, len(labels.keypoints))
    nn.init.normal_(predictor.kps_score_lowres.weight, std=0.001)
    predictor.register_forward_hook(_log_probabilities)
    options = _options(config, KeypointRCNN, {**options, "keypoint_predictor": predictor})
    last = ("model.roi_heads.box_predictor", "model.roi_heads.keypoint_predictor")
    return Detector(KeypointRCNN(backbone, **options), config.inference.max_detections, 1, last)


def _rcnn(backbone: Backbone, config: ObjectsConfig, labels: Labels) -> dict[str, Any]:
    """What all detectors of the R-CNN family take. Their last layers start as Detectron2's do: without an opinion."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    sizes = anchor_sides(_strides(backbone), config.data.image_size, 8.0, config.model.anchor_scale)
    width = 4 * config.model.head_channels if config.model.head_channels else 1024
    predictor = FastRCNNPredictor(width, len(labels.classes) + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return {
        "rpn_anchor_generator": _Anchors(tuple((round(side),) for side in sizes), ((0.5, 1.0, 2.0),) * len(sizes)),
        "box_roi_pool": _roi_align(backbone, 7),
        "box_head": TwoMLPHead(config.model.neck_channels * 7**2, width),
        "box_predictor": predictor,
        **{f"box_{name}": value for name, value in _choice(config).items()},
    }


def anchor_sides(
    strides: Sequence[int], size: tuple[int, int], in_strides: float, chosen: float | None = None
) -> list[float]:
    """The side of each level's (smallest) anchors, pixels.

    torchvision's anchors are `in_strides` strides of their level wide, for images whose short side is 800 pixels.
    Objects shrink with the image, and so do the anchors here, down to half: smaller ones would leave gaps between
    neighbouring places.

    Args:
        strides: of the levels, finest first.
        size: (height, width) of the canvas.
        chosen: sides in strides, instead of that rule.
    """
    share = chosen if chosen is not None else in_strides * min(1.0, max(0.5, min(size) / _RECIPE_SIDE))
    return [share * stride for stride in strides]


def default_box_scales(smallest: float, levels: int) -> list[float]:
    """(levels + 1) sides of SSD's default boxes as shares of the image: from `smallest` to 0.95 in equal ratios.

    The paper's equal steps from 0.2 on (arXiv:1512.02325) have nothing for objects of a few strides.
    """
    smallest = min(smallest, 0.5)
    return [smallest * (0.95 / smallest) ** (level / (levels - 1)) for level in range(levels)] + [1.0]


def _strides(backbone: Backbone) -> tuple[int, ...]:
    assert isinstance(backbone.neck, PyramidNeck)
    return backbone.neck.strides


def _roi_align(backbone: Backbone, size: int) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    assert isinstance(backbone.neck, PyramidNeck)
    pool: nn.Module = MultiScaleRoIAlign(featmap_names=backbone.neck.names, output_size=size, sampling_ratio=2)
    return pool


def _convs(config: ObjectsConfig, usual: int) -> int:
    return config.model.head_convs or usual


def _choice(config: ObjectsConfig) -> dict[str, Any]:
    """How boxes are chosen."""
    inference = config.inference
    return {
        "score_thresh": inference.score_floor,
        "nms_thresh": inference.nms,
        "detections_per_img": inference.max_detections,
    }


_PLACES = ("self", "backbone", "num_classes", "size", "kwargs", "min_size", "max_size", "image_mean", "image_std")


def _options(config: ObjectsConfig, kind: type, ours: dict[str, Any]) -> dict[str, Any]:
    """Our arguments and those of `model.options`. Raises ModelError for one that is unknown or set elsewhere."""
    given = config.model.options
    own = (*ours, *_PLACES, "anchor_generator", "num_keypoints")
    free = [name for name in inspect.signature(kind.__init__).parameters if name not in own]  # type: ignore[misc]
    for name in given:
        if name not in free:
            reason = "is set by cvpipe" if name in own else f"is unknown.{did_you_mean(name, free)}"
            raise ModelError(
                f"{config.where('model.options')}: {name!r} {reason}. {config.model.name} takes: {', '.join(free)}."
            )
    return {**ours, **given}


def _fill(network: Detector, config: ObjectsConfig, source: str) -> str:
    """Fills the whole detector, or its backbone, from what `model.pretrained` names; says what was filled."""
    stages, name, size = network.backbone.stages, config.model.backbone, config.data.image_size
    servers: Servers = (config.tracking.tracking_uri, config.tracking.registry_uri)
    if source.startswith("package:"):
        return fill_stages(stages, name, size, source, servers)
    state, origin = read_source(source, servers)
    if not any(key.startswith("model.backbone.stages.") for key in state):
        return fill_stages(stages, name, size, (state, origin), servers)
    own = network.state_dict()
    fresh = [key for key in own if key not in state or state[key].shape != own[key].shape]
    note = fit_state(state, network, network.last, origin)
    if fresh and config.model.name in ("fcos", "retinanet"):
        bias = network.get_parameter("model.head.classification_head.cls_logits.bias")
        nn.init.constant_(bias, -math.log((1 - _PRIOR) / _PRIOR))
    return note


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors in float32 whatever the features are: 16 bits round pixels of a large canvas."""

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = super().forward(image_list, _float_shapes(feature_maps))
        return found


class _DefaultBoxes(DefaultBoxGenerator):  # type: ignore[misc]
    """The same for SSD's default boxes."""

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = super().forward(image_list, _float_shapes(feature_maps))
        return found


def _float_shapes(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of these shapes that cost no memory; generators read shape, device and type only."""
    return [one.new_zeros((), dtype=torch.float32).expand(one.shape) for one in maps]


def _log_probabilities(module: nn.Module, inputs: Any, heatmaps: torch.Tensor) -> torch.Tensor:
    """(n, K, s, s) logits -> logarithms of probabilities over the places.

    Neither the place of the maximum nor the cross-entropy changes, and the maximum becomes a confidence.
    """
    found: torch.Tensor = heatmaps.float().flatten(2).log_softmax(dim=2).view(heatmaps.shape)
    return found
