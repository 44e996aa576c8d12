"""A notebook alone: its first cell fetches the course, once and whole; one command writes that cell everywhere."""
import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from mae_helpers import bootstrap
from mae_helpers.config import project_root

ROOT = project_root()
git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def test_the_files_are_what_the_command_writes():
    assert list(bootstrap.outdated()) == [], "run python -m mae_helpers.bootstrap"


def test_what_the_cell_installs_leaves_torch_and_jupyter_alone():
    lines = bootstrap.requirements().splitlines()[1:]
    assert {"einops>=0.7", "anywidget>=0.9.3"} <= set(lines)
    assert not [line for line in lines if line.startswith(("torch", "jupyter", "ipykernel"))]


def test_every_notebook_opens_in_colab_from_the_readme_and_from_itself():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        link = bootstrap.colab(f"notebooks/{path.name}")
        title = json.loads(path.read_text())["cells"][0]
        assert f"]({link})" in readme and f"[Open in Colab]({link})\n" in title["source"]


# Another address, in a copy

@pytest.fixture
def copy(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(bootstrap, "project_root", lambda: tmp_path)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def without_what_is_written(path):
    notebook = json.loads(path.read_text())
    ready = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    assert ready["metadata"].pop("tags") == ["bootstrap", "hide-input"]
    notebook["cells"][0]["source"] = ready["source"] = None
    return notebook


def test_one_command_follows_a_new_address_and_version(copy, capsys):
    old, new = bootstrap.address(), "https://github.com/someone/else"
    replace(copy / "pyproject.toml", old, new), replace(copy / "pyproject.toml", '"0.1.0"', '"0.2.0"')
    assert bootstrap.main() == 0
    files = bootstrap.notebooks() + [copy / "README.md"]
    assert len(capsys.readouterr().out.splitlines()) == len(files)
    for path in files:
        before, owner = ROOT / path.relative_to(copy), old.removeprefix("https://github.com/")
        assert owner in before.read_text() and owner not in path.read_text()
        if path.suffix == ".ipynb":
            assert without_what_is_written(path) == without_what_is_written(before)
            assert new in path.read_text() and "v0.2.0" in path.read_text()
    assert bootstrap.main() == 0 and capsys.readouterr().out == ""


def test_asking_for_help_changes_nothing(copy, capsys):
    replace(copy / "pyproject.toml", '"0.1.0"', '"0.2.0"')
    for words, code in ((["--help"], 0), (["--unknown"], 2)):
        with pytest.raises(SystemExit) as ended:
            bootstrap.main(words)
        assert ended.value.code == code and len(bootstrap.outdated()) > 1
    assert "Write the first cell" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b.git",
                                     "git@github.com:a/b"])
def test_an_address_that_colab_cannot_open_changes_nothing(copy, capsys, address):
    before = {path: path.read_bytes() for path in (copy / "notebooks").rglob("*.ipynb")}
    replace(copy / "pyproject.toml", bootstrap.address(), address)
    assert bootstrap.main() == 2 and capsys.readouterr().err.startswith("error: repository in pyproject.toml is")
    assert before == {path: path.read_bytes() for path in (copy / "notebooks").rglob("*.ipynb")}


def test_a_notebook_without_its_first_cell_is_named(copy, capsys):
    replace(copy / "notebooks" / "01_patch_embedding.ipynb", "notebook.setup()", "print()")
    assert bootstrap.main() == 2 and "01_patch_embedding.ipynb must begin with a title" in capsys.readouterr().err


# The cell where the course is not installed

@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository of the working tree, as far as notebook 01 needs it."""
    home = tmp_path_factory.mktemp("server") / "course"
    for name in ("mae_helpers", "notebooks"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "data/mnist.npz"):
        (home / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    in_git(home, "init", "-q")
    in_git(home, "add", ".")
    in_git(home, "commit", "-q", "-m", "the course")
    return home


def in_git(folder, *words):
    person = {f"GIT_{role}_{what}": "course@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    plain = ["-c", "core.compression=0", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *plain, *words], cwd=folder, check=True, env=environment(**person))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has this one's packages, but not the course.

    The course is installed by a file of its own in site-packages that Python reads at its start; a folder that is
    named in a .pth file is searched for packages, and not for such files.
    """
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False)
    program = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    there = sysconfig.get_path("purelib", vars={"base": str(home)})
    Path(there, "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    seen = subprocess.run([program, "-c", "import torch, einops, mae_helpers"], cwd=home, capture_output=True, text=True,
                          env=environment())
    assert "No module named 'mae_helpers'" in seen.stderr, "the course has to be installed with pip install -e"
    return program


