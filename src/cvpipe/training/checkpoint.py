"""Checkpoints that never load wrong: hashed while written, flushed, renamed to a name that holds the hash.

A file is taken for a checkpoint only if its content has the hash in its name, so that a run that was killed at any
moment goes on from the newest whole one. Nothing is unpickled: torch reads them in its weights-only mode.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from cvpipe.errors import TrainingError
from cvpipe.utils.filesystem import place, sha256_of, staging_path

_HASH_LENGTH = 16
_NAME = re.compile(r"(?P<kind>last|best)-(?P<step>\d{9})-(?P<hash>[0-9a-f]{16})\.(ckpt|safetensors)")
_KEPT = 2


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run.

    `last-STEP-HASH.ckpt` holds everything that training goes on from, `best-STEP-HASH.safetensors` the network's best
    weights so far. The newest two of the first kind are kept.
    """

    folder: Path

    def save_last(self, state: dict[str, Any], step: int) -> Path:
        path = self._save("last", step, ".ckpt", lambda file: torch.save(state, file))
        for old in self._list("last")[_KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def save_best(self, tensors: dict[str, torch.Tensor], step: int) -> Path:
        from safetensors.torch import save

        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        path = self._save("best", step, ".safetensors", lambda file: file.write(save(cpu)))
        for old in self._list("best"):
            if old != path:
                old.unlink(missing_ok=True)
        return path

    def last(self) -> Path | None:
        """The newest checkpoint whose content is what was written, or None."""
        return next((path for path in self._list("last") if _is_whole(path)), None)

    def best(self) -> dict[str, torch.Tensor] | None:
        """The best weights that were saved, or None."""
        from safetensors.torch import load_file

        path = next((path for path in self._list("best") if _is_whole(path)), None)
        return None if path is None else load_file(path)

    def broken(self) -> list[Path]:
        """Files that look like checkpoints and are not whole."""
        return [path for kind in ("last", "best") for path in self._list(kind) if not _is_whole(path)]

    def _list(self, kind: str) -> list[Path]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        found = [(int(m["step"]), path.stat().st_mtime_ns, path) for m, path in matches if m and m["kind"] == kind]
        return [path for _, _, path in sorted(found, reverse=True)]

    def _save(self, kind: str, step: int, suffix: str, write: Any) -> Path:
        hashing = None
        staged = None
        try:
            staged = staging_path(self.folder / f"{kind}{suffix}")
            with staged.open("wb") as file:
                hashing = _HashingFile(file)
                write(hashing)
            target = self.folder / f"{kind}-{step:09d}-{hashing.digest.hexdigest()[:_HASH_LENGTH]}{suffix}"
            place(staged, target)
        except (OSError, RuntimeError) as error:
            # torch.save hides what the disk said behind a RuntimeError of its own
            cause = hashing.error if hashing and hashing.error else error
            if not isinstance(cause, OSError):
                raise
            raise TrainingError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {cause}. Earlier checkpoints "
                "are whole. Free space or mend the folder, then run the same command with --resume."
            ) from cause
        finally:
            if staged is not None:
                staged.unlink(missing_ok=True)
        return target


class _HashingFile:
    """Hashes what passes through to a file. torch and safetensors write front to back."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            written: int = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        return written

    def flush(self) -> None:
        self._file.flush()


def _is_whole(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return bool(match) and sha256_of(path).startswith(match["hash"])  # type: ignore[index]


class VerifiedCheckpointIO(CheckpointIO):
    """Routes Lightning's saving and loading through the store."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.store.save_last(checkpoint, int(checkpoint["global_step"]))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if not _is_whole(Path(path)):
            raise TrainingError(f"{path} is not the file that was saved. Remove it and resume again.")
        loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
