"""Figures that one can move: sliders, choices and a brush around the pure functions of plots.py.

Nothing here draws or computes. A control changes, the function that was given makes a new figure, the page shows it.
ipywidgets and anywidget are imported when a widget is made; without one of them the first figure is shown, and a line
says why it does not move.
"""
from __future__ import annotations

import asyncio
import base64
import functools
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import plots
from .config import InputError
from .readers import fit_picture, why


class Slider(NamedTuple):
    """A number from `low` to `high`; whole numbers where `step` is one."""

    label: str
    low: float
    high: float
    value: float
    step: float = 1


class Choice(NamedTuple):
    """One of several words, the first one unless `start` names another."""

    label: str
    options: Sequence[str]
    start: str = ""

    @property
    def value(self) -> str:
        return self.start or self.options[0]


class Upload(NamedTuple):
    """A picture of one's own: the bytes of its file, None before there is one."""

    label: str
    value: None = None


class Paint(NamedTuple):
    """A square of cells to paint: "hide" patches over a picture, "pick" one of them, or draw with "ink".

    `value` are the cells, row by row, 0 to 1; `picture` float [C, H, W] on the scale 0 … 1 lies below them.
    """

    label: str
    side: int
    mode: str
    value: Sequence[float]
    picture: torch.Tensor | None = None


def explore(draw: Callable, hint: str, **controls: Slider | Choice | Upload | Paint):
    """Show `draw(**values)` beside its controls, and again whenever one of them moves.

    `hint` says what to try. An `InputError` becomes a line below the controls, the last good figure stays, and so does the
    last good upload, or every later move would fail with the file that was refused. Returns the widget, whose `controls`
    are the controls by name.
    """
    try:
        import ipywidgets
        made = {name: _made(control) for name, control in controls.items()}
    except ImportError:
        return _still(draw, {name: control.value for name, control in controls.items()})
    picture = ipywidgets.HTML()
    line = ipywidgets.HTML()
    for name, control in made.items():
        control.add_class(f"mae-{name}")
    picture.add_class("mae-figure")
    line.add_class("mae-line")

    def refresh():
        try:
            picture.value = as_html(draw(**{name: control.read() for name, control in made.items()}))
            line.value = f"<i>{html.escape(hint)}</i>"
        except InputError as error:
            line.value = f'<b role="status">{html.escape(str(error))}</b>'
            for upload in uploads:
                upload.unobserve(latest, upload.moves)          # to draw again would take the sentence away
                upload.value = upload.accepted
                upload.observe(latest, upload.moves)
        for upload in uploads:
            upload.accepted = upload.value

    latest, uploads = Latest(refresh), [control for control in made.values() if hasattr(control, "accepted")]
    for control in made.values():
        control.observe(latest, control.moves)
    refresh()
    view = _view()([part for control in made.values() for part in _with_eraser(control)] + [line, picture])
    view.controls, view.picture, view.line = made, picture, line
    return view


def _still(draw: Callable, values: dict) -> None:
    """Show the figure as it is at first, and say what it takes to move it."""
    from IPython.display import HTML, display
    try:
        display(HTML(as_html(draw(**values))))
    except InputError as error:
        print(error)
    print("This figure moves where ipywidgets and anywidget are installed: pip install ipywidgets anywidget")


class Latest:
    """Runs `act` once for all changes that arrive within a moment: while one drags, only the last position counts.

    Without a running event loop, in a script or a test, it runs at once.
    """

    def __init__(self, act: Callable[[], None], delay: float = 0.02):
        self.act, self.delay, self.waiting = act, delay, False

    def __call__(self, change=None) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.act()
            return
        if not self.waiting:
            self.waiting = True
            loop.call_later(self.delay, self._run)

    def _run(self) -> None:
        self.waiting = False
        self.act()


def follow(view, paint: str, slider: str, pictures: torch.Tensor) -> None:
    """Let the picture below the cells of a `Paint` be pictures[i] [B, C, H, W], where the slider stands at i. Shows the
    view, which may be None."""
    from IPython.display import display
    if view is not None:
        below, addresses = view.controls[paint], [plots.data_url(plots.as_rgb(picture)) for picture in pictures]
        view.controls[slider].observe(lambda change: below.set_trait("picture", addresses[change.new]), "value")
        display(view)


