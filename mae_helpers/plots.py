"""Every figure of the course: a pure function from data to a matplotlib Figure that carries its own alt text.

No figure goes through pyplot, so none stays open behind the reader's back, and drawing touches no random state.
"""
from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = (0.42, 0.52, 0.65)         # one flat blue-grey that no grey digit contains
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#ad1a72", "#64473a")      # in grey print some are alike, so
LINES = ("-", "--", "-.", ":")                                                      # dashes and markers tell lines apart
# Ten colours for small letters on white, each with a contrast of 4.5 or more.
INKS = ("#1f5fa8", "#b35000", "#2a7a2a", "#c02020", "#7d4fb3", "#7a4a3a", "#c2308f", "#606060", "#757500", "#007a87")


def png(figure: Figure, dpi: int = 100, optimize: bool = False) -> bytes:
    """The figure as the bytes of a PNG file; `optimize` takes longer and makes it smaller."""
    out = io.BytesIO()
    # tight: beside pictures, whose shape is fixed, the layout can leave too little room for the names of the rows
    figure.savefig(out, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.08,
                   pil_kwargs={"optimize": optimize})
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


def live_rows(rows: dict[str, torch.Tensor], title: str = "", width: int = 90) -> str:
    """The same rows as HTML, in a few milliseconds: for pictures that follow a slider, where `image_rows` is too slow.

    `width` is that of one picture on the page, in CSS pixels; the browser enlarges the pixels.
    """
    lines = ['<div style="line-height: 1.6">' + (f"<b>{html.escape(title)}</b>" if title else "")]
    for name, images in rows.items():
        side = images.shape[-1]
        strip = torch.ones(side, len(images) * (side + 1) - 1, 3)
        for i, image in enumerate(images):
            strip[:, i * (side + 1):i * (side + 1) + side] = as_rgb(image)
        wide, name = round(width * strip.shape[1] / side), html.escape(name)
        # where the page is narrow, the name goes above its pictures
        lines.append('<div style="display: flex; flex-wrap: wrap; align-items: center; gap: 0 0.6em; margin-bottom: 3px">'
                     f'<span style="width: 8em; flex: none">{name}</span>'
                     f'<img src="{data_url(strip)}" alt="{name}: {len(images)} pictures" '
                     f'style="flex: 1 1 24em; min-width: 0; max-width: {wide}px; image-rendering: pixelated"></div>')
    return "".join(lines) + "</div>"


def data_url(rgb: torch.Tensor) -> str:
    """Pixels [H, W, 3] on the scale 0 … 1 as the address of a PNG, for HTML."""
    from PIL import Image
    out = io.BytesIO()
    Image.fromarray((rgb * 255).round().byte().cpu().numpy()).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def as_rgb(image: torch.Tensor) -> torch.Tensor:
    """[C, H, W] on the scale 0 … 1 → [H, W, 3] with hidden pixels in `HIDDEN`. Two channels are shown as red and green, of
    more than three the first three."""
    if len(image) == 2:
        image = torch.cat([image, torch.zeros_like(image[:1])])
    image = image[:3].float().expand(3, -1, -1).permute(1, 2, 0)
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
    """Named curves (x, y), told apart by colour and dash, and named horizontal `levels` to compare them with. Points whose
    y is None, such as epochs without a validation, are passed over, and a curve of nothing else is left out."""
    lines = {name: [point for point in zip(x, y) if point[1] is not None] for name, (x, y) in lines.items()}
    lines = {name: tuple(zip(*points)) for name, points in lines.items() if points}
    figure = _figure(6.4, 3.6)
    axis = figure.subplots()
    for i, (name, (x, y)) in enumerate(lines.items()):
        axis.plot(x, y, LINES[i % len(LINES)], marker="o" if len(x) < 40 else None, markersize=3.5,
                  color=COLOURS[i % len(COLOURS)], label=name)
    for name, level in (levels or {}).items():
        _name_level(axis, name, level)
    axis.set_xlabel(xlabel), axis.set_ylabel(ylabel), axis.set_title(title, fontsize=11)
    if log_y:
        axis.set_yscale("log")
    axis.grid(alpha=0.25)
    axis.margins(y=0.1)
    if all(isinstance(value, int) for x, _ in lines.values() for value in x):
        axis.xaxis.get_major_locator().set_params(integer=True)         # there is no epoch 1.5
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9)
    ends = "; ".join(f"{name} ends at {y[-1]:.4g}" for name, (_, y) in lines.items())
    return _described(figure, f"{title or ylabel} against {xlabel}: {ends or 'nothing yet'}.")


