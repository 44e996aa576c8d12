"""The site: make site. Pages are the README, the notebooks as they are stored, and the pages beside them.

The folder of the sources is that of the repository, so links between pages are the ones that work on GitHub, too. Nothing
is executed, and a built page asks no other host for anything.
"""
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

from mae_helpers.bootstrap import address

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted(path.stem for path in (ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
CONTENTS = {"Notebooks": [f"notebooks/{name}" for name in NOTEBOOKS],
            "Beside them": ["notebooks/glossary", "notebooks/teaching", "notebooks/scaling", "benchmarks/README",
                            "data/README"],
            "Solutions": [f"notebooks/solutions/{name}" for name in SOLUTIONS]}
STILL = "This figure moves where the notebook runs: in JupyterLab or in Colab. Here it shows how it begins."

project = html_title = "Learn masked autoencoders"
author = copyright = ""
root_doc = "README"
include_patterns = ["README.md", "notebooks/**", "benchmarks/README.md", "data/README.md"]
exclude_patterns = [".*", "build", "runs", "tests", "**/.ipynb_checkpoints", "notebooks/requirements.txt"]
extensions = ["myst_nb", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_render_markdown_format = "myst"      # tables that a cell puts out: plain CommonMark knows none
nb_merge_streams = True                 # one box for what a cell prints, not one for every print
nb_ipywidgets_js = {}                   # widgets are stored as pictures
html_math_renderer = "mathml"           # browsers draw it without a library
html_theme = "sphinx_book_theme"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
suppress_warnings = ["myst.header"]      # exercises are third-level headings in the course, and so in the solutions
html_use_index = False
html_context = {"default_mode": "auto"}   # light or dark as the reader's system is
html_show_copyright = html_show_sphinx = False
html_theme_options = {
    "navbar_persistent": [],            # the search box of the sidebar is enough
    "repository_url": address(),
    "use_repository_button": True,
    "show_toc_level": 2,
}


def add_contents(app, docname, text):
    """The README knows nothing of the site: the list of pages is added here."""
    if docname == root_doc:
        for caption, pages in CONTENTS.items():
            text[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def leave_the_site(app, docname, text):
    """Links to files and folders that are no pages lead to the repository."""
    here = (ROOT / docname).parent

    def outside(found):
        target = (here / found[1]).resolve()
        if target.suffix in (".md", ".ipynb", ".png") or not target.exists():
            return found[0]
        return f"]({address()}/blob/main/{target.relative_to(ROOT).as_posix()})"

    text[0] = re.sub(r"\]\((?!https?:)([^)#\s]+)\)", outside, text[0])


def say_what_stands_still(app, doctree):
    """Below what is a widget in a running notebook and a picture here."""
    for cell in doctree.findall(nodes.container):
        shows = any("cell_output" in part.get("classes", []) for part in cell.findall(nodes.container))
        if "tag_widget" in cell["classes"] and shows and "widgets.explore(" in cell.astext():
            cell += nodes.paragraph("", "", nodes.emphasis("", STILL), classes=["still"])


def formula(writer, node):
    writer.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def copy_front_page(app, exception):
    """Servers look for index.html."""
    if exception is None and app.builder.name == "html":
        front = Path(app.outdir, f"{root_doc}.html")
        front.with_name("index.html").write_bytes(front.read_bytes())


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("source-read", add_contents)
    app.connect("source-read", leave_the_site)
    app.connect("doctree-read", say_what_stands_still)
    app.connect("build-finished", copy_front_page)
