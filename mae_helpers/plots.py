"""Every figure of the course: a pure function from data to a matplotlib Figure that carries its own alt text.

No figure goes through pyplot, so none stays open behind the reader's back, and drawing touches no random state.
"""
from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = (0.42, 0.52, 0.65)         # one flat blue-grey that no grey digit contains
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#ad1a72", "#64473a")      # told apart in grey print as well
LINES = ("-", "--", "-.", ":")


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as the bytes of a PNG file."""
    out = io.BytesIO()
    # tight: beside pictures, whose shape is fixed, the layout can leave too little room for the names of the rows
    figure.savefig(out, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.08)
    return out.getvalue()


def image_rows(rows: dict[str, torch.Tensor], title: str = "", notes: dict[str, Sequence[str]] | None = None) -> Figure:
    """One labelled row of pictures per entry: each [B, C, H, W] on the scale 0 … 1, not-a-number = hidden.

    `notes` puts a short text under each picture of a row.
    """
    count, notes = max(map(len, rows.values())), notes or {}
    gaps = [0.25 if name in notes else 0.06 for name in rows]
    figure, axis, step, centres = _pictures(list(rows.values()), count, gaps, title)
    axis.set_yticks([y for y, _ in centres], [name.replace(" (", "\n(") for name in rows], fontsize=10)
    for name, (_, bottom) in zip(rows, centres):
        for i, note in enumerate(notes.get(name, ())):
            axis.text((i + 0.47) * step, bottom + 0.02 * step, note, fontsize=9, ha="center", va="top")
    return _described(figure, f"{title}: rows of {count} pictures, from top to bottom {', '.join(rows)}.")


def as_rgb(image: torch.Tensor) -> torch.Tensor:
    """[C, H, W] on the scale 0 … 1, one or three channels → [H, W, 3] with hidden pixels in `HIDDEN`."""
    image = image.float().expand(3, -1, -1).permute(1, 2, 0)
    return torch.where(image.isnan(), torch.tensor(HIDDEN), image.clamp(0, 1))


def _pictures(rows: list[torch.Tensor], count: int, gaps: list[float], title: str):
    """A figure with rows of pictures on one axis, drawn as one image; `gaps` are the spaces below the rows, as shares
    of a picture's side.

    One image instead of one axis per picture, because thirty axes take seconds to lay out. Returns the figure, the
    axis, the side of a picture with its margin, and for each row the heights of its middle and its lower edge.
    """
    side = rows[0].shape[-1]
    step, gaps = side + max(1, round(0.06 * side)), [max(1, round(gap * side)) for gap in gaps]
    canvas, top, centres = torch.ones(len(rows) * side + sum(gaps), count * step, 3), 0, []
    for images, gap in zip(rows, gaps):
        for i, image in enumerate(images):
            canvas[top:top + side, i * step:i * step + side] = as_rgb(image)
        centres.append((top + side / 2, top + side))
        top += side + gap
    figure = _figure(1.3 + 0.9 * count, 0.9 * len(canvas) / side + 0.4 * bool(title))
    axis = figure.subplots()
    axis.imshow(canvas.numpy(), extent=(0, count * step, len(canvas), 0), interpolation="nearest")
    axis.set(xticks=[], title=title)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure, axis, step, centres


def curves(lines: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str, title: str = "",
           levels: dict[str, float] | None = None, log_y: bool = False) -> Figure:
    """Named curves (x, y), told apart by colour and dash, and named horizontal `levels` to compare them with."""
    figure = _figure(6.4, 3.6)
    axis = figure.subplots()
    for i, (name, (x, y)) in enumerate(lines.items()):
        axis.plot(x, y, LINES[i % len(LINES)], marker="o" if len(x) < 40 else None, markersize=3.5,
                  color=COLOURS[i % len(COLOURS)], label=name)
    for name, level in (levels or {}).items():
        axis.axhline(level, color="0.4", linewidth=1, linestyle=(0, (1, 2)))
        axis.annotate(name, (1, level), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
                      ha="right", fontsize=9, color="0.3")
    axis.set_xlabel(xlabel), axis.set_ylabel(ylabel), axis.set_title(title, fontsize=11)
    if log_y:
        axis.set_yscale("log")
    axis.grid(alpha=0.25)
    axis.margins(y=0.1)
    if all(isinstance(value, int) for x, _ in lines.values() for value in x):
        axis.xaxis.get_major_locator().set_params(integer=True)         # there is no epoch 1.5
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)
    ends = "; ".join(f"{name} ends at {y[-1]:.4g}" for name, (_, y) in lines.items() if len(y))
    return _described(figure, f"{title or ylabel} against {xlabel}: {ends}.")


def confusion(counts: torch.Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix with its counts written in; the colour shows mistakes only, which the diagonal would drown."""
    counts = torch.as_tensor(counts)
    mistakes = counts.float().clone().fill_diagonal_(0)
    figure = _figure(5.2, 4.8)
    axis = figure.subplots()
    axis.imshow(mistakes.numpy(), cmap="Oranges", vmax=max(1.0, float(mistakes.max())))
    for i, row in enumerate(counts.tolist()):
        for j, value in enumerate(row):
            strong = mistakes[i, j] > 0.6 * mistakes.max()
            axis.text(j, i, value or "·", ha="center", va="center", fontsize=8, fontweight="bold" if i == j else None,
                      color="white" if strong and i != j else "0.15" if value else "0.7")
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes), axis.set_yticks(ticks, classes)
    axis.set_xlabel("predicted class"), axis.set_ylabel("true class"), axis.set_title(title, fontsize=11)
    i, j = divmod(int(mistakes.argmax()), len(classes))
    return _described(figure, f"Confusion matrix {title}: {int(counts.diag().sum())} of {int(counts.sum())} right; the most "
                              f"frequent mistake is {classes[i]} taken for {classes[j]}, {int(mistakes[i, j])} times.")


