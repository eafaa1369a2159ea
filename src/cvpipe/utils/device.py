"""Which device and precision to compute with, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvpipe.errors import InputError

if TYPE_CHECKING:
    import torch


def choose_device(setting: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu. Raises InputError for a device that is not here."""
    import torch

    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise InputError(f"device: found {setting!r}, expected auto, cpu, cuda, cuda:N or mps.") from None
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        raise InputError(f"device: {setting} is not available here (torch {torch.__version__}). Use device=auto.")
    return device


def choose_precision(setting: str, device: torch.device) -> tuple[str, str]:
    """(Lightning's precision, the reason). `auto` takes bf16 on GPUs that compute in it, else 32 bit."""
    import torch

    names = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    if setting != "auto":
        return names[setting], "as configured"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return names["bf16"], "the GPU computes in bf16"
        return names["16"], "the GPU has no bf16"
    return names["32"], f"{device.type} computes fastest and exactest in 32 bit here"
