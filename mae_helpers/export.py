"""The report as files: notebook 10, executed on the runs there are, as one HTML page and as a PDF. No TeX is needed."""
from __future__ import annotations

import html
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from .bootstrap import address, project
from .config import InputError, project_root
from .exercises import source, tags
from .runs import runs_root, write_atomic
from .train import tell

NAME = "10_report"
# Cells that a learner needs and a report does not: what to predict, exercises, how the notebook starts.
COURSE_ONLY = {"course", "exercises", "bootstrap", "parameters"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1d2733; background: white; max-width: 50rem;
       margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { line-height: 1.25; break-after: avoid }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #d6dde5 }
a { color: #0b6e99 }
img { max-width: 100%; height: auto }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; background: #f5f7f9; padding: 0.5rem 0.7rem }
code { font-size: 0.9em }
table { border-collapse: collapse; font-size: 12.5px; line-height: 1.35; margin: 0.8rem 0; display: block; overflow-x: auto }
th, td { padding: 0.25rem 0.55rem; border-bottom: 1px solid #e3e8ee; vertical-align: top }
td[style*="right"] { white-space: nowrap }
th { border-bottom: 2px solid #b9c3d0 }
footer { color: #5d6b7a; font-size: 12px; margin-top: 3rem }
@media print {
  body { font-size: 10.5pt; max-width: none; margin: 0; padding: 0 }
  table { display: table; font-size: 8pt }
  thead { display: table-header-group }
  tr, img, pre { break-inside: avoid }
  p, li { orphans: 3; widows: 3 }
  ul, pre { break-before: avoid }
  pre { font-size: 8pt }
}
"""


def export(root="runs", page: str | os.PathLike | None = None, pdf: str | os.PathLike | None = None,
           say: Callable[[str], None] = tell) -> None:
    """Execute notebook 10 on the runs of a folder and the recorded ones; write it to `page`, an HTML file that needs no
    other, and to `pdf`. Raises `InputError` where a tool is missing, or for what the notebook refuses."""
    _need("papermill", "nbconvert")
    if pdf:
        _need("playwright")
    text = as_page(_executed(root))
    for target, content in ((page, lambda: text.encode()), (pdf, lambda: as_pdf(text))):
        if target:
            try:
                write_atomic(Path(target), content())
            except OSError as error:
                raise InputError(f"{target} cannot be written: {error.strerror}.") from None
            say(f"written: {target}")


def _need(*packages: str) -> None:
    for name in packages:
        if not find_spec(name):
            raise InputError(f'the report needs {name}, which is not installed: pip install -e ".[notebooks,dev]"')


def _executed(root):
    """Notebook 10, run on a folder of runs."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    path = project_root() / "notebooks" / f"{NAME}.ipynb"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return papermill.execute_notebook(str(path), str(Path(folder, path.name)), {"root": str(runs_root(root))},
                                              cwd=str(path.parent), progress_bar=False, kernel_name="python3")
    except PapermillExecutionError as error:
        words = error.evalue if error.ename == "InputError" else f"{NAME} stopped with {error.ename}: {error.evalue}"
        raise InputError(" ".join(words.split())) from None


def as_page(notebook) -> str:
    """An executed notebook as an HTML page without code, in which everything is: pictures too, and no script."""
    import nbformat
    from nbconvert import HTMLExporter
    kept = [cell for cell in notebook.cells if not COURSE_ONLY & set(tags(cell)) and "injected-parameters" not in tags(cell)]
    kept[0].source = source(kept[0]).splitlines()[0]            # the title, without what a learner will learn
    for cell in kept:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", _on_the_web, source(cell))
    short = nbformat.v4.new_notebook(cells=kept, metadata=notebook.metadata)
    body, _ = HTMLExporter(template_name="basic", exclude_input=True, exclude_anchor_links=True,
                           exclude_output_prompt=True, exclude_input_prompt=True).from_notebook_node(short)
    title = source(kept[0]).removeprefix("# ")
    made = f"Made on {date.today()} by mae_helpers {project()['version']} from the runs that the tables name."
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
            f'content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n'
            f"</head>\n<body>\n{body}\n<footer>{made}</footer>\n</body>\n</html>\n")


def _on_the_web(link: re.Match) -> str:
    """A link to a file of the course leads to the repository: the page may be read far from it."""
    target = (project_root() / "notebooks" / link[1]).resolve()
    return f"]({address()}/blob/main/{target.relative_to(project_root().resolve()).as_posix()})"


def as_pdf(page: str) -> bytes:
    """An HTML page as an A4 PDF with page numbers, headings as bookmarks and alt texts.

    A browser prints it, because one is on nearly every machine, draws the page as it was seen, and needs no system
    libraries as WeasyPrint does. nbconvert's own way downloads a Chromium; playwright drives the one that is there.
    Raises `InputError` where there is none.
    """
    from playwright.sync_api import Error, sync_playwright
    number = ('<div style="font: 8px sans-serif; color: #5d6b7a; width: 100%; text-align: center">'
              '<span class="pageNumber"></span> / <span class="totalPages"></span></div>')
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    ways = [{"executable_path": path}] if path else [{"channel": "chrome"}, {"channel": "msedge"}, {}]
    # root may not use Chromium's sandbox; the page is ours, without a script, and offline
    alone = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with sync_playwright() as engine:
        for way in ways:
            try:
                browser = engine.chromium.launch(**way, args=[*alone, "--disable-gpu"])
            except Error:
                continue
            try:
                tab = browser.new_context(offline=True, java_script_enabled=False).new_page()
                tab.set_content(page, wait_until="load")
                return tab.pdf(format="A4", print_background=True, tagged=True, outline=True, display_header_footer=True,
                               header_template="<span></span>", footer_template=number,
                               margin={"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"})
            finally:
                browser.close()
    raise InputError("a PDF is printed by Chromium, Chrome or Edge, and none could be started: install one, or set CHROMIUM "
                     "to its path; --html needs none.")