def predictions(images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, classes: Sequence[str],
                title: str = "", columns: int = 10) -> Figure:
    """Pictures [B, C, H, W] with the predicted class and its probability; ✗ also names the truth."""
    guess, columns = probabilities.argmax(1), min(columns, len(images))
    rows = list(images.split(columns))
    figure, axis, step, centres = _pictures(rows, columns, [0.42] * len(rows), title)
    axis.set_yticks([])
    for i in range(len(images)):
        right = bool(guess[i] == labels[i])
        truth = "" if right else f"\nis {classes[labels[i]]}"
        axis.text((i % columns + 0.47) * step, centres[i // columns][1] + 0.03 * step, ha="center", va="top", fontsize=9,
                  s=f"{'✓' if right else '✗'} {classes[guess[i]]}  {probabilities[i, guess[i]]:.0%}{truth}",
                  color="#1a6b3c" if right else "#b3261e")
    return _described(figure, f"{title}: {len(images)} pictures with predictions, "
                              f"{int((guess == labels).sum())} of them right.")


def bars(values: dict[str, float], ylabel: str, title: str = "", text: str = "{:.2%}", floor: float = 0.0) -> Figure:
    """Named bars with their values written above; `floor` is where the axis starts and is said when it is not zero."""
    figure = _figure(1.2 + 1.0 * len(values), 3.4)
    axis = figure.subplots()
    drawn = axis.bar(list(values), [v - floor for v in values.values()], bottom=floor, width=0.65,
                     color=[COLOURS[i % len(COLOURS)] for i in range(len(values))])
    axis.bar_label(drawn, [text.format(v) for v in values.values()], padding=2, fontsize=9)
    axis.margins(y=0.15)
    if "%" in text:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    axis.set_ylabel(ylabel + (f" (axis starts at {text.format(floor)})" if floor else ""))
    axis.set_title(title, fontsize=11)
    told = ", ".join(f"{k} {text.format(v)}" for k, v in values.items())
    return _described(figure, f"{title or ylabel}: {told}.")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _described(figure: Figure, alt: str) -> Figure:
    figure.alt = " ".join(alt.split())
    return figure
