"""The site in a real browser: light and dark, wide and narrow, with its search, and without any other host.

Skipped where playwright or a Chromium is missing. Screenshots go to build/screenshots/, to be looked at.
"""
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytest.importorskip("sphinx_book_theme", reason="the site's packages are not installed: pip install -e '.[site]'")

SHOTS = Path(__file__).parent.parent.parent / "build" / "screenshots"
PAGES = ["index", "notebooks/01_patch_embedding", "notebooks/05_reconstruction", "notebooks/teaching"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(chromium, address):
    """A function that opens a window on the site; in the end nobody else has been asked, and no script has failed."""
    contexts, asked, failed = [], [], []

    def answer(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        asked.append(route.request.url)
        return route.abort()

    def open_window(width=1280, scheme="light"):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        contexts[-1].route("**/*", answer)
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: failed.append(str(error)))
        return tab
    yield open_window
    for context in contexts:
        context.close()
    assert asked == [] and failed == []


def background(tab, selector="body"):
    return tab.locator(selector).first.evaluate("e => getComputedStyle(e).backgroundColor")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_figures_stand_on_white(opened, address, width, scheme):
    tab = opened(width, scheme)
    for name in PAGES:
        tab.goto(f"{address}{name}.html")
        assert tab.locator("html").get_attribute("data-theme") == scheme
        # what is wider than the page scrolls in a box of its own
        assert tab.evaluate("document.documentElement.scrollWidth") == width, name
        assert tab.evaluate("[...document.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src)") == []
        if scheme == "dark" and name.startswith("notebooks/0"):
            assert background(tab) != "rgb(255, 255, 255)"
            assert background(tab, ".cell_output img") == "rgb(255, 255, 255)"
            assert background(tab, ".tag_widget .text_html") == "rgb(255, 255, 255)"
        SHOTS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SHOTS / f"site_{name.replace('/', '_')}_{width}_{scheme}.png")


def test_the_switch_turns_the_light_off(opened, address):
    tab = opened()
    tab.goto(f"{address}index.html")
    body = playwright.expect(tab.locator("body"))
    body.to_have_css("background-color", "rgb(255, 255, 255)")
    tab.locator("button.theme-switch-button:visible").first.click()
    tab.locator(".theme-change-button[data-mode=dark]:visible").first.click()
    body.not_to_have_css("background-color", "rgb(255, 255, 255)")
    tab.goto(f"{address}notebooks/glossary.html")           # and the next page remembers
    assert tab.locator("html").get_attribute("data-theme") == "dark"


def test_the_search_finds_a_notebook(opened, address):
    tab = opened()
    tab.goto(f"{address}search.html?q=patchify")
    found = tab.locator("#search-results li a")
    playwright.expect(found.first).to_be_visible(timeout=30_000)
    assert any("01_patch_embedding.html" in link for link in found.evaluate_all("all => all.map(e => e.href)"))


def test_a_phone_gets_at_the_list_of_pages(opened, address):
    tab = opened(390)
    tab.goto(f"{address}index.html")
    link = tab.locator("nav a", has_text="05 · Reconstruction").first
    assert not link.is_visible() or link.bounding_box()["x"] < 0
    tab.locator("button.primary-toggle:visible").first.click()
    link.click()
    tab.wait_for_url("**/05_reconstruction.html")


def test_the_first_cell_is_folded_and_opens(opened, address):
    tab = opened()
    tab.goto(f"{address}notebooks/02_random_masking.html")
    code = tab.get_by_text("except ImportError", exact=False).first
    assert not code.is_visible()
    tab.locator("div.cell summary").first.click()
    playwright.expect(code).to_be_visible()
