"""What passes between the readers of annotation formats and the code that checks: records as their files say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from cvpipe.data.formats.files import Header
from cvpipe.data.splits import Problem

Kind = Literal["boxes", "masks", "points", "class_map"]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        kind: what the task learns; a reader parses no more than that.
        where: place in the config, for messages.
        classes: `data.classes`, for formats whose files may hold numbers without names.
        ignore_index: `data.ignore_index`.
        root: `data.root`.
        parsed: JSON files that were read already.
    """

    kind: Kind
    where: str
    classes: tuple[str, ...] | None = None
    ignore_index: int | None = None
    root: str | None = None
    parsed: dict[str, Any] = field(default_factory=dict)


class Place(NamedTuple):
    """Where one split of a data set lies.

    Attributes:
        images: folders of images, or text files that list them; empty: to be found.
        annotations: an annotation file, or a folder of them; empty: beside the images.
        root: the data set's folder, or the file that describes it: names of classes are looked for there.
        extra: a list of image names (VOC), the folder of segment images (panoptic).
    """

    images: tuple[str, ...]
    annotations: str
    root: str
    extra: str = ""


class Picture(NamedTuple):
    """One image as the annotations name it.

    Attributes:
        path: its file, which exists.
        name: how messages call it, such as `image 17`.
        size: (height, width) that the annotations say, or None.
        group: images of a group never stand in two splits; empty: a group of its own.
        source: its own annotation file, where there is one for each image.
    """

    path: str
    name: str
    size: tuple[int, int] | None = None
    group: str = ""
    source: str = ""


class Found(NamedTuple):
    """One annotated object, unchecked.

    Attributes:
        picture: position in the pictures.
        category: position in the categories.
        box: x1, y1, x2, y2 in pixels.
        mask: COCO polygons [[x, y, x, y, …], …], a COCO RLE, or None.
        points: [x, y, visibility, …], or None.
        area: square pixels, or None where the file says none.
        id: how messages call it.
    """

    picture: int
    category: int
    box: Sequence[float]
    id: int | str
    crowd: bool = False
    area: Any = None
    mask: Any = None
    points: Any = None


@dataclass
class ObjectRows:
    """A split with objects, as read.

    Attributes:
        file: the annotation file or folder, for messages.
        called: what an object is called in messages.
        headers: of the pictures, where the reader needed them; else None.
    """

    file: str
    categories: tuple[str, ...]
    pictures: list[Picture] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    keypoints: tuple[str, ...] = ()
    skeleton: Pairs = ()
    flip_pairs: Pairs = ()
    called: str = "annotation"
    headers: list[Header | None] | None = None


class Map(NamedTuple):
    """The file of an image's class map.

    Attributes:
        values: (value, position in the categories, or -1 for what is to be ignored).
    """

    path: str
    values: tuple[tuple[int, int], ...]


@dataclass
class MapRows:
    """A split with a class map for each picture, as read.

    Attributes:
        maps: one for each picture.
        segments: whether values stand in the colour channels (panoptic).
    """

    file: str
    categories: tuple[str, ...]
    pictures: list[Picture] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    segments: bool = False


class Format(Protocol):
    """What a module in this package offers."""

    LAYOUT: str

    @staticmethod
    def look(root: Path, request: Request) -> dict[str, Place]:
        """The splits of this format in a folder, "" for one without a name; empty where there is nothing of it."""
        ...

    @staticmethod
    def read(place: Place, split: str, request: Request) -> ObjectRows | MapRows:
        """One split. Raises DataError where the place can't be read at all."""
        ...
