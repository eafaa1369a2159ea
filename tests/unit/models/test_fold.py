"""Folding changes the cost of a network, not what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cvpipe.models.fold import fold_batch_norm
from cvpipe.models.sources import classifier


def with_statistics(network: nn.Module) -> nn.Module:
    """Batch normalisation as after training: not the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "name", ["test_resnet", "tf_efficientnet_lite0", "mobilenetv3_small_050", "torchvision/resnet18"]
)
def test_same_output_with_fewer_layers(name: str) -> None:
    network = with_statistics(classifier(name, num_classes=7, image_size=(64, 64)).module)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(network, images[:1])
    assert norms(folded) < norms(network)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-4)


def test_a_convolution_that_is_used_twice_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = self.conv(images)
            out: torch.Tensor = pixels + self.norm(pixels)
            return out

    network = with_statistics(Shared())
    assert fold_batch_norm(network, torch.rand(1, 3, 8, 8)) is network


def test_nothing_to_fold() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    assert fold_batch_norm(network, torch.rand(1, 3, 8, 8)) is network


def test_the_original_is_not_touched() -> None:
    network = with_statistics(classifier("test_resnet", num_classes=3, image_size=(32, 32)).module)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fold_batch_norm(network, torch.rand(1, 3, 32, 32))
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
