"""The site: built without a warning from what is stored, complete, and sufficient to itself."""
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mae_helpers.bootstrap import address, notebooks
from mae_helpers.config import project_root

pytest.importorskip("sphinx_book_theme", reason="the site's packages are not installed: pip install -e '.[site]'")
ROOT = project_root()
PAGES = [path.relative_to(ROOT).with_suffix("").as_posix() for path in notebooks()]
LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "embed": "src", "object": "data",
           "form": "action", "link": "href", "video": "src", "audio": "src", "track": "src", "input": "src", "use": "href"}
ELSEWHERE = r"""(fetch|import|importScripts|open)\(\s*["'`](https?:)?//|\.src\s*=\s*["'`](https?:)?//"""


class Page(HTMLParser):
    """What a page loads, where its links lead, and the names that links can lead to."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.links, self.names, self.math, self.styles = [], [], {""}, 0, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names |= {given.get("id"), given.get("name")}
        self.math += tag == "math"
        self.loads += [given[LOADING[tag]]] if given.get(LOADING.get(tag)) else []
        self.loads += re.findall(r"[^\s,]+(?=\s+[\d.]+[wx])", given.get("srcset") or "")
        self.styles += re.findall(r"url\(([^)]+)\)", given.get("style") or "")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="session")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_notebook_has_its_page_with_what_it_printed(site):
    for name in [*PAGES, "index", "search", "notebooks/glossary", "notebooks/teaching", "notebooks/scaling",
                 "benchmarks/README", "data/README"]:
        assert (site / f"{name}.html").is_file(), name
    for name in PAGES:
        stored, page = json.loads((ROOT / f"{name}.ipynb").read_text()), (site / f"{name}.html").read_text()
        pictures = [o for c in stored["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        assert page.count("_images/") >= len(pictures) and page.count("output stream") >= 1
        moving = [c for c in stored["cells"] if "widgets.explore(" in "".join(c["source"]) and c.get("outputs")]
        assert page.count("This figure moves where the notebook runs") == len(moving)


def test_tables_that_cells_put_out_are_tables(site):
    stored = json.loads((ROOT / "notebooks" / "10_report.ipynb").read_text(encoding="utf-8"))["cells"]
    put_out = ["".join(o.get("data", {}).get("text/markdown", "")) for c in stored for o in c.get("outputs", [])]
    page = (site / "notebooks" / "10_report.html").read_text(encoding="utf-8")
    assert page.count("<table") >= sum(text.startswith("| ") for text in put_out) >= 8 and "| :--" not in page


def test_pages_are_reached_from_the_front_page(site, pages):
    links = {urlsplit(link).path for link in pages[site / "index.html"].links}
    assert {f"{name}.html" for name in PAGES} <= links


def test_links_and_pictures_lead_somewhere(site, pages):
    for path, page in pages.items():
        for target in page.loads + page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "http", "data"), target
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.is_file(), f"{path.relative_to(site)}: {target}"
            if parts.fragment and file in pages:
                assert parts.fragment in pages[file].names, f"{path.relative_to(site)}: {target}"


def test_links_out_of_the_site_are_the_repository_or_a_source(pages):
    hosts = {urlsplit(link).netloc for page in pages.values() for link in page.links} - {""}
    assert hosts == {"github.com", "arxiv.org", "colab.research.google.com", "creativecommons.org", "distributed.dask.org"}
    kept = re.compile(rf"{address()}/blob/main/(.*)")
    inside = {found[1] for page in pages.values() for link in page.links if (found := kept.fullmatch(link))}
    assert {"LICENSE", "data/runs", "notebooks/solutions"} <= inside and all((ROOT / path).exists() for path in inside)


def test_nothing_is_loaded_from_another_host(site, pages):
    for path, page in pages.items():
        assert [target for target in page.loads + page.styles if re.match(r"(https?:)?//", target)] == [], path
    for path in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"""(@import\s*|url\(\s*)["']?(https?:)?//""", text), path
    for path in site.rglob("*.js"):
        assert not re.search(ELSEWHERE, path.read_text(encoding="utf-8")), path
    for path in pages:
        assert "http" not in "".join(re.findall(r"<script[^>]*>(.*?)</script>", path.read_text(), flags=re.S)), path


def test_formulas_are_drawn_by_the_browser(site, pages):
    assert pages[site / "notebooks" / "01_patch_embedding.html"].math == 19
    assert not [path for path in pages if re.search(r"\\(sin|text|cdot|,)|\$\$", path.read_text())]


def test_the_search_knows_the_words_of_the_notebooks(site):
    index = json.loads(re.search(r"Search\.setIndex\((.*)\)", (site / "searchindex.js").read_text(), flags=re.S)[1])
    assert {f"{name}" for name in PAGES} <= set(index["docnames"])
    found = index["terms"]["patchifi"]                  # its stem
    names = [index["docnames"][i] for i in (found if isinstance(found, list) else [found])]
    assert "notebooks/01_patch_embedding" in names