def environment(**more):
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1", **more}


def run_cell(program, folder, **more):
    words = [program, "-c", bootstrap.cell()]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment(**more), timeout=300)


@pytest.fixture(scope="module")
def alone(bare, repository, tmp_path_factory):
    """A folder in which there was nothing but a notebook, which was run with papermill."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copy(ROOT / "notebooks" / "01_patch_embedding.ipynb", folder)
    words = [bare, "-m", "papermill", "01_patch_embedding.ipynb", "out.ipynb", "--no-progress-bar"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True,
                          env=environment(MAE_REPOSITORY=repository.as_uri()))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@git
def test_a_notebook_alone_fetches_the_course_and_runs(alone):
    assert {path.name for path in alone.iterdir()} == {"01_patch_embedding.ipynb", "out.ipynb", "mae-course"}
    cells = json.loads((alone / "out.ipynb").read_text())["cells"]
    first = next(c for c in cells if c["cell_type"] == "code")
    said = "".join("".join(o["text"]) for o in first["outputs"]).splitlines()
    assert said[0] == "The course is in mae-course, just fetched: the newest state, as there is no tag v0.1.0."
    assert said[1].startswith("Python 3.") and len(said) == 2


@git
def test_a_second_time_uses_what_was_fetched(alone, bare):
    done = run_cell(bare, alone, MAE_REPOSITORY="file:///nowhere")
    assert done.returncode == 0 and done.stdout.startswith("The course is in mae-course.\nPython 3."), done.stderr


@git
def test_the_tag_of_the_version_is_taken_where_there_is_one(bare, repository, tmp_path):
    shutil.copytree(repository, tmp_path / "tagged")
    in_git(tmp_path / "tagged", "tag", "v0.1.0")
    (tmp_path / "tagged" / "later").write_text("")
    in_git(tmp_path / "tagged", "add", ".")
    in_git(tmp_path / "tagged", "commit", "-q", "-m", "later")
    (tmp_path / "empty").mkdir()
    done = run_cell(bare, tmp_path / "empty", MAE_REPOSITORY=(tmp_path / "tagged").as_uri())
    assert done.stdout.startswith("The course is in mae-course, just fetched: v0.1.0.\nPython 3."), done.stderr
    assert not (tmp_path / "empty" / "mae-course" / "later").exists()


@git
def test_a_checkout_around_the_notebook_is_used(bare, repository):
    done = run_cell(bare, repository / "notebooks", MAE_REPOSITORY="file:///nowhere")
    assert done.returncode == 0 and done.stdout.startswith("The course is in course.\nPython 3."), done.stderr
    assert not (repository / "notebooks" / "mae-course").exists()


@git
def test_a_checkout_without_its_packages_is_one_sentence(repository, tmp_path):
    venv.create(tmp_path / "empty", with_pip=False)
    program = tmp_path / "empty" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = run_cell(program, repository / "notebooks", MAE_REPOSITORY="file:///nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    wanted = f"The course in {repository} needs packages: pip install -e '.[notebooks]' there (No module named"
    assert done.stderr.splitlines()[-1].startswith(wanted)


HALF = """#!/bin/sh
case "$1" in clone) for last; do :; done; mkdir -p "$last/mae_helpers"; exit 128;; esac
"""


@pytest.mark.skipif(os.name == "nt", reason="the broken git is a shell script")
@pytest.mark.parametrize("broken", ["no git", "no network", "half a clone", "no pip"])
def test_what_fails_is_one_sentence_and_leaves_nothing_half_made(bare, tmp_path, broken):
    folder, programs = tmp_path / "empty", tmp_path / "programs"
    folder.mkdir(), programs.mkdir()
    if broken == "half a clone":
        (programs / "git").write_text(HALF)
        (programs / "git").chmod(0o755)
    if broken == "no pip":                      # what was fetched asks for a package that does not exist
        (folder / "mae-course" / "mae_helpers").mkdir(parents=True)
        (folder / "mae-course" / "notebooks").mkdir()
        (folder / "mae-course" / "notebooks" / "requirements.txt").write_text("./nowhere\n")
    before = list(folder.iterdir())
    paths = {"no git": str(programs), "half a clone": f"{programs}:{os.environ['PATH']}"}
    done = run_cell(bare, folder, MAE_REPOSITORY="file:///nowhere", PATH=paths.get(broken, os.environ["PATH"]))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert last.startswith("The course could not be fetched from file:///nowhere, which takes git, pip and a network. (")
    assert list(folder.iterdir()) == before
