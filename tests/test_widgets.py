"""Sliders and brushes without a browser: what moves, what is shown, what is said, and that nothing is left behind."""
import asyncio
import builtins
import gc
import io
import json
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_helpers import InputError, plots, widgets

PICTURES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def rows(size, which):
    if size == 3:
        raise InputError("size is 3: it must not be.")
    return plots.live_rows({which: PICTURES[:size]}, f"{size} of {which}")


def view(draw=rows, hint="Try <2>.", **controls):
    return widgets.explore(draw, hint, **(controls or {"size": widgets.Slider("size, pixels", 1, 3, 1),
                                                       "which": widgets.Choice("which", ("a", "b"))}))


def test_the_figure_is_that_of_the_function_for_every_position():
    made = view()
    assert made.picture.value == rows(1, "a")
    made.controls["size"].value, made.controls["which"].value = 2, "b"
    assert made.picture.value == rows(2, "b")


def test_a_choice_starts_where_it_says():
    made = view(lambda a: plots.live_rows({"x": PICTURES}, a), a=widgets.Choice("a", ("b", "c"), "c"))
    assert ">c<" in made.picture.value


def test_controls_have_labels_and_the_hint_is_text():
    made = view()
    assert [c.description for c in made.controls.values()] == ["size, pixels", "which"]
    assert made.line.value == "<i>Try &lt;2&gt;.</i>"


def test_a_wrong_position_is_one_line_and_the_last_good_figure_stays():
    made = view()
    made.controls["size"].value = 2
    made.controls["size"].value = 3
    assert made.line.value == '<b role="status">size is 3: it must not be.</b>' and made.picture.value == rows(2, "a")
    made.controls["size"].value = 1
    assert "Try" in made.line.value and made.picture.value == rows(1, "a")


def test_whole_numbers_stay_whole():
    made = view(lambda a, b: plots.live_rows({"x": PICTURES}, f"{a!r} {b!r}"), a=widgets.Slider("a", 1, 9, 2),
                b=widgets.Slider("b", 0, 1, 0.5, 0.1))
    assert ">2 0.5<" in made.picture.value


def test_a_first_value_outside_the_slider_is_moved_to_its_end():
    made = view(lambda a: plots.live_rows({"x": PICTURES}, str(a)), a=widgets.Slider("a", 0, 20, 99))
    assert made.controls["a"].value == 20 and ">20<" in made.picture.value


def test_while_one_drags_only_the_last_position_is_drawn():
    drawn = []

    async def drag():
        made = view(lambda size: (drawn.append(size), plots.live_rows({"x": PICTURES}))[1],
                    size=widgets.Slider("size", 0, 100, 0))
        for position in range(1, 51):
            made.controls["size"].value = position
        await asyncio.sleep(0.1)
        made.controls["size"].value = 60
        await asyncio.sleep(0.1)
    asyncio.run(drag())
    assert drawn == [0, 50, 60]


def test_without_a_kernel_the_page_keeps_the_figure():
    bundle = view()._repr_mimebundle_()
    assert bundle["text/html"] == rows(1, "a") and "controls" in bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def hide(monkeypatch, module):
    """Make the import of a module fail, and collect what goes into the page."""
    real, shown = builtins.__import__, []
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: (_ for _ in ()).throw(ImportError(name))
                        if name == module else real(name, *rest))
    monkeypatch.setattr("IPython.display.display", lambda shown_now: shown.append(shown_now.data))
    widgets._painter.cache_clear()
    return shown


@pytest.mark.parametrize("module", ["ipywidgets", "anywidget"])
@pytest.mark.parametrize("draw", [lambda cells, size: rows(size, str(sum(cells))),
                                  lambda cells, size: plots.patches_and_tokens(PICTURES[0], size)], ids=["html", "figure"])
def test_without_ipywidgets_or_anywidget_the_static_figure_is_shown(monkeypatch, capsys, module, draw):
    shown = hide(monkeypatch, module)
    made = view(draw, cells=widgets.Paint("cells", 2, "hide", [1, 0, 0, 1]), size=widgets.Slider("size", 1, 3, 2))
    assert made is None and shown == [widgets.as_html(draw([1, 0, 0, 1], 2))] and "<img" in shown[0]
    assert "pip install ipywidgets" in capsys.readouterr().out
    widgets.follow(made, "cells", "size", PICTURES)             # and what comes after it in a cell does not fail


def test_without_ipywidgets_a_wrong_first_position_is_a_line(monkeypatch, capsys):
    shown = hide(monkeypatch, "ipywidgets")
    assert view(size=widgets.Slider("size", 1, 3, 3), which=widgets.Choice("which", ("a",))) is None
    assert shown == [] and "size is 3: it must not be." in capsys.readouterr().out


def test_a_brush_has_cells_a_picture_and_an_eraser():
    paint = widgets.Paint("patches", 2, "hide", [1, 0, 0, 1], PICTURES[0])
    made = view(lambda hidden: plots.live_rows({"x": PICTURES}, str(sum(hidden))), hidden=paint)
    brush = made.controls["hidden"]
    assert brush.cells == [1, 0, 0, 1] and brush.label == "patches" and brush.picture.startswith("data:image/png")
    brush.cells = [1.0, 1.0, 0.0, 1.0]
    assert ">3.0<" in made.picture.value
    button = next(c for c in made.children if getattr(c, "description", "") == "clear")
    button.click()
    assert brush.cells == [0.0] * 4 and ">0.0<" in made.picture.value


