"""What opens a notebook far from the course: python -m mae_helpers.bootstrap writes it.

That is the first code cell of the notebooks, which finds the course or fetches it, the packages that it installs, and the
links to Colab. Address, version and packages stand in pyproject.toml: change them there, run this, and the notebooks and
the README follow. Outputs and ids of cells stay as they are.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .config import InputError, project_root
from .exercises import read, source, tags

# A runtime has these, and the course must not replace them: torch is made for its GPU, Jupyter is running.
KEPT = ("torch", "torchvision", "jupyterlab", "ipykernel", "papermill", "nbclient", "nbconvert")
NEEDS = "# For a runtime that has torch and Jupyter. Written by python -m mae_helpers.bootstrap from pyproject.toml."
COLAB = r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/main/(notebooks/[\w/]+\.ipynb)"

CELL = '''\
# @title Make the course ready: run this first
try:
    from mae_helpers import notebook
except ImportError:     # not installed: use the course around this notebook, else fetch it into a folder beside it
    import os, pathlib, subprocess, sys, tempfile
    here, folder, tag, said = pathlib.Path.cwd(), pathlib.Path("FOLDER").resolve(), "vVERSION", ""
    home = next((p for p in (here, *here.parents, folder) if (p / "mae_helpers").is_dir()), None)
    address = os.environ.get("MAE_REPOSITORY", "ADDRESS")
    try:
        if home is None:
            os.environ["GIT_TERMINAL_PROMPT"] = "0"                 # an address that is wrong asks for no password
            with tempfile.TemporaryDirectory(dir=here) as half:     # a clone gets its name when it is whole
                branch = ["--branch", tag] if subprocess.check_output(["git", "ls-remote", address, tag]) else []
                subprocess.check_output(["git", "clone", "-q", "--depth=1", *branch, address, half + "/clone"])
                home = pathlib.Path(half, "clone").rename(folder)
            said = f", just fetched: {tag if branch else 'the newest state, as there is no tag ' + tag}"
        if home == folder:      # what is missing, and never torch
            needs = str(home / "notebooks" / "requirements.txt")
            subprocess.check_output([sys.executable, "-m", "pip", "install", "-qq", "-r", needs])
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"The course could not be fetched from {address}, which takes git, pip and a network. ({error})")
    print(f"The course is in {home.name}{said}.")
    sys.path.append(str(home))
    try:
        from mae_helpers import notebook
    except ImportError as error:            # a checkout whose packages nobody installed
        sys.exit(f"The course in {home} needs packages: pip install -e '.[notebooks]' there ({error})")
notebook.setup()'''


def project() -> dict:
    """What pyproject.toml says about the project."""
    try:
        import tomllib
    except ModuleNotFoundError:             # Python 3.10
        import tomli as tomllib
    return tomllib.loads((project_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def address() -> str:
    """Where the course is fetched from. Raises `InputError` for an address that Colab cannot open notebooks from."""
    found = project()["urls"]["repository"]
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]*\w", found) or found.endswith(".git"):
        raise InputError(f"repository in pyproject.toml is {found!r}: Colab opens notebooks of "
                         "https://github.com/OWNER/NAME only.")
    return found


def requirements() -> str:
    """The text of notebooks/requirements.txt: what the notebooks need and a runtime may lack."""
    every = project()["dependencies"] + project()["optional-dependencies"]["notebooks"]
    lines = [line for line in every if re.split("[><=;]", line)[0] not in KEPT]
    return "\n".join([NEEDS, *lines, ""])


def cell() -> str:
    """The source of the cell that makes the course ready. Raises what `address` raises."""
    values = {"ADDRESS": address(), "FOLDER": address().split("/")[-1], "VERSION": project()["version"]}
    return re.sub("|".join(values), lambda found: values[found[0]], CELL)


def colab(path: str) -> str:
    """The link that opens a notebook of the repository in Colab. Raises what `address` raises."""
    return f"https://colab.research.google.com/github/{address().removeprefix('https://github.com/')}/blob/main/{path}"


def linked(text: str) -> str:
    """A text whose links to Colab lead to the repository, and that says where to clone it."""
    text = re.sub(r"git clone https://[\w./-]*\w", f"git clone {address()}", text)
    return re.sub(COLAB, lambda found: colab(found[1]), text)


def notebooks() -> list[Path]:
    """The numbered notebooks of the course and their solutions."""
    folder = project_root() / "notebooks"
    return sorted(folder.glob("[0-9][0-9]_*.ipynb")) + sorted((folder / "solutions").glob("[0-9][0-9]_*.ipynb"))


def rewritten(path: Path) -> str:
    """The text of a notebook with its first code cell, tagged "bootstrap", and its link to Colab as they should be.

    Solutions have no link: one writes one's own first. Raises `InputError` for a notebook without title or such a cell.
    """
    notebook = read(path)
    title = notebook["cells"][0]
    ready = next((c for c in notebook["cells"] if c["cell_type"] == "code"), None)
    if not source(title).startswith("# ") or ready is None or not source(ready).endswith("notebook.setup()"):
        raise InputError(f"{path.name} must begin with a title, and its first code cell end with notebook.setup().")
    # Colab, JupyterLab and the course's pages fold it, each for a sign of its own.
    ready["metadata"] |= {"cellView": "form", "jupyter": {"source_hidden": True},
                          "tags": sorted({*tags(ready), "bootstrap", "hide-input"})}
    ready["source"] = cell().splitlines(keepends=True)
    if path.parent.name != "solutions":
        first, rest = source(title).split("\n", 1)
        rest = re.sub(r"^\n\[Open in Colab\].*\n", "", rest)
        link = f"[Open in Colab]({colab(f'notebooks/{path.name}')})"
        title["source"] = f"{first}\n\n{link}\n{rest}".splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def outdated() -> dict[Path, str]:
    """The files that are not as they should be, and their text as it should. Raises what `rewritten` raises."""
    root = project_root()
    wanted = {path: rewritten(path) for path in notebooks()}
    wanted[root / "README.md"] = linked((root / "README.md").read_text(encoding="utf-8"))
    wanted[root / "notebooks" / "requirements.txt"] = requirements()
    return {path: text for path, text in wanted.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text}


def main(words: Sequence[str] = ()) -> int:
    argparse.ArgumentParser("python -m mae_helpers.bootstrap", description="Write the first cell of the notebooks, what it "
                            "installs and the links to Colab, as pyproject.toml says.").parse_args(words)
    try:
        for path, text in outdated().items():
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(project_root()).as_posix()}: written")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
