"""Feature maps of any timm network, and what detectors put on top of them: feature pyramids, further levels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from cvpipe.errors import ModelError
from cvpipe.models.sources import IMAGENET_MEAN, IMAGENET_STD, Body, timm_config, timm_size, with_download
from cvpipe.models.weights import Servers, StateDict, fit_state, load_pretrained

_hooks = threading.Lock()


class Stages(nn.Module):
    """The last feature maps of a timm network, finest first.

    Input: normalised floats (N, 3, h, w). Output: a list of (N, channels[i], h / strides[i], w / strides[i]).

    Args:
        net: made with `features_only`.
        wanted: most maps, one for each resolution. Networks with one resolution (vision transformers) give one.
        mean, std: normalisation it was trained with, per RGB channel, for pixels in 0..1.
        note: a line on where the weights came from.
    """

    def __init__(
        self, net: nn.Module, wanted: int, mean: Sequence[float], std: Sequence[float], note: str = Body.note
    ) -> None:
        super().__init__()
        self.net = net
        info: Any = net.feature_info
        last_of = {stride: position for position, stride in enumerate(info.reduction())}
        self.strides = tuple(sorted(last_of)[-wanted:])
        self._positions = [last_of[stride] for stride in self.strides]
        self.channels = tuple(info.channels()[position] for position in self._positions)
        self.mean, self.std, self.note = tuple(mean), tuple(std), note
        self._stage_of = _stages(net, [str(name) for name in info.module_name()])
        # such networks hand their maps over in a place that threads share
        self._one_at_a_time = hasattr(net, "hooks") or getattr(net, "feature_hooks", None) is not None
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        self._held: list[nn.Module] = []

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        with _hooks if self._one_at_a_time else nullcontext():
            found = self.net(pixels)
        maps = [found[position] for position in self._positions]
        return [one.permute(0, 3, 1, 2) for one in maps] if self._channels_last else maps

    def hold(self, stages: int, norms: bool) -> None:
        """Keeps parts of the network as they are: no gradients, and batch normalisation as at inference.

        Args:
            stages: as many from the input on.
            norms: all batch normalisation, too. Its statistics over a few images are worse than the pretrained ones.
        """
        self._held = []
        for name, module in self.net.named_modules():
            own = list(module.parameters(recurse=False))
            early = self._stage_of.get(name, stages) < stages
            if early or (norms and isinstance(module, nn.modules.batchnorm._BatchNorm)):
                self._held.append(module)
                for parameter in own:
                    parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Stages:
        super().train(mode)
        for module in self._held:
            module.training = False
        return self

    def depth(self, name: str) -> int:
        """The stage, from the input on, that a parameter of this module belongs to."""
        return self._stage_of.get(name.removeprefix("net.").rpartition(".")[0], 0)

    @property
    def depths(self) -> int:
        return max(self._stage_of.values(), default=0) + 1


def _stages(net: nn.Module, ends: Sequence[str]) -> dict[str, int]:
    """Name of each module that has parameters -> its stage. A stage ends with the module that gives its map."""
    modules = list(net.named_modules())
    # timm writes `layers_0` where the whole network has `layers.0`
    flat = [f"{_plain(name)}_" for name, _ in modules]
    found = [[i for i, name in enumerate(flat) if name.startswith(f"{_plain(end)}_")] for end in ends]
    last = [max(positions) for positions in found if positions][:-1]
    return {
        name: sum(end < i for end in last)
        for i, (name, module) in enumerate(modules)
        if list(module.parameters(recurse=False))
    }


def _plain(name: str) -> str:
    """The name of a tensor or module as in the whole network, with _ for the dots."""
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_")


def build_stages(name: str, image_size: tuple[int, int], wanted: int, download: bool) -> Stages:
    """The last feature maps of a timm network, with its published weights or random ones.

    Raises:
        ModelError: unknown name, not built for feature maps, or weights that can't be had (with the ways out).
    """
    import timm

    with as_backbone():
        config = timm_config(name)
        if download and (config is None or not config.has_weights):
            raise ModelError(f"model.pretrained: timm has no published weights for {name}. Set model.pretrained=false.")
        options = timm_size(config, image_size)
        net = with_download(
            name, download, lambda: timm.create_model(name, pretrained=download, features_only=True, **options)
        )
    mean, std = (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)
    note = f"weights: timm {config.architecture}.{config.tag}, new heads" if download else Body.note
    return Stages(net, wanted, mean, std, note)


def fill_stages(
    stages: Stages, name: str, image_size: tuple[int, int], source: str | tuple[StateDict, str], servers: Servers
) -> str:
    """Fills the maps' network with the weights of the whole network of that name.

    Args:
        source: the value of `model.pretrained`; or a state dict that was read from there, with its origin.

    Returns:
        One line for the start-up messages.

    Raises:
        ModelError: the weights are of another network.
    """
    import timm

    with as_backbone():
        config = timm_config(name)
        whole = timm.create_model(name, pretrained=False, **timm_size(config, image_size))
        head = config.classifier if config else "head"
        heads = (head,) if isinstance(head, str) else tuple(head or ("head",))
        if isinstance(source, str):
            load_pretrained(source, whole, name, heads, servers)
            origin = source
        else:
            fit_state(source[0], whole, heads, source[1])
            origin = source[1]
    copied = copy_backbone(whole, stages.net, name)
    return f"weights: {copied} tensors of the backbone from {origin}, new heads"


@torch.no_grad()
def copy_backbone(whole: nn.Module, part: nn.Module, name: str) -> int:
    """Copies a timm network's weights into its `features_only` form, which names some of them otherwise.

    Returns:
        The number of tensors.

    Raises:
        ModelError: a tensor of the part is not in the whole.
    """
    found = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    own = part.state_dict()
    for key, value in own.items():
        match = found.get(_plain(key))
        if match is None or match.shape != value.shape:
            raise ModelError(
                f"model.backbone: the feature maps of {name} need {key} {tuple(value.shape)}, which the whole network "
                "has not. Set model.pretrained to true or false, or choose another backbone."
            )
        value.copy_(match)
    return len(own)


@contextmanager
def as_backbone() -> Iterator[None]:
    """Errors about a network's name say `model.backbone`, which is where detectors take it from."""
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).replace("model.name", "model.backbone")) from None