def _name_level(axis, name: str, level: float) -> None:
    """A dotted line across, to compare with, and its name beside it, where no curve can cross it."""
    axis.axhline(level, color="0.4", linewidth=1, linestyle=(0, (1, 2)))
    axis.annotate(textwrap.fill(name, 14), (1, level), xycoords=("axes fraction", "data"), xytext=(4, 0),
                  textcoords="offset points", va="center", fontsize=9, color="0.3")


def confusion(counts: torch.Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix with its counts written in; the colour shows mistakes only, which the diagonal would drown."""
    counts = torch.as_tensor(counts)
    mistakes = counts.float().clone().fill_diagonal_(0)
    figure = _figure(5.2, 4.8)
    axis = figure.subplots()
    drawn = axis.imshow(mistakes.numpy(), cmap="Oranges", vmax=max(1.0, float(mistakes.max())))
    for i, row in enumerate(counts.tolist()):
        for j, value in enumerate(row):
            axis.text(j, i, value or "·", ha="center", va="center", fontsize=8, fontweight="bold" if i == j else None,
                      color=_ink(_colour_of(drawn, mistakes[i, j])) if value else "0.43")
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, **_slanted(classes)), axis.set_yticks(ticks, classes)
    axis.set_xlabel("predicted class"), axis.set_ylabel("true class"), axis.set_title(title, fontsize=11)
    i, j = divmod(int(mistakes.argmax()), len(classes))
    worst = f"the most frequent mistake is {classes[i]} taken for {classes[j]}, {int(mistakes[i, j])} times" \
        if mistakes.any() else "no mistake"
    return _described(figure, f"{f'Confusion matrix {title}'.strip()}: {int(counts.diag().sum())} of {int(counts.sum())} "
                              f"right; {worst}.")


def predictions(images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, classes: Sequence[str],
                title: str = "", columns: int = 10) -> Figure:
    """Pictures [B, C, H, W] with the predicted class and its probability; ✗ also names the truth."""
    guess, columns = probabilities.argmax(1), min(columns, len(images))
    rows = list(images.split(columns))
    wordy = max(map(len, classes)) > 3                  # names of digits fit beside their probability, "automobile" does not
    figure, axis, step, centres = _pictures(rows, columns, [0.55 if wordy else 0.42] * len(rows), title)
    axis.set_yticks([])
    for i in range(len(images)):
        right = bool(guess[i] == labels[i])
        truth = "" if right else f"\nis {classes[labels[i]]}"
        axis.text((i % columns + 0.47) * step, centres[i // columns][1] + 0.03 * step, ha="center", va="top", fontsize=9,
                  s=f"{'✓' if right else '✗'} {classes[guess[i]]}{chr(10) if wordy else '  '}"
                    f"{probabilities[i, guess[i]]:.0%}{truth}",
                  color="#1a6b3c" if right else "#b3261e")
    return _described(figure, f"{title}: {len(images)} pictures with predictions, "
                              f"{int((guess == labels).sum())} of them right.")


def class_bars(image: torch.Tensor, answers: dict[str, torch.Tensor], classes: Sequence[str], title: str = "",
               truth: int | None = None) -> Figure:
    """One picture [C, H, W] on the scale 0 … 1 beside what named classifiers answer: `answers` are probabilities [K].

    Where the true class is known, ✓ and ✗ mark right and wrong.
    """
    figure = _figure(7.2, 0.6 + 1.25 * max(2, len(answers)))
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 2.2))
    picture = figure.add_subplot(left)
    picture.imshow(as_rgb(image).numpy(), interpolation="nearest")
    picture.set(xticks=[], yticks=[], title=title)
    axes, told = right.subgridspec(len(answers), 1).subplots(sharex=True, squeeze=False)[:, 0], []
    for axis, (name, values) in zip(axes, answers.items()):
        first = int(values.argmax())
        mark = "" if truth is None else "✓ " if first == truth else "✗ "
        told.append(f"{name}: {mark}{classes[first]} with {float(values[first]):.0%}")
        drawn = axis.bar(range(len(classes)), values.numpy(), color=["#b9c3d0" if i != first else COLOURS[0]
                                                                     for i in range(len(classes))])
        # what would be "0%" is left out: it is most of them
        axis.bar_label(drawn, [f"{v:.0%}" if v >= 0.005 else "" for v in values.tolist()], padding=1, fontsize=8)
        axis.set(ylim=(0, 1.25), yticks=(0, 0.5, 1), yticklabels=("0%", "50%", "100%"))
        axis.set_title(told[-1], fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xticks(range(len(classes)), classes, fontsize=9, **_slanted(classes))
    axes[-1].set_xlabel("class"), axes[len(axes) // 2].set_ylabel("probability", fontsize=9)
    return _described(figure, f"{title}: a picture and the probabilities of its classes, {'; '.join(told)}.")


def bars(values: dict[str, float], ylabel: str, title: str = "", text: str = "{:.2%}", floor: float = 0.0,
         xlabel: str = "", levels: dict[str, float] | None = None) -> Figure:
    """Named bars with their values written above, and named horizontal `levels` to compare them with; `floor` is where the
    axis starts and is said when it is not zero. All have one colour, because each has its name below it."""
    figure = _figure(1.2 + 1.0 * len(values), 3.4)
    axis = figure.subplots()
    drawn = axis.bar(list(values), [v - floor for v in values.values()], bottom=floor, width=0.65, color=COLOURS[0])
    axis.bar_label(drawn, [text.format(v) for v in values.values()], padding=2, fontsize=9)
    for name, level in (levels or {}).items():
        _name_level(axis, f"{name} {text.format(level)}", level)
    axis.margins(y=0.15)
    if "%" in text:
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    axis.set_ylabel(ylabel + (f" (axis starts at {text.format(floor)})" if floor else "")), axis.set_xlabel(xlabel)
    axis.set_title(title, fontsize=11)
    told = ", ".join(f"{k} {text.format(v)}" for k, v in (values | (levels or {})).items())
    return _described(figure, f"{title or ylabel}: {told}.")


def patch_grid(image: torch.Tensor, patch_size: int, title: str = "", numbers: bool = True) -> Figure:
    """One picture [C, H, W] on the scale 0 … 1 with its cutting lines, and its patches apart, numbered row by row where
    `numbers` asks for it and there is room, up to eight in a row.

    Padding, where the patch does not divide the picture, is drawn in `HIDDEN`.
    """
    gap = max(1.0, 0.12 * patch_size)
    step = patch_size + gap
    figure = _figure(7.2, 3.7)
    whole, apart = figure.subplots(1, 2)
    padded = _cut(whole, image, patch_size)
    side, count = image.shape[-1], padded.shape[-1] // patch_size
    for i in range(count * count):
        top, left = i // count, i % count
        patch = padded[:, top * patch_size:(top + 1) * patch_size, left * patch_size:(left + 1) * patch_size]
        box = (left * step, left * step + patch_size, top * step + patch_size, top * step)
        apart.imshow(as_rgb(patch).numpy(), extent=box, interpolation="nearest", vmin=0, vmax=1)
        # a frame, because ink at the edge of a patch is as white as the gap; a dark ground, because numbers lie on ink, too
        frame = {"facecolor": "none", "edgecolor": COLOURS[1], "linewidth": 0.8}
        apart.add_patch(_rectangle(box[0], box[3], patch_size, patch_size, **frame))
        if numbers and count <= 8:
            apart.text(box[0] + 0.09 * patch_size, box[3] + 0.09 * patch_size, i, color="#ffb066", fontsize=8, va="top",
                       fontweight="bold", bbox={"facecolor": "black", "edgecolor": "none", "pad": 0.6})
    edge = 0.03 * patch_size
    apart.set(xlim=(-edge, count * step - gap + edge), ylim=(count * step - gap + edge, -edge))
    apart.set_title(f"{count * count} patches of {patch_size}×{patch_size}")
    apart.set(xticks=[], yticks=[], aspect="equal")
    apart.spines[:].set_visible(False)
    figure.suptitle(title)
    numbered = ", numbered from the top left, row by row" if numbers and count <= 8 else ""
    return _described(figure, f"{title} A picture of {side} by {side} pixels cut into {count} by {count} patches{numbered}.")


def patches_and_tokens(image: torch.Tensor, patch_size: int) -> Figure:
    """One picture [C, H, W] on the scale 0 … 1 with its cutting lines, beside its patches as rows of a matrix [N, P·P·C].

    The title says what the patch size costs. Padding is drawn in `HIDDEN`.
    """
    figure = _figure(7.2, 3.6)
    whole, table = figure.subplots(1, 2)
    padded = _cut(whole, image, patch_size)
    patches = padded.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)        # [C, rows, columns, P, P]
    tokens = patches.permute(1, 2, 3, 4, 0).flatten(0, 1).flatten(1)
    table.imshow(as_rgb(tokens[None]).numpy(), aspect="auto", interpolation="nearest")
    table.set(xlabel="number within the patch", ylabel="patch", title=f"{len(tokens):,} rows of {tokens.shape[1]:,} numbers")
    table.tick_params(labelsize=8)
    title = (f"patch size {patch_size}: a sequence of {len(tokens):,}, {len(tokens) ** 2:,} pairs of tokens")
    figure.suptitle(title)
    return _described(figure, f"{title}. Left the picture with its cutting lines, right its patches as rows of a matrix.")


def _cut(axis, image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Draw a picture [C, H, W] with its cutting lines; the picture padded with nan to whole patches."""
    side = image.shape[-1]
    full = -(-side // patch_size) * patch_size
    padded = torch.full((image.shape[0], full, full), torch.nan)
    padded[:, :side, :side] = image
    axis.imshow(as_rgb(padded).numpy(), extent=(0, full, full, 0), interpolation="nearest")
    cuts = range(0, full + 1, patch_size)
    axis.vlines(cuts, 0, full, color=COLOURS[1], linewidth=0.8)
    axis.hlines(cuts, 0, full, color=COLOURS[1], linewidth=0.8)
    axis.set(xticks=[], yticks=[], title=f"{side}×{side} pixels" + (f", padded to {full}×{full}" if full > side else ""))
    axis.spines[:].set_visible(False)
    return padded


def attention_on(image: torch.Tensor, weights: torch.Tensor, patch: int, title: str = "",
                 what: str = "attention to each patch") -> Figure:
    """Where one patch looks: a picture [C, H, W] on the scale 0 … 1 and `weights` [N] over its patches, which need not
    sum to 1; `patch` is framed in both. `what` names the weights."""
    count, side = int(len(weights) ** 0.5), image.shape[-1]
    figure = _figure(6.4, 3.3)
    left, right = figure.subplots(1, 2)
    left.imshow(as_rgb(image).numpy(), extent=(0, count, count, 0), interpolation="nearest")
    drawn = right.imshow(weights.float().view(count, count).numpy(), extent=(0, count, count, 0), cmap="viridis",
                         vmin=min(0.0, float(weights.min())))
    for axis, name in ((left, f"patch {patch} of {len(weights)}"), (right, what)):
        axis.add_patch(_rectangle(patch % count, patch // count, 1, 1, facecolor="none", edgecolor=COLOURS[1], linewidth=2))
        axis.set(xticks=[], yticks=[], title=name)
    figure.colorbar(drawn, ax=right, shrink=0.8)
    figure.suptitle(title)
    strongest = int(weights.argmax())
    return _described(figure, f"{title} A picture of {side} by {side} pixels with patch {patch} framed, and beside it "
                              f"the {what}, largest for patch {strongest}.")


def scatter(maps: dict[str, torch.Tensor], labels: torch.Tensor, classes: Sequence[str], title: str = "") -> Figure:
    """Named maps side by side, each of the same points [N, 2], drawn as the names of their classes, cut to three letters:
    no legend is needed, and no colour has to be told apart."""
    figure = _figure(5.6 if len(maps) == 1 else 3.7 * len(maps), 5.2 if len(maps) == 1 else 4.0)
    for axis, (name, points) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items()):
        axis.scatter(*points.T.numpy(), s=0)            # sets the limits, which names alone do not
        axis.set(xticks=[], yticks=[], title=name)
        for (x, y), label in zip(points.tolist(), labels.tolist()):
            axis.text(x, y, classes[label][:3], color=INKS[label % 10], fontsize=8 if len(maps) == 1 else 7, ha="center",
                      va="center", clip_on=True)
    figure.suptitle(title, fontsize=11)
    return _described(figure, f"{title}: {len(labels)} points in a plane, each drawn as the name of its class: "
                              f"{', '.join(maps)}.")


def heatmaps(matrices: dict[str, torch.Tensor], title: str = "", xlabel: str = "", ylabel: str = "",
             columns: int = 4, values: bool = False, signed: bool = False, size: float = 2.1,
             frame: tuple[int, int] | None = None) -> Figure:
    """Named matrices [rows, columns] as coloured squares on one common scale; `values` writes the numbers in.

    `signed` centres the colours on zero; `frame` (row, column) marks one entry of each. Not-a-number stays blank.
    """
    count, columns = len(matrices), min(columns, len(matrices))
    rows = -(-count // columns)
    shape = next(iter(matrices.values())).shape
    tall = size * min(2.0, max(0.5, shape[0] / shape[1]))
    figure = _figure(size * columns + 0.9, tall * rows + 0.5 + 0.3 * bool(title))
    everything = torch.cat([m.flatten().float() for m in matrices.values()])
    low, high = float(everything.nan_to_num(torch.inf).min()), float(everything.nan_to_num(-torch.inf).max())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, matrix) in zip(axes, matrices.items()):
        drawn = axis.imshow(matrix.float().numpy(), cmap="RdBu_r" if signed else "viridis", vmin=low, vmax=high,
                            interpolation="nearest", aspect="auto" if shape[0] != shape[1] else "equal")
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.get_major_locator().set_params(integer=True)
        if frame:
            box = {"facecolor": "none", "edgecolor": COLOURS[1], "linewidth": 2}
            axis.add_patch(_rectangle(frame[1] - 0.5, frame[0] - 0.5, 1, 1, **box))
        for i, j in ((i, j) for i in range(len(matrix)) for j in range(len(matrix[0])) if values):
            axis.text(j, i, f"{float(matrix[i, j]):.2f}", ha="center", va="center", fontsize=8,
                      color=_ink(_colour_of(drawn, matrix[i, j])))
    for axis in axes[count:]:
        axis.set_visible(False)
    axes[0].set_xlabel(xlabel, fontsize=9), axes[0].set_ylabel(ylabel, fontsize=9)
    figure.colorbar(drawn, ax=list(axes[:count]), shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return _described(figure, f"{title}: {', '.join(matrices)}, {shape[0]} rows by {shape[1]} columns, values from "
                              f"{low:.2g} to {high:.2g}.")


def cells(rows: dict[str, Sequence], hidden: dict[str, Sequence[bool]], title: str = "") -> Figure:
    """Named rows of values in boxes, one below another; boxes whose flag in `hidden` is set are drawn as hidden."""
    count = max(map(len, rows.values()))
    figure = _figure(2.6 + 0.62 * count, 0.62 * len(rows) + 0.5)
    axis = figure.subplots()
    for y, (name, values) in enumerate(rows.items()):
        flags = hidden.get(name, [False] * len(values))
        for x, (value, flag) in enumerate(zip(values, flags)):
            box = {"facecolor": HIDDEN if flag else "white", "edgecolor": "0.3"}
            axis.add_patch(_rectangle(x + 0.04, y + 0.14, 0.92, 0.72, **box))
            text = f"{value:.2f}" if isinstance(value, float) else str(value)
            axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=10, color=_ink(HIDDEN) if flag else "black")
    axis.set(xlim=(0, count), ylim=(len(rows), 0), xticks=[], title=title)
    axis.set_yticks([y + 0.5 for y in range(len(rows))], list(rows), fontsize=10)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    told = "; ".join(f"{name}: {', '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in values)}"
                     for name, values in rows.items())
    return _described(figure, f"{title}: {told}.")


def intervals(rows: dict[str, dict[str, Sequence[float]]], xlabel: str, title: str = "") -> Figure:
    """For every row some named series of values, each drawn as its points, with the mean as a bar when there are several."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure = _figure(6.8, 0.55 * len(rows) + 1.2)
    axis, markers = figure.subplots(), "osD^v"
    for y, row in enumerate(rows.values()):
        for name, values in row.items():
            k = names.index(name)
            axis.plot(values, [y + 0.12 * (k - (len(names) - 1) / 2)] * len(values), markers[k % 5], color=COLOURS[k % 6],
                      markersize=6, alpha=0.8, linestyle="none", label=name if name not in _labels(axis) else None)
            if len(values) > 1:
                mean = sum(values) / len(values)
                axis.plot([mean, mean], [y - 0.3, y + 0.3], color=COLOURS[k % 6], linewidth=1.5)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    axis.locator_params(axis="x", nbins=7)              # numbers of five digits would touch each other
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.25, axis="x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    told = "; ".join(f"{row}: " + ", ".join(f"{name} {' '.join(f'{v:.4g}' for v in values)}" for name, values in has.items())
                     for row, has in rows.items())
    return _described(figure, f"{title or xlabel}. {told}.")


def bands(lines: dict[str, Sequence[tuple[Sequence[float], Sequence[float]]]], xlabel: str, ylabel: str,
          title: str = "") -> Figure:
    """Learning curves: for each name the curves (x, y) of its seeds, drawn as their mean with a band of one standard
    deviation to each side. A name with one seed has no band."""
    import seaborn
    figure, told = _figure(8.2, 3.6), []
    axis = figure.subplots()
    for k, (name, seeds) in enumerate(lines.items()):
        points = [point for x, y in seeds for point in zip(x, y)]
        seaborn.lineplot(x=[x for x, _ in points], y=[y for _, y in points], ax=axis, color=COLOURS[k % len(COLOURS)],
                         linestyle=LINES[k % len(LINES)], errorbar="sd" if len(seeds) > 1 else None, legend=False,
                         label=f"{name} (n = {len(seeds)})", err_kws={"alpha": 0.3, "linewidth": 0})
        told.append(f"{name}: ends at {_told([y[-1] for _, y in seeds])}")
    axis.set_title(title, fontsize=11), axis.set_xlabel(xlabel), axis.set_ylabel(ylabel)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return _described(figure, f"{title or ylabel}: {ylabel} against {xlabel}, mean and standard deviation over seeds. "
                              f"{'; '.join(told)}.")


def ablation(axes: Sequence[str], panels: dict[str, dict[tuple, Sequence[float]]], title: str = "") -> Figure:
    """What a study found, {panel: {values of the axes: values of the seeds}}: a map where two axes form a full grid,
    else the arms side by side. With several axes each arm is named by what it has that the first one has not."""
    keys = list(dict.fromkeys(arm for each in panels.values() for arm in each))
    if len(axes) == 2 and min(len({key[i] for key in keys}) for i in (0, 1)) > 1 and \
            len(keys) == len({key[0] for key in keys}) * len({key[1] for key in keys}):
        return arm_maps(panels, *axes, title)
    names = {arm: _arm_name(axes, arm, keys[0]) for arm in keys}
    return arms({panel: {names[arm]: seeds for arm, seeds in each.items()} for panel, each in panels.items()},
                " · ".join(axes) if len(axes) == 1 else "arms by what they change", title)


def _arm_name(axes: Sequence[str], arm: tuple, first: tuple) -> str:
    if len(axes) == 1:
        return str(arm[0])
    follows = {"num_heads"} if "embed_dim" in axes else set()           # the heads follow the width
    changes = [(axis.split(".")[-1], value) for axis, value, usual in zip(axes, arm, first)
               if value != usual and axis not in follows]
    telling = ("mask_strategy", "mask_schedule", "variant")             # whose values need no name before them
    return "\n".join(value if axis in telling else f"{axis} {value}" for axis, value in changes) or "original"


def arms(panels: dict[str, dict[str, Sequence[float]]], xlabel: str, title: str = "") -> Figure:
    """What a study found along one axis: in each panel the named arms with the value of every seed, their mean and one
    standard deviation to each side. The name of a panel says what it measures, and in which unit."""
    figure, axes = _panels(len(panels), title)
    names, told = list(dict.fromkeys(arm for each in panels.values() for arm in each)), []
    counts = {arm: max(len(each.get(arm, ())) for each in panels.values()) for arm in names}
    equal = len(set(counts.values())) == 1
    for k, (axis, (panel, values)) in enumerate(zip(axes, panels.items())):
        for arm, seeds in values.items():
            x, (mean, std) = names.index(arm), _mean_std(seeds)
            axis.plot([x] * len(seeds), seeds, "o", color=COLOURS[k % len(COLOURS)], alpha=0.35, markersize=4)
            axis.errorbar(x, mean, std or None, fmt="D", color=COLOURS[k % len(COLOURS)], markersize=5, capsize=4)
            told.append(f"{panel}, {arm}: {_told(seeds)}")
        for arm in set(names) - set(values):
            axis.text(names.index(arm), 0.5, "no value", transform=axis.get_xaxis_transform(), rotation=90,
                      ha="center", va="center", fontsize=8, color="0.35")
        axis.set_xticks(range(len(names)), [arm if equal else f"{arm} (n = {counts[arm]})" for arm in names],
                        **(_slanted(names) if equal else _slanted(["long"])), fontsize=9)
        axis.set(xlim=(-0.5, len(names) - 0.5))
        axis.set_title(panel, fontsize=10)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(alpha=0.25, axis="y")
    seen = f" (n = {next(iter(counts.values()))})" if equal else ""
    several = max(counts.values()) > 1
    marks = f"dots: seeds{seen}; diamonds: mean ± standard deviation" if several else "diamonds: one seed each"
    figure.supxlabel(f"{xlabel}\n{marks}", fontsize=9, color="0.35")
    return _described(figure, f"{title or xlabel}. {'; '.join(told)}.")


def arm_maps(panels: dict[str, dict[tuple, Sequence[float]]], ylabel: str, xlabel: str, title: str = "") -> Figure:
    """What a study found along two axes: in each panel a map of {(row, column): values of the seeds}, with mean, standard
    deviation and n written in. Each panel has colours of its own; light is high."""
    figure, axes = _panels(len(panels), title)
    keys = [arm for each in panels.values() for arm in each]
    rows, columns = sorted({row for row, _ in keys}), sorted({column for _, column in keys})
    told = []
    for axis, (panel, values) in zip(axes, panels.items()):
        means = torch.tensor([[_mean_std(values.get((row, column), ()))[0] for column in columns] for row in rows])
        low, high = float(means.nan_to_num(torch.inf).min()), float(means.nan_to_num(-torch.inf).max())
        drawn = axis.imshow(means.numpy(), cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (row, column), seeds in values.items():
            i, j = rows.index(row), columns.index(column)
            mean, std = _mean_std(seeds)
            more = f"\n± {std:.2f}, n = {len(seeds)}" if len(seeds) > 1 else ""
            axis.text(j, i, f"{mean:.2f}{more}", ha="center", va="center", fontsize=8,
                      color=_ink(_colour_of(drawn, mean)))
            told.append(f"{panel}, {ylabel} {row}, {xlabel} {column}: {_told(seeds)}")
        axis.set_xticks(range(len(columns)), columns), axis.set_yticks(range(len(rows)), rows)
        axis.set_title(panel, fontsize=10), axis.set_xlabel(xlabel), axis.set_ylabel(ylabel if axis is axes[0] else "")
    return _described(figure, f"{title}. {'; '.join(told)}.")


def costs(panels: dict[str, dict[str, Sequence[tuple[float, Sequence[float]]]]], title: str = "") -> Figure:
    """What accuracy costs: in each panel the named ways, each a list of (seconds, accuracies of the seeds as shares of 1),
    drawn at the mean with one standard deviation to each side.

    Heights follow the logarithm of the mistakes: from 98 to 99 % is as far as from 80 to 90 %, half the mistakes.
    """
    from matplotlib.ticker import LogLocator, NullFormatter
    figure, axes = _panels(len(panels), title)
    names, told, markers = list(dict.fromkeys(name for each in panels.values() for name in each)), [], "osD^vPX*"
    for axis, (panel, ways) in zip(axes, panels.items()):
        for name, points in ways.items():
            k = names.index(name)
            for i, (seconds, seeds) in enumerate(points):
                mean, std = _mean_std([100 * (1 - value) for value in seeds])
                axis.errorbar(seconds, mean, std or None, fmt=markers[k % 8], color=COLOURS[k % 6], markersize=7, capsize=3,
                              alpha=0.85, label=name if i == 0 else None)
                told.append(f"{panel}, {name}: {seconds:,.0f} seconds, {_told([100 * value for value in seeds])} %")
        axis.set_xscale("log"), axis.set_yscale("log")
        for ticks, places, shown in ((axis.xaxis, (1, 2, 5), lambda value, _: f"{value:,.0f}"),
                                     (axis.yaxis, (1, 1.5, 2, 3, 5, 7), lambda value, _: f"{100 - value:.4g}")):
            ticks.set_major_locator(LogLocator(subs=places))
            ticks.set_major_formatter(shown)
            ticks.set_minor_formatter(NullFormatter())
        axis.margins(x=0.15, y=0.12)
        axis.invert_yaxis()
        axis.set_title(panel, fontsize=10), axis.set_xlabel("seconds, with pretraining")
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("test accuracy, %")
    drawn = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=min(3, len(drawn)), frameon=False, fontsize=9)
    return _described(figure, f"{title}. {'; '.join(told)}.")


def _panels(count: int, title: str):
    """A figure with panels side by side, two at least as wide as the text of a page, and its axes."""
    figure = _figure(5.4 if count == 1 else 7.6 if count == 2 else 9.6, 3.5)
    if count:
        figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), which is 0 for one value; not-a-number for none."""
    mean = sum(values) / len(values) if values else float("nan")
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0


def _told(seeds: Sequence[float]) -> str:
    mean, std = _mean_std(seeds)
    return f"{mean:.2f}" + (f" ± {std:.2f}" if len(seeds) > 1 else "") + f" (n = {len(seeds)})"


def mae_diagram(image: torch.Tensor, mask: torch.Tensor, answer: torch.Tensor, sizes: dict[str, str]) -> Figure:
    """One picture on its way through a masked autoencoder, drawn with the pixels it really has.

    image and answer [C, H, H] on the scale 0 … 1 (the answer for every patch), mask bool [N]; `sizes` gives the text
    below each of the stations patches, visible, encoder, latent, restored, decoder, answer. In the answer the patches that
    were visible are framed.
    """
    count, side = int(len(mask) ** 0.5), image.shape[-1]
    patch = side // count
    figure = _figure(11.5, 3.5)
    axis = figure.subplots()
    half, visible = count / 2, [i for i in range(count * count) if not mask[i]]

    def picture(pixels, index, x, y):
        row, col = divmod(index, count)
        square = as_rgb(pixels[:, row * patch:(row + 1) * patch, col * patch:(col + 1) * patch])
        axis.imshow(square.numpy(), extent=(x, x + 1, y + 1, y), interpolation="nearest", vmin=0, vmax=1)

    def grid(pixels, x, only=None):
        for i in range(count * count):
            place = x + (i % count) * 1.08, (i // count) * 1.08 - half * 1.08
            if only is None or only(i):
                picture(pixels, i, *place)
            else:
                axis.add_patch(_rectangle(*place, 1, 1, facecolor=HIDDEN, edgecolor="none"))

    def column(x, items):
        height = 1.08 * count / len(items)
        for k, colour in enumerate(items):
            axis.add_patch(_rectangle(x, k * height - half * 1.08, 1.3, 0.86 * height, facecolor=colour, edgecolor="none"))

    def box(x, width, height, name, colour):
        axis.add_patch(_rectangle(x, -height / 2, width, height, facecolor=colour, edgecolor="none"))
        axis.text(x + width / 2, 0, name, ha="center", va="center", color="white", fontsize=12, fontweight="bold")

    wide, seen, blank = 1.08 * count, COLOURS[0], "#b9c3d0"
    stations, x = {}, 0.0
    for name, width in (("patches", wide), ("visible", 1.3), ("encoder", 5.2), ("latent", 1.3), ("restored", 1.3),
                        ("decoder", 3.6), ("answer", wide)):
        stations[name] = (x, width)
        x += width + 2.4
    grid(image, stations["patches"][0], lambda i: not mask[i])
    column(stations["visible"][0], [COLOURS[2]] * len(visible))
    box(*stations["encoder"], wide, "encoder", COLOURS[0])
    column(stations["latent"][0], [seen] * len(visible))
    column(stations["restored"][0], [blank if hidden else seen for hidden in mask])
    box(*stations["decoder"], 0.62 * wide, "decoder", COLOURS[3])
    grid(answer, stations["answer"][0])
    for i in visible:                                   # where the answer was never asked for
        axis.add_patch(_rectangle(stations["answer"][0] + (i % count) * 1.08, (i // count) * 1.08 - half * 1.08, 1, 1,
                                  facecolor="none", edgecolor=COLOURS[1], linewidth=1.6))
    for (left, width), following in zip(list(stations.values()), list(stations.values())[1:]):
        axis.annotate("", (following[0] - 0.25, 0), (left + width + 0.25, 0),
                      arrowprops={"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.3})
    for name, (left, width) in stations.items():
        axis.text(left + width / 2, 0.6 * wide, sizes[name], ha="center", va="top", fontsize=9.5)
    axis.set(xlim=(-0.5, x - 1.9), ylim=(0.98 * wide, -0.56 * wide), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    return _described(figure, "One picture on its way through a masked autoencoder, from left to right: " + "; ".join(
        f"{name}: {text}" for name, text in sizes.items()) + ".")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _described(figure: Figure, alt: str) -> Figure:
    """`alt` begins with the title; where there is none, the mark behind it goes, too."""
    told = " ".join(alt.split())
    rest = told.lstrip(":. ")
    figure.alt = told if rest == told else rest[:1].upper() + rest[1:]
    return figure


def _colour_of(drawn, value: float) -> tuple[float, ...]:
    """The colour, with its opacity, that an image with a colour map gives a value."""
    return drawn.cmap(drawn.norm(float(value)))


def _ink(colour: Sequence[float]) -> str:
    """Black or white, whichever is easier to read on this colour: its luminance as the Web's guidelines define it."""
    opaque = [1 - colour[3] + colour[3] * part for part in colour[:3]] if len(colour) > 3 else colour       # on white
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in opaque]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def _rectangle(x: float, y: float, width: float, height: float, **style):
    from matplotlib.patches import Rectangle
    return Rectangle((x, y), width, height, **style)


def _slanted(names: Sequence[str]) -> dict:
    """How to set the names below an axis: words would run into each other, digits do not."""
    return dict(rotation=40, ha="right", rotation_mode="anchor") if max(map(len, names)) > 3 else {}


def _labels(axis) -> list[str]:
    return axis.get_legend_handles_labels()[1]
