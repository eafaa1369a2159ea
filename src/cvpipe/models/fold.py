"""Batch normalisation folded into the convolution before it: the same function in fewer passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cvpipe.utils.trees import Outputs, largest_difference

_TOLERANCE = 1e-4


def fold_batch_norm(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy of a network in evaluation mode, with each BatchNorm2d folded into the Conv2d that feeds it.

    Pairs are found by watching one forward pass, so that any network can be given. The result is compared with the
    original on the example; where it deviates (a convolution whose output goes elsewhere too), the original is
    returned.

    Args:
        network: in evaluation mode.
        example: an input, such as (1, 3, h, w) uint8.

    Returns:
        The folded copy, or `network` itself where there is nothing to fold or folding changes the output.
    """
    folded = copy.deepcopy(network)
    with torch.inference_mode():
        wanted = _raw(network, example)
    pairs = _pairs(folded, example)
    if not pairs:
        return network
    names = {module: name for name, module in folded.named_modules()}
    with torch.no_grad():
        for norm, conv in pairs:
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            # timm's BatchNormAct2d holds what comes after it
            rest = [module for module in norm.children() if not isinstance(module, nn.Identity)]
            folded.set_submodule(names[norm], nn.Sequential(*rest) if rest else nn.Identity())
    with torch.inference_mode():
        found = _raw(folded, example)
    difference, scale = largest_difference(wanted, found)
    return folded if difference <= _TOLERANCE * (scale + 1e-12) else network


def _raw(network: nn.Module, example: torch.Tensor) -> Outputs:
    """What is compared: the outputs, or, where the network has `dense_outputs`, those before boxes are chosen."""
    function = getattr(network, "dense_outputs", network)
    outputs: Outputs = function(example)
    return outputs


def _pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """(norm, convolution whose output is the norm's input), each module once."""
    # outputs are kept until the end, because a freed tensor's id is given to another one
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    found: list[tuple[nn.BatchNorm2d, nn.Conv2d]] = []

    def after_conv(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = (module, output)

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        source = made.get(id(inputs[0]))
        if source is not None and module.track_running_stats:
            found.append((module, source[0]))

    hooks = [m.register_forward_hook(after_conv) for m in network.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode():
            _raw(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    once = len({id(n) for n, _ in found}) == len({id(c) for _, c in found}) == len(found)
    return found if once else []