class PyramidNeck(nn.Module):
    """A feature pyramid (Lin et al., 2017, arXiv:1612.03144): all maps with `width` channels and wide context.

    A network with a single map gets finer and coarser ones made from it (Li et al., 2022, arXiv:2203.16527).

    Args:
        top: p6p7 adds two coarser levels by convolution (one-stage detectors); pool adds one by subsampling (R-CNN).

    Attributes:
        names: of the levels that come from the network.
        strides: of all levels, finest first.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        wanted: int,
        width: int,
        top: Literal["p6p7", "pool"],
    ) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

        super().__init__()
        channels, strides = list(channels), list(strides)
        self.rescale: nn.ModuleList | None = None
        if len(channels) == 1 and wanted > 1:
            ups = wanted - 2
            blocks = [_upsample(channels[0], ups - i) for i in range(ups)]
            self.rescale = nn.ModuleList([*blocks, nn.Identity(), nn.MaxPool2d(2)])
            strides = [max(1, strides[0] // 2 ** (ups - i)) for i in range(ups)] + [strides[0], strides[0] * 2]
            channels = [channels[0] // 2 ** (ups - i) for i in range(ups)] + [channels[0]] * 2
        extra = LastLevelP6P7(width, width) if top == "p6p7" else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(channels, width, extra)
        self.names = [str(position) for position in range(len(channels))]
        self.strides = (*strides, *((strides[-1] * 2, strides[-1] * 4) if top == "p6p7" else (strides[-1] * 2,)))
        self.out_channels = width

    def forward(self, maps: list[torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        if self.rescale is not None:
            maps = [block(maps[0]) for block in self.rescale]
        found: OrderedDict[str, torch.Tensor] = self.fpn(OrderedDict(zip(self.names, maps, strict=True)))
        return found


def _upsample(channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in range(doublings):
        if step:
            layers += [nn.GroupNorm(1, channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    return nn.Sequential(*layers)


class ExtraLevels(nn.Module):
    """The maps as they are, and coarser ones made by depthwise separable blocks (SSDLite, arXiv:1801.04381).

    Attributes:
        out_channels: of all levels, finest first.
    """

    def __init__(self, channels: Sequence[int], levels: int, width: int) -> None:
        super().__init__()
        depth = [*channels]
        blocks = []
        while len(depth) < levels:
            blocks.append(_extra_block(depth[-1], width))
            depth.append(width)
        self.blocks = nn.ModuleList(blocks)
        self.out_channels = depth
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.03)

    def forward(self, maps: list[torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        for block in self.blocks:
            maps = [*maps, block(maps[-1])]
        return OrderedDict((str(position), one) for position, one in enumerate(maps))


def _extra_block(channels: int, width: int) -> nn.Sequential:
    from torchvision.ops.misc import Conv2dNormActivation

    layer = partial(Conv2dNormActivation, norm_layer=lite_norm, activation_layer=nn.ReLU6)
    inner = width // 2
    return nn.Sequential(
        layer(channels, inner, kernel_size=1),
        layer(inner, inner, kernel_size=3, stride=2, groups=inner),
        layer(inner, width, kernel_size=1),
    )


def lite_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as SSDLite trains it."""
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)


class Backbone(nn.Module):
    """What torchvision's detectors call a backbone: normalised floats (N, 3, h, w) -> maps by name, finest first."""

    def __init__(self, stages: Stages, neck: PyramidNeck | ExtraLevels) -> None:
        super().__init__()
        self.stages, self.neck = stages, neck
        self.out_channels = neck.out_channels

    def forward(self, pixels: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        found: OrderedDict[str, torch.Tensor] = self.neck(self.stages(pixels))
        return found