def own_picture(content: bytes, size: int) -> torch.Tensor:
    """An uploaded picture as floats [3, size, size] on the scale 0 … 1, cropped to a square. `InputError` for others."""
    try:
        return torch.from_numpy(fit_picture(io.BytesIO(content), size).copy()) / 255
    except Exception as error:              # Pillow raises what the decoder of the format raises
        raise InputError(f"this file cannot be read as an image ({why(error)}).") from None


def as_html(figure) -> str:
    """A figure as an image element, with its alt text; HTML stays as it is."""
    if isinstance(figure, str):
        return figure
    data = base64.b64encode(plots.png(figure, dpi=100)).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(figure.alt, quote=True)}" style="max-width: 100%">'


def _made(control: Slider | Choice | Upload | Paint):
    import ipywidgets
    wide = {"style": {"description_width": "12em"}, "layout": ipywidgets.Layout(width="min(34em, 100%)")}
    if isinstance(control, Slider):
        whole = all(float(v).is_integer() for v in (control.low, control.high, control.value, control.step))
        kind, number = (ipywidgets.IntSlider, int) if whole else (ipywidgets.FloatSlider, float)
        value = min(max(control.value, control.low), control.high)      # a notebook's parameter may lie outside
        made = kind(number(value), min=number(control.low), max=number(control.high), step=number(control.step),
                    description=control.label, **wide)
    elif isinstance(control, Choice):
        # no drop-down list: JupyterLab takes the keys away from it, and a letter inserts a cell
        made = ipywidgets.SelectionSlider(options=list(control.options), value=control.value, description=control.label,
                                          **wide)
        made.layout.flex_flow, made.layout.height = "row wrap", "auto"      # in a narrow page a long word has its own line
    elif isinstance(control, Upload):
        made = ipywidgets.FileUpload(accept="image/*", description=control.label, layout=wide["layout"])
        made.moves, made.read = "value", lambda: bytes(made.value[0]["content"]) if made.value else None
        made.accepted, made.empty = (), lambda: made.set_trait("value", ())
        return made
    else:
        return _painter()(control)
    made.moves, made.read = "value", lambda: made.value
    return made


@functools.cache
def _view():
    """The class of the whole: where there is no kernel, the page keeps the figure as it was when it was first shown."""
    import ipywidgets

    class View(ipywidgets.VBox):
        def _repr_mimebundle_(self, **kwargs):
            return {**super()._repr_mimebundle_(**kwargs), "text/html": self.picture.value,
                    "text/plain": "a figure with controls, which work while the notebook runs"}

    return View


def _with_eraser(control) -> list:
    """A control, and below cells that one paints, or a picture of one's own, a button that takes away what is there."""
    import ipywidgets
    if not hasattr(control, "empty") or getattr(control, "mode", "") == "pick":
        return [control]
    button = ipywidgets.Button(description="clear")
    button.on_click(lambda _: control.empty())
    return [control, button]


@functools.cache
def _painter():
    """The class of the brush widget; anywidget reads its JavaScript from the file beside this one."""
    import anywidget
    import traitlets

    class Painter(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("painter.js")
        label = traitlets.Unicode().tag(sync=True)
        side = traitlets.Int().tag(sync=True)
        mode = traitlets.Enum(["hide", "pick", "ink"]).tag(sync=True)
        cells = traitlets.List(traitlets.Float()).tag(sync=True)
        picture = traitlets.Unicode().tag(sync=True)
        color = traitlets.Unicode("rgb({}, {}, {})".format(*(round(255 * c) for c in plots.HIDDEN))).tag(sync=True)
        moves = "cells"

        def __init__(self, paint: Paint):
            super().__init__(label=paint.label, side=paint.side, mode=paint.mode, cells=list(map(float, paint.value)),
                             picture="" if paint.picture is None else plots.data_url(plots.as_rgb(paint.picture)))

        def read(self) -> list[float]:
            return self.cells

        def empty(self) -> None:
            self.cells = [0.0] * len(self.cells)

    return Painter