def test_the_picture_below_a_brush_follows_a_slider():
    made = view(lambda patch, digit: plots.live_rows({"x": PICTURES[digit:digit + 1]}),
                patch=widgets.Paint("patch", 2, "pick", [1, 0, 0, 0], PICTURES[0]), digit=widgets.Slider("digit", 0, 2, 0))
    widgets.follow(made, "patch", "digit", PICTURES)
    made.controls["digit"].value = 2
    assert made.controls["patch"].picture == plots.data_url(plots.as_rgb(PICTURES[2]))


def test_the_script_of_the_brush_travels_with_the_package():
    assert "export default" in (Path(widgets.__file__).with_name("painter.js")).read_text()


def test_own_pictures():
    out = io.BytesIO()
    Image.new("RGB", (60, 40), (255, 0, 0)).save(out, "PNG")
    assert torch.equal(widgets.own_picture(out.getvalue(), 16), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 16, 16))
    with pytest.raises(InputError, match="cannot be read as an image"):
        widgets.own_picture(b"no picture", 16)


def uploaded(control, content):
    """What the page sends when a file was chosen."""
    control.value = ({"name": "mine.png", "type": "image/png", "size": len(content), "content": content,
                      "last_modified": datetime.now(timezone.utc)},)


def test_an_upload_that_is_refused_freezes_nothing_and_one_that_is_taken_can_be_taken_back():
    def draw(own, size):
        if own == b"bad":
            raise InputError("this is no picture.")
        return rows(size, own.decode() if own else "usual")
    made = view(draw, own=widgets.Upload("own"), size=widgets.Slider("size", 1, 3, 1))
    own, size = made.controls.values()
    uploaded(own, b"bad")
    assert "this is no picture." in made.line.value and made.picture.value == rows(1, "usual") and own.value == ()
    size.value = 2
    assert "Try" in made.line.value and made.picture.value == rows(2, "usual")
    uploaded(own, b"good")
    assert made.picture.value == rows(2, "good")
    size.value = 3                                              # another control is at fault
    assert "size is 3" in made.line.value
    uploaded(own, b"bad")                                       # and what was good before is good again
    size.value = 1
    assert made.picture.value == rows(1, "good")
    button = next(c for c in made.children if getattr(c, "description", "") == "clear")
    button.click()
    assert made.picture.value == rows(1, "usual") and own.value == ()


def test_five_hundred_moves_leave_nothing_behind():
    made = view(lambda size: plots.patches_and_tokens(PICTURES[0], size) if size == 8 else rows(1, "a"),
                size=widgets.Slider("size", 1, 8, 1))
    for warm in (2, 8, 1):
        made.controls["size"].value = warm
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(500):
        made.controls["size"].value = 8 if i % 100 == 0 else 1 + i % 2
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1_000_000


# The figures of the widgets

def pixels(html):
    """The pictures of an HTML figure, as arrays."""
    import base64
    import re
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in re.findall(r'data:image/png;base64,([^"]+)"', html)]


def test_live_rows_show_the_very_pixels():
    images = PICTURES.clone()
    images[1, :, :4] = torch.nan
    first, = pixels(plots.live_rows({"a <b>": images}, "t"))
    assert first.shape == (8, 8 * 3 + 2, 3)
    assert (first[:, :8] == (plots.as_rgb(images[0]) * 255).round().numpy()).all()
    assert (first[:4, 9:17] == np.round(255 * np.array(plots.HIDDEN))).all() and (first[:, 8] == 255).all()
    assert "a &lt;b&gt;" in plots.live_rows({"a <b>": images}) and "<b>" not in plots.live_rows({"a <b>": images})


def test_live_rows_of_colour():
    first, = pixels(plots.live_rows({"a": PICTURES[:1].expand(1, 3, 8, 8) * torch.tensor([1.0, 0, 0]).view(3, 1, 1)}))
    assert first[..., 1:].max() == 0 and first[..., 0].max() > 0


# The notebooks as they are stored

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def stored(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_state_of_widgets_is_stored(path):
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    bundles = [output.get("data", {}) for cell in stored(path) for output in cell.get("outputs", [])]
    assert not [bundle for bundle in bundles if "application/vnd.jupyter.widget-view+json" in bundle]


@pytest.mark.parametrize("path, at", [(path, i) for path in NOTEBOOKS for i, cell in enumerate(stored(path))
                                      if cell["cell_type"] == "code" and "widgets.explore(" in "".join(cell["source"])],
                         ids=lambda p: p.stem if isinstance(p, Path) else str(p))
def test_a_widget_has_a_still_picture_and_says_what_to_try(path, at):
    cells = stored(path)
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in cells[at]["outputs"]]
    assert any("<img" in page for page in pages), "what is shown without a kernel"
    prose = ["".join(cell["source"]) for cell in cells[:at] if cell["cell_type"] == "markdown"]
    section = max(i for i, text in enumerate(prose) if text.startswith("##"))
    assert "*Try:*" in "".join(prose[section:]) and cells[at]["metadata"]["tags"] == ["widget"]
