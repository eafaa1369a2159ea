"""Parameter groups and schedules."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cvpipe.config import TrainingConfig
from cvpipe.models.optim import Schedule, build_optimizer, build_schedule
from cvpipe.models.sources import Body, classifier
from cvpipe.models.weights import inside


def network(name: str = "test_resnet") -> Body:
    return classifier(name, num_classes=2, image_size=(160, 160))


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig(**values)


def groups_by_parameter(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "torchvision/resnet18"])
def test_only_weights_of_layers_decay(name: str, layer_decay: float) -> None:
    net = network(name).module
    optimizer = build_optimizer(net, settings(weight_decay=0.05, layer_decay=layer_decay), 1e-3)
    found = groups_by_parameter(net, optimizer)
    assert set(found) == {n for n, _ in net.named_parameters()}, "each parameter is in exactly one group"
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(found)
    for n, p in net.named_parameters():
        expected = 0.05 if p.ndim > 1 and not n.endswith(("pos_embed", "cls_token", "reg_token")) else None
        if expected is not None:
            assert found[n]["weight_decay"] == expected, n
        elif p.ndim <= 1:
            assert found[n]["weight_decay"] == 0, n


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("test_resnet", "conv1.0.weight"),
        ("test_vit", "patch_embed.proj.weight"),
        ("torchvision/resnet18", "conv1.weight"),
        ("torchvision/mobilenet_v3_small", "features.0.0.weight"),
    ],
)
def test_layer_decay_falls_from_the_head_down(name: str, stem: str) -> None:
    body = network(name)
    optimizer = build_optimizer(body.module, settings(layer_decay=0.5), 1e-3)
    rates = {n: group["lr"] for n, group in groups_by_parameter(body.module, optimizer).items()}
    assert {rate for n, rate in rates.items() if inside(n, body.head)} == {1e-3}
    assert rates[stem] == min(rates.values()) < 1e-3 / 4
    steps = torch.log2(1e-3 / torch.tensor(list(rates.values())))
    assert float((steps - steps.round()).abs().max()) < 1e-4, "powers of the factor"


def test_frozen_parameters_are_in_the_groups_and_stay_frozen() -> None:
    body = network()
    net = body.module
    frozen = [p for n, p in net.named_parameters() if not inside(n, body.head)]
    for p in frozen:
        p.requires_grad_(False)
    optimizer = build_optimizer(net, settings(), 1e-3)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(net.parameters()))
    assert not any(p.requires_grad for p in frozen)


def test_kinds_of_optimizer() -> None:
    net = network().module
    assert type(build_optimizer(net, settings(), 0.1)) is torch.optim.AdamW
    sgd = build_optimizer(net, settings(optimizer="sgd"), 0.1)
    assert type(sgd) is torch.optim.SGD
    assert all(g["nesterov"] and g["momentum"] == 0.9 and g["lr"] == 0.1 for g in sgd.param_groups)


@given(st.sampled_from(["cosine", "one_cycle", "constant"]), st.integers(1, 3000), st.floats(0, 1))
def test_factors_stay_in_bounds(kind: str, steps: int, warmup: float) -> None:
    schedule = Schedule(kind, steps, warmup)
    factors = [schedule(step) for step in range(0, steps, max(1, steps // 100))]
    assert all(0 < f <= 1 for f in factors), "no step is wasted on a rate of zero"
    assert 0 <= schedule(steps + 10) <= 1
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_one_cycle_is_close_to_torchs() -> None:
    steps = 200
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    ours = Schedule("one_cycle", steps, 0.0)
    for step in range(steps):
        assert abs(ours(step) - theirs.get_last_lr()[0]) < 0.03, step
        optimizer.step()
        theirs.step()


def test_cosine_with_warm_up() -> None:
    schedule = Schedule("cosine", 100, 0.1)
    assert [schedule(s) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert schedule(55) == pytest.approx(0.5)
    assert 0 < schedule(99) < 0.001
    assert Schedule("cosine", 100, 0.0)(0) == 1.0


def test_constant() -> None:
    schedule = Schedule("constant", 100, 0.05)
    assert [schedule(s) for s in (0, 5, 99)] == [0.2, 1.0, 1.0]


def test_the_scheduler_keeps_the_ratio_of_layers_and_can_be_pickled() -> None:
    net = network().module
    optimizer = build_optimizer(net, settings(layer_decay=0.5, warmup=0.0), 1e-3)
    before = [g["lr"] for g in optimizer.param_groups]
    scheduler = build_schedule(optimizer, settings(warmup=0.0), 10)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([lr * 0.5 for lr in before])
    assert pickle.loads(pickle.dumps(Schedule("cosine", 10, 0.1)))(3) == Schedule("cosine", 10, 0.1)(3)
