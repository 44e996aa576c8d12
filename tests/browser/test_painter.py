"""The brush alone, on an empty page: which pointers and keys it takes, which it leaves, and what it says.

Skipped where playwright or a Chromium is missing.
"""
from pathlib import Path

import pytest

from mae_helpers import widgets

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

SCRIPT = Path(widgets.__file__).with_name("painter.js")
# A model as anywidget gives it to the script, of three by three cells, and what reaches the page behind the brush.
PAGE = """async ([source, mode]) => {
    const values = { label: "patches", side: 3, mode, cells: Array(9).fill(0), picture: "", color: "blue" };
    const model = { get: (name) => values[name], set: (name, value) => { values[name] = value; },
                    on() {}, save_changes() {} };
    window.values = values, window.keys = [];
    document.addEventListener("keydown", (event) => keys.push(event.key));
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    (await import(address)).default.render({ model, el: document.body });
}"""


@pytest.fixture
def brush(chromium):
    """A function that opens a page with a brush of this mode."""
    tabs = []

    def opened(mode="hide"):
        tabs.append(chromium.new_page())
        tabs[-1].evaluate(PAGE, [SCRIPT.read_text(), mode])
        return tabs[-1]
    yield opened
    for tab in tabs:
        tab.close()


def painted(tab):
    """The numbers of the cells that the kernel knows as painted, after the frame in which they are sent."""
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return [i for i, value in enumerate(tab.evaluate("values.cells")) if value]


def point(tab, column, row):
    box = tab.locator("canvas").bounding_box()
    return box["x"] + (column + 0.5) * box["width"] / 3, box["y"] + (row + 0.5) * box["height"] / 3


def test_only_the_first_button_paints(brush):
    tab = brush()
    for button in ("right", "middle"):
        tab.mouse.move(*point(tab, 0, 0))
        tab.mouse.down(button=button), tab.mouse.move(*point(tab, 2, 0)), tab.mouse.up(button=button)
        assert painted(tab) == []
    tab.mouse.move(*point(tab, 0, 0))
    tab.mouse.down(), tab.mouse.move(*point(tab, 1, 0), steps=5), tab.mouse.up()
    assert painted(tab) == [0, 1]
    tab.mouse.move(*point(tab, 2, 2), steps=5)
    assert painted(tab) == [0, 1]


@pytest.mark.parametrize("lost", ["'lostpointercapture'", "'pointermove', { buttons: 0 }"])
def test_a_stroke_whose_end_got_lost_ends(brush, lost):
    tab = brush()
    tab.mouse.move(*point(tab, 0, 0))
    tab.mouse.down()
    tab.evaluate(f"document.querySelector('canvas').dispatchEvent(new PointerEvent({lost}))")
    tab.mouse.move(*point(tab, 2, 0), steps=5)
    assert painted(tab) == [0]


@pytest.mark.parametrize("key", ["Shift+Enter", "Control+Enter", "Alt+Enter", "Meta+ArrowDown", "Escape"])
def test_the_keys_of_the_notebook_stay_with_it(brush, key):
    tab = brush()
    tab.locator("canvas").focus()
    tab.keyboard.press(key)
    assert painted(tab) == [] and tab.evaluate("keys")[-1] == key.split("+")[-1]
    tab.keyboard.press("Enter")
    assert painted(tab) == [0] and tab.evaluate("keys")[-1] == key.split("+")[-1]


@pytest.mark.parametrize("mode, before, after", [("hide", "visible", "hidden"), ("pick", "not picked", "picked"),
                                                 ("ink", "blank", "inked")])
def test_the_cursor_is_told_to_those_who_do_not_see_it(brush, mode, before, after):
    tab = brush(mode)
    said = tab.locator("[aria-live=polite]")
    tab.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        tab.keyboard.press(key)
    assert said.text_content() == f"row 2, column 3, {before}"
    tab.keyboard.press(" ")
    assert said.text_content() == f"row 2, column 3, {after}" and 5 in painted(tab)
    assert said.bounding_box()["width"] <= 1, "told, not shown"
