"""Plots of results as SVG text: the same input gives the same bytes, on any thread, without a display.

Lines and texts take the colour of the page's text: a drawing can be read on a light and on a dark background.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 10
"""More can't be told apart in one drawing."""

Series = tuple[str, npt.NDArray[Any], npt.NDArray[Any]]
"""A curve: name, x, y."""

_INK = "#010203"  # a colour that nothing else has; becomes the text colour of the page
_BLUE, _ORANGE = "#3b82f6", "#f08c2e"
_PALETTE = (
    "#3b82f6", "#f08c2e", "#2fa866", "#e0484f", "#9466d6", "#a5714e", "#e077b5", "#8a949e", "#b5b02c", "#22b5c4",
)  # fmt: skip
_MOST_CLASSES = 20  # more than these are not readable in a matrix
_MOST_POINTS = 400  # of a curve; more can't be seen
_MOST_PAIRS = 2_000_000  # image-class pairs that the micro average sorts
_LONGEST_NAME = 22
_STYLE = (
    "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}</style>"
)


def confusion_matrix(confusion: npt.NDArray[np.int64], classes: Sequence[str], note: str = "") -> str:
    """Rows are true classes, columns predicted ones; colour is the share of the row, text the count.

    Of more than 20 classes those with the most mistakes (as the true or as the predicted class) are shown.

    Args:
        confusion: (classes, classes) images, objects or pixels.
        note: a line above the matrix.
    """
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
    totals = confusion.sum(axis=1, keepdims=True)
    shares = (confusion / np.maximum(totals, 1))[np.ix_(shown, shown)]
    counts = confusion[np.ix_(shown, shown)]
    names = [short(classes[c]) for c in shown]
    side = 2.6 + 0.42 * len(shown)
    with _drawing(side + 0.8, side) as (figure, out):
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        size = 9 if len(shown) <= 12 else 7
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.55 else "#10243e"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=size)
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if len(shown) < len(classes):
            note = "\n".join(filter(None, [note, f"the {len(shown)} of {len(classes)} classes with the most mistakes"]))
        if note:
            axes.set_title(note)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class")
        bar.outline.set_visible(False)
    return out[0]


def reliability(
    counts: npt.NDArray[np.int64],
    means: npt.NDArray[np.float64],
    outcomes: npt.NDArray[np.float64],
    score_name: str,
    outcome_name: str,
) -> str:
    """Reliability diagram: a calibrated model's bars end on the diagonal. Below, how many scores each bin holds.

    Args:
        counts, means, outcomes: for each of equal-width bins over 0..1 the number of scores, their mean, and the
            share of good outcomes; NaN in empty bins.
    """
    bins = len(counts)
    centres, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    full = counts > 0
    with _drawing(5.6, 5.2) as (figure, out):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.bar(centres[full], outcomes[full], width * 0.92, color=_BLUE, label=outcome_name)
        upper.plot(
            means[full], outcomes[full], "o", color=_ORANGE, markersize=4, label=f"at the bin's mean {score_name}"
        )
        upper.plot([0, 1], [0, 1], "--", color=_INK, linewidth=1, label="calibrated")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=outcome_name)
        upper.legend(loc="upper left", frameon=False, fontsize=9)
        lower.bar(centres, counts, width * 0.92, color="#8a949e")
        lower.set(xlabel=score_name, ylabel="count")
        if counts.max() > 50 * max(1, int(np.median(counts))):
            lower.set_yscale("symlog", linthresh=1)
            # the default labels are mathematical text, which is off here: class names may hold a $
            lower.yaxis.set_major_formatter(lambda count, _: f"{count:g}")
        for axes in (upper, lower):
            _plain(axes)
    return out[0]


def precision_recall(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], classes: Sequence[str]) -> str:
    """Precision against recall: one curve a class (up to 10 classes) and the micro average over all decisions.

    Args:
        scores, truth: (images, classes).
    """
    step = max(1, scores.size // _MOST_PAIRS)
    every = "" if step == 1 else f", 1 image in {step}"
    series = []
    if len(classes) <= MOST_CURVES:
        series = [
            (f"class {short(name)}", *_curve(scores[:, c], truth[:, c]))
            for c, name in enumerate(classes)
            if truth[:, c].any()
        ]
    some_scores, some_truth = scores[::step].ravel(), truth[::step].ravel()
    main = (f"micro average{every}", *_curve(some_scores, some_truth)) if some_truth.any() else None
    return lines(series, "recall", "precision", main)


def lines(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    main: Series | None = None,
    xlim: tuple[float, float] = (0, 1.01),
    ylim: tuple[float, float] = (0, 1.02),
) -> str:
    """Curves with a legend beside them.

    Args:
        series: (name, x, y) each, at most 10; `main` is one more, drawn thick in the text's colour.
    """
    with _drawing(7.6, 4.6) as (figure, out):
        axes = figure.add_subplot()
        handles, names = [], []
        for colour, (name, x, y) in zip(_PALETTE, series[:MOST_CURVES], strict=False):
            handles += axes.plot(x, y, color=colour, linewidth=1.2)
            names.append(name)
        if main is not None:
            handles += axes.plot(main[1], main[2], color=_INK, linewidth=2.2)
            names.append(main[0])
        axes.set(xlim=xlim, ylim=ylim, xlabel=xlabel, ylabel=ylabel)
        # not through `label`: a name that begins with an underscore would be left out
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        _plain(axes)
    return out[0]


def bars(names: Sequence[str], values: Sequence[float], xlabel: str) -> str:
    """A horizontal bar for each name, the first one on top, with its value at the end."""
    with _drawing(6.4, 0.9 + 0.36 * len(names)) as (figure, out):
        axes = figure.add_subplot()
        drawn = axes.barh(range(len(names)), values, color=_BLUE, height=0.66)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values], padding=4, fontsize=9)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max([*values, 1e-3]))
        axes.set_xlabel(xlabel)
        _plain(axes)
        axes.grid(False, axis="y")
    return out[0]


def _curve(
    scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(recall, precision) at every threshold, highest first; thinned out to what can be seen."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(truth[order])[ends]
    recall, precision = hits / hits[-1], hits / (ends + 1)
    recall, precision = thin(recall, precision)
    return np.append(0.0, recall), np.append(precision[0], precision)


def thin(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """At most 400 points of a curve, evenly along x, which rises from 0 to at most 1."""
    if len(x) <= _MOST_POINTS:
        return x, y
    kept = np.unique(np.searchsorted(x, np.linspace(0, x[-1], _MOST_POINTS)).clip(max=len(x) - 1))
    return x[kept], y[kept]


def short(name: str) -> str:
    """At most 22 characters, none of them forbidden in XML."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#8a949e", alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure of that many inches, and a list that holds its SVG once the block has ended."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "cvpipe",
        "svg.fonttype": "none",
        "text.parse_math": False,  # a class may be called `$5`
        "font.size": 10,
        "axes.titlesize": 11,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    out: list[str] = []
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # class names in scripts that matplotlib's own font lacks: the browser has them
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, out
        buffer = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    out.append(_finish(buffer.getvalue()))


def _finish(svg: str) -> str:
    """Without the XML head (it names a DTD on the network) and with the page's text colour."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    head, _, rest = svg.partition(">")
    return f"{head}>{_STYLE}{rest}"
