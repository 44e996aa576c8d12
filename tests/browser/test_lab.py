"""The notebooks in a real JupyterLab, driven by a real browser: they run, sliders and brushes move what they should.

Skipped where playwright or a Chromium is missing. Screenshots go to build/screenshots/, to be looked at.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

from mae_helpers import load_images, make_mask, plots, random_mask
from mae_helpers.pretrain import fixed_examples, load_mae, reconstruction_panels
from mae_helpers.recipes import pretrain_config
from mae_helpers.runs import find_run, recorded_root

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium, or set CHROMIUM")

ROOT = Path(__file__).parent.parent.parent
SHOTS = ROOT / "build" / "screenshots"
STDERR = """[...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]')].map(e => e.textContent)"""
# Code cells that have not run show an empty pair of brackets, one that runs a star.
WAITING = r"""[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(e => /^\[( |\*)\]/.test(e.textContent))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on the loopback interface with settings of its own, for copies of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
                "IPYTHONDIR": str(home / "ipython"), "MAE_RUNS_DIR": str(home / "runs")}
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
             "--ServerApp.port=0", "--IdentityProvider.token=course", f"--ServerApp.root_dir={home / 'notebooks'}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(words, env={**os.environ, **folders, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    try:
        yield _address(server, home), home / "notebooks"
    finally:
        server.terminate()
        server.wait(30)


def _address(server, home) -> str:
    written = home / "runtime" / f"jpserver-{server.pid}.json"
    for _ in range(600):
        assert server.poll() is None, (home / "log").read_text()[-2000:]
        try:
            url = json.loads(written.read_text())["url"]
            urlopen(f"{url}api?token=course", timeout=5).close()
            return url
        except (OSError, ValueError):
            time.sleep(0.1)
    raise AssertionError((home / "log").read_text()[-2000:])


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Page:
    """A notebook that is open in the browser."""

    def __init__(self, tab):
        self.tab = tab

    def run_all(self):
        self.tab.get_by_role("menuitem", name="Run", exact=True).click()
        self.tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.tab.wait_for_timeout(1_000)
        self.tab.wait_for_function(f"() => {STDERR}.some(t => t.includes('Traceback')) || !{WAITING}", timeout=900_000)
        self.tab.wait_for_timeout(1_000)
        self.is_clean()

    def is_clean(self):
        assert [text for text in self.tab.evaluate(STDERR) if "Traceback" in text] == []
        # what raises while a slider moves is only shown as a mark in the status bar
        assert self.tab.locator(".jp-LogConsoleStatusItem:not(.lm-mod-hidden)").count() == 0

    def figure(self, number):
        """The addresses of the pictures in one interactive figure of the page."""
        return self.tab.locator(".mae-figure").nth(number).locator("img").evaluate_all("all => all.map(e => e.src)")

    def shows(self, number, expected):
        """Wait until the figure shows these pictures: HTML as the functions of plots.py make it."""
        wanted = re.findall(r'src="([^"]+)"', expected)
        return self.until(lambda: self.figure(number) == wanted)

    def changes(self, number, before):
        """Wait until the figure shows something else than `before`."""
        return self.until(lambda: self.figure(number) not in ([], before))

    def until(self, holds):
        for _ in range(400):                # generous: other tests may share the machine
            if holds():
                return True
            self.tab.wait_for_timeout(100)
        return False

    def keys(self, name, *pressed, number=0):
        """Keys pressed on a control."""
        self.tab.locator(f".mae-{name}").nth(number).locator("[role=slider], canvas, button").first.focus()
        for key in pressed:
            self.tab.keyboard.press(key)

    def drag(self, name, share, number=0):
        """The handle of a slider dragged to a share of its track."""
        control = self.tab.locator(f".mae-{name}").nth(number)
        control.scroll_into_view_if_needed()
        handle, track = control.locator("[role=slider]").bounding_box(), control.locator(".noUi-base").bounding_box()
        y = handle["y"] + handle["height"] / 2
        self.tab.mouse.move(handle["x"] + handle["width"] / 2, y)
        self.tab.mouse.down()
        self.tab.mouse.move(track["x"] + share * track["width"], y, steps=10)
        self.tab.mouse.up()

    def reads(self, name, number=0):
        return self.tab.locator(f".mae-{name}").nth(number).locator(".widget-readout").inner_text()

    def line(self, number):
        return self.tab.locator(".mae-line").nth(number).inner_text()

    def shot(self, name, number=0):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.locator(".mae-figure").nth(number).scroll_into_view_if_needed()
        self.tab.wait_for_timeout(300)
        self.tab.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def opened(lab, chromium):
    """A function that opens a copy of a notebook and runs it from top to bottom."""
    address, folder = lab
    contexts = []

    def open_and_run(name):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)
        contexts.append(chromium.new_context(viewport={"width": 1300, "height": 1000}))
        tab = contexts[-1].new_page()
        # a workspace of its own, or the notebooks of earlier tests would open, too
        tab.goto(f"{address}lab/workspaces/{name}/tree/{name}.ipynb?token=course")
        # before it says so here, cells that are sent get lost
        idle = tab.locator(".jp-StatusBar-TextItem", has_text=re.compile(r"\| Idle$"))
        playwright.expect(idle).to_be_visible(timeout=120_000)
        page = Page(tab)
        page.run_all()
        return page
    yield open_and_run
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def examples():
    return fixed_examples(load_images("mnist", "val"))


def test_01_patch_size_by_keyboard_and_by_mouse(opened, examples):
    page = opened("01_patch_embedding")
    images = examples.images / 255
    page.keys("patch_size", "ArrowLeft", "ArrowLeft")
    assert page.shows(0, _as_html(plots.patches_and_tokens(images[5], 5))) and page.reads("patch_size") == "5"
    page.keys("digit", "Home")
    assert page.shows(0, _as_html(plots.patches_and_tokens(images[0], 5)))
    page.shot("01_patch_size")
    page.drag("patch_size", 0.5)
    size = int(page.reads("patch_size"))
    assert 12 <= size <= 17 and page.shows(0, _as_html(plots.patches_and_tokens(images[0], size)))
    page.keys("patch_size", "End"), page.keys("patch_size", "Home")
    assert page.shows(0, _as_html(plots.patches_and_tokens(images[0], 1)))
    page.is_clean()


def test_02_ratio_strategy_and_seed(opened, examples):
    page = opened("02_random_masking")
    page.keys("strategy", "ArrowRight")
    page.keys("ratio", "End")
    images = examples.images / 255
    mask = make_mask("block", 8, 49, 0.95, torch.Generator().manual_seed(0))
    hidden = mask.view(8, 1, 7, 7).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = plots.live_rows({"original": images, "x": images.masked_fill(hidden, torch.nan)})
    assert page.shows(0, expected) and page.reads("ratio") == "0.95"
    page.shot("02_masks")
    page.drag("seed", 0.5)
    assert page.changes(0, re.findall(r'src="([^"]+)"', expected))
    page.is_clean()


def test_03_attention_follows_the_click(opened):
    page = opened("03_mae_model")
    seen = [page.figure(0)]

    def moved():
        assert page.changes(0, seen[-1])
        seen.append(page.figure(0))

    page.keys("patch", "ArrowRight", "ArrowRight", " "), moved()
    page.shot("03_attention")
    page.tab.locator(".mae-patch canvas").click(position={"x": 140, "y": 140}), moved()
    page.keys("block", "End"), moved()
    page.keys("what", "ArrowRight"), moved()
    assert len({figure[0] for figure in seen}) == 5
    page.is_clean()


def test_05_slider_brush_and_drawing(opened, examples):
    page = opened("05_reconstruction")
    model = load_mae(find_run(pretrain_config("mnist-full"), recorded_root()))
    page.keys("mask_ratio", "ArrowRight", "ArrowRight")
    assert page.reads("mask_ratio") == "0.85"
    mask = random_mask(8, 49, 0.85, torch.Generator().manual_seed(0))
    assert page.shows(0, _three_rows(model, examples, mask))
    page.shot("05_ratio")

    canvas = page.tab.locator(".mae-hidden canvas")
    page.tab.locator(".mae-hidden").scroll_into_view_if_needed()
    page.tab.get_by_role("button", name="clear").first.click()
    assert page.until(lambda: "at least one" in page.line(1))          # nothing is hidden: said, not raised
    box = canvas.bounding_box()
    page.tab.mouse.move(box["x"] + 20, box["y"] + 20)           # a stroke along the first row of patches
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + 270, box["y"] + 20, steps=30)
    page.tab.mouse.up()
    hidden = torch.zeros(1, 49, dtype=torch.bool)
    hidden[0, :7] = True
    assert page.shows(1, _one_row(model, examples.subset([3]), hidden))
    page.keys("hidden", "ArrowDown", " ")                       # and one more by the keyboard, below the end of the stroke
    hidden[0, 13] = True
    assert page.shows(1, _one_row(model, examples.subset([3]), hidden))
    page.shot("05_brush", 1)

    sheet = page.tab.locator(".mae-ink canvas")
    page.tab.locator(".mae-ink").scroll_into_view_if_needed()
    begun = page.figure(2)
    page.tab.get_by_role("button", name="clear").nth(1).click()
    assert page.changes(2, begun)
    before, box = page.figure(2), sheet.bounding_box()
    page.tab.mouse.move(box["x"] + 140, box["y"] + 50)          # a one
    page.tab.mouse.down()
    page.tab.mouse.move(box["x"] + 140, box["y"] + 230, steps=40)
    page.tab.mouse.up()
    assert page.changes(2, before)
    page.shot("05_drawing", 2)
    page.is_clean()


def test_06_behind_a_number_and_the_map(opened):
    page = opened("06_mnist_classification")
    first = page.figure(0)
    page.keys("true", "End")                                    # a 9 taken for a 9
    assert page.until(lambda: page.figure(0) != first or "no validation digit" in page.line(0))
    page.shot("06_behind")
    first = page.figure(1)
    page.keys("encoder", "End")
    assert page.changes(1, first)
    page.shot("06_map", 1)
    page.is_clean()


def _as_html(figure):
    from mae_helpers.widgets import as_html
    return as_html(figure)


def _three_rows(model, examples, mask):
    shown = reconstruction_panels(model, examples, mask)
    return plots.live_rows({name: shown[name] for name in ("original", "masked", "pasted")})


def _one_row(model, example, mask):
    shown = reconstruction_panels(model, example, mask)
    return plots.live_rows({"row": torch.cat([shown[name] for name in ("masked", "pasted", "original")])})
