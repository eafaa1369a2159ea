"""`cvpipe predict --save-images`: images with what was found drawn in, in a folder that mirrors that of the inputs."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cvpipe.errors import CvpipeError, ImageError, InputError
from cvpipe.inference.sources import Inputs
from cvpipe.types import Failure, Prediction
from cvpipe.utils.filesystem import atomic_path

if TYPE_CHECKING:
    from cvpipe.predictor import Predictor

_JPEG = frozenset({".jpg", ".jpeg", ".jfif"})
_KEPT = _JPEG | {".png"}
_QUALITY = 92
_BACKLOG = 4  # pictures a thread may be behind before the network waits: predictions with masks are large
_MOST_REASONS = 3
# these concern one file, all others the disk or the folder
_OF_ONE_FILE = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}
)


class PictureFolder:
    """Where each picture goes.

    A picture keeps its image's place below the inputs' common folder and its name. JPEG stays JPEG and PNG stays PNG;
    other formats become PNG with `.png` after the full name. Two images never share a picture.

    Args:
        folder: the folder that was asked for; made if it is not there.
        source: the inputs as they were named.
        inputs: the images.

    Raises:
        InputError: the folder can't be written, lies inside the folder of inputs, or a picture would take an image's
            place.
    """

    def __init__(self, folder: str | Path, source: object, inputs: Inputs) -> None:
        self.folder = Path(folder)
        files = [os.path.abspath(inputs.file(position)) for position in range(len(inputs))]
        base, searched = _base(source, files)
        self.names = _names(files, base)
        if searched and Path(os.path.realpath(self.folder)).is_relative_to(os.path.realpath(base)):
            raise InputError(
                f"--save-images {self.folder}: lies in the folder of the images, {base}: the next run would take the "
                "pictures for images. Name a folder outside of it."
            )
        self._make()
        _check_sources(self, files)

    def path(self, position: int) -> Path:
        return self.folder / self.names[position]

    def check_absent(self, positions: Iterable[int]) -> None:
        """Raises InputError where one of these pictures, or a file of its name, is there already."""
        if next(self.folder.iterdir(), None) is None:
            return
        there = next((self.path(position) for position in positions if self.path(position).exists()), None)
        if there is not None:
            raise InputError(
                f"--save-images {self.folder}: {there} exists already, and is not of an interrupted run of this "
                "output. Replace it with --overwrite, or name another folder."
            )

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".cvpipe-"):
                pass
        except OSError as error:
            what = "a file of this name exists" if self.folder.is_file() else error.strerror or str(error)
            raise InputError(
                f"--save-images {self.folder}: can't be written ({what}). Name a folder that this user may write to."
            ) from None


class Pictures:
    """Draws and saves in threads, beside the network.

    Attributes:
        saved: pictures that this run has made.
    """

    def __init__(self, folder: PictureFolder, predictor: Predictor, inputs: Inputs) -> None:
        self.folder, self.inputs, self.saved = folder, inputs, 0
        self._draw, self._labels = predictor.task.draw, predictor.bundle.labels
        self._max_pixels = predictor.bundle.config.inference.max_pixels
        self._most = predictor.threads * _BACKLOG
        self._pool = ThreadPoolExecutor(predictor.threads, thread_name_prefix="draw")
        self._waiting: deque[tuple[int, Future[str | None]]] = deque()
        self._problems: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def missing(self) -> int:
        """Images with a prediction that could not be drawn."""
        return self._problems.total()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The most frequent ones, each with an example."""
        return tuple(
            f"{count} x picture not made: {reason} (such as {self._examples[reason]})"
            for reason, count in self._problems.most_common(_MOST_REASONS)
        )

    def add(self, position: int, answer: Prediction | Failure) -> None:
        """Has the picture of an image made; a failure gets none. Waits where the threads are far behind.

        Raises CvpipeError where an earlier picture could not be written for a reason that concerns them all.
        """
        if isinstance(answer, Failure):
            try:
                # that of an earlier run would show what this one did not find
                self.folder.path(position).unlink(missing_ok=True)
            except OSError as error:
                raise self._stop(error) from None
            return
        self._waiting.append((position, self._pool.submit(self._make, position, answer)))
        while len(self._waiting) > self._most or (self._waiting and self._waiting[0][1].done()):
            self._take()

    def finish(self) -> None:
        """Waits for all pictures. Raises like `add`."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        position, future = self._waiting.popleft()
        problem = future.result()
        if problem is None:
            self.saved += 1
        else:
            self._problems[problem] += 1
            self._examples.setdefault(problem, self.inputs.paths[position])

    def _make(self, position: int, answer: Prediction) -> str | None:
        """Why there is no picture, or None."""
        try:
            picture = self._drawn(position, answer)
        except ImageError as error:
            return str(error)
        except Exception as error:  # drawing is the task's own code, and the prediction is as good without a picture
            return _reason(error)
        target = self.folder.path(position)
        try:
            with atomic_path(target) as staged:
                if target.suffix.lower() in _JPEG:
                    picture.convert("RGB").save(staged, "JPEG", quality=_QUALITY)
                else:
                    picture.save(staged, "PNG", compress_level=1)
        except OSError as error:
            # Pillow's own, such as for more pixels than a JPEG can hold, carry no number
            if error.errno is None or error.errno in _OF_ONE_FILE:
                return _reason(error)
            raise self._stop(error) from None
        except ValueError as error:
            return _reason(error)
        return None

    def _stop(self, error: OSError) -> CvpipeError:
        return CvpipeError(
            f"--save-images {self.folder.folder}: can't be written any more ({error.strerror}). The records so far are "
            "saved. Make room or give the rights back; the same command goes on from here."
        )

    def _drawn(self, position: int, answer: Prediction) -> Any:
        from PIL import Image

        from cvpipe.data.decode import read_image

        pixels = read_image(self.inputs.file(position), self._max_pixels)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        return self._draw(image, answer, self._labels)


def _base(source: object, files: list[str]) -> tuple[str, bool]:
    """(the folder that the pictures' paths start from, whether all that lies in it counts as input).

    The folder, the part of a glob before its first `*`, or the folder of a list; for other inputs, and where some lie
    elsewhere, the deepest folder that holds them all.
    """
    base, searched = "", False
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            base, searched = os.path.abspath(path), True
        elif path.exists():
            base = os.path.abspath(path.parent)
        else:
            plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
            base, searched = os.path.abspath(os.path.join(*plain, "")), "**" in path.parts
    if base and all(file.startswith(os.path.join(base, "")) for file in files):
        return base, searched
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files]), False
    except ValueError:  # several drives
        return "", False


def _names(files: list[str], base: str) -> list[str]:
    """One path below the folder of pictures for each file, no two alike, not even where case does not count."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        relative = os.path.relpath(file, base) if base else file.replace(":", "").lstrip("/\\")
        stem, suffix = os.path.splitext(relative)
        if suffix.lower() not in _KEPT:
            stem, suffix = relative, ".png"
        name, count = stem + suffix, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}{suffix}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _check_sources(pictures: PictureFolder, files: list[str]) -> None:
    folders: dict[str, str] = {}

    def place(path: str) -> str:
        parent, name = os.path.split(path)
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        return os.path.join(folders[parent], name)

    images = {place(file) for file in files} | {os.path.realpath(file) for file in files if os.path.islink(file)}
    for position in range(len(files)):
        target = str(pictures.path(position).absolute())
        if place(target) in images:
            raise InputError(
                f"--save-images {pictures.folder}: the picture {target} would take the place of an image. Name a "
                "folder that holds none of the images."
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
