"""Raw outputs of networks: one tensor, or a dict of tensors, whose first dimension is the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

Outputs: TypeAlias = "torch.Tensor | dict[str, torch.Tensor]"


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], outputs: Outputs) -> Outputs:
    """The same with the function applied to each tensor."""
    if isinstance(outputs, dict):
        return {name: function(tensor) for name, tensor in outputs.items()}
    return function(outputs)


def concatenate(parts: Sequence[Outputs]) -> Outputs:
    """Batches after each other, along the first dimension. At least one, all of one kind."""
    import torch

    if len(parts) == 1:
        return parts[0]
    dicts = [part for part in parts if isinstance(part, dict)]
    if dicts:
        return {name: torch.cat([part[name] for part in dicts]) for name in dicts[0]}
    return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])


def finite_rows(outputs: Outputs) -> list[bool]:
    """For each image whether all of its numbers are finite."""
    import torch

    rows = [tensor[:, None].flatten(1).isfinite().all(dim=1) for tensor in _named(outputs).values()]
    found: list[bool] = torch.stack(rows).all(dim=0).tolist()
    return found


def largest_difference(one: Outputs, other: Outputs) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value of `one`) over all floating-point tensors."""
    theirs = _named(other)
    pairs = [(a, theirs[name]) for name, a in _named(one).items() if a.is_floating_point() and a.numel()]
    difference = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    return difference, max((float(a.abs().max()) for a, _ in pairs), default=0.0)


def _named(outputs: Outputs) -> dict[str, torch.Tensor]:
    return outputs if isinstance(outputs, dict) else {"": outputs}
