"""What surrounds the code: dependencies that agree, files that stay small, numbers that come from runs."""
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from packaging.requirements import Requirement
from rattler import MatchSpec

try:
    import tomllib
except ModuleNotFoundError:             # Python 3.10
    import tomli as tomllib

from mae_helpers import sources
from mae_helpers.runs import all_runs, recorded_root

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


PIP_ONLY = ("bench",)       # other people's masked autoencoders, for comparing: not part of an environment for the course


def requirements(without=()):
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name not in without]
    return [Requirement(line) for line in PROJECT["dependencies"] + sum(extras, [])]


def test_conda_and_pip_ask_for_the_same():
    pip = {CONDA_NAMES.get(r.name, r.name): str(r.specifier) for r in requirements(PIP_ONLY) if r.marker is None}
    pip["python"] = PROJECT["requires-python"]
    conda = {}
    for line in ENVIRONMENT["dependencies"]:
        name, version = re.match(r"([a-z-]+)(.*)", line).groups()
        conda[name] = version
    assert conda.pop("pip") == ""
    assert conda == pip


@pytest.mark.parametrize("line", ENVIRONMENT["dependencies"])
def test_conda_understands_every_line(line):
    MatchSpec(line, strict=True)


def test_dependencies_are_floors_and_every_floor_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in requirements():
        assert [s.operator for s in requirement.specifier] == [">="], requirement
        line = next(x for x in text.splitlines() if x.strip().startswith(f'"{requirement.name}>='))
        assert "#" in line, f"{requirement.name} has no reason"
    torch = next(r for r in requirements() if r.name == "torch")
    assert torch.specifier.contains("2.11"), "the floor of torch must let 2.11 in"


def test_constraints_pin_every_direct_dependency_above_its_floor():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pins = {Requirement(x).name.lower().replace("_", "-"): Requirement(x) for x in lines}
    for requirement in requirements():
        if requirement.marker is None:
            pin = pins[requirement.name]
            version = next(iter(pin.specifier)).version
            assert next(iter(pin.specifier)).operator == "==" and requirement.specifier.contains(version), requirement


def test_ci_calls_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make run" in (ROOT / "README.md").read_text() and "make test" in (ROOT / "README.md").read_text()


def test_the_data_page_gives_the_sums_that_are_checked():
    page = (ROOT / "data" / "README.md").read_text()
    assert all(value in page for value in sources.MNIST_MD5.values())


def test_recorded_runs_are_small_and_carry_no_folders_of_a_machine():
    weights = [p for p in recorded_root().rglob("*.safetensors")]
    others = [p for p in recorded_root().rglob("*") if p.is_file() and p not in weights]
    assert sum(p.stat().st_size for p in weights) <= 25e6 and sum(p.stat().st_size for p in others) <= 8e6
    for run in all_runs(recorded_root()):
        text = "".join((run.path / name).read_text() for name in ("config.json", "results.json", "provenance.json"))
        assert "/home/" not in text and "/root" not in text and "/work" not in text and "/tmp" not in text, run
        assert run.results["data_source"] and run.provenance["device"], run


def test_recorded_runs_are_better_than_the_published_ones_beside_them():
    published = list(csv.DictReader((ROOT / "data" / "published_mnist.csv").open()))
    compared = 0
    for row in published:
        key = int(row["patch_size"]), float(row["mask_ratio"])
        results = [run.results for run in all_runs(recorded_root())]
        ours = [r["test_accuracy"] for r in results if r.get("protocol") == "finetune" and r["label_fraction"] == 1
                and (r["dataset"], r["patch_size"], r["mask_ratio"]) == ("mnist", *key)]
        compared += bool(ours)
        assert not ours or 100 * sum(ours) / len(ours) > float(row["test_accuracy_best"]), key
    assert compared >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_clean_and_readable(path):
    notebook = json.loads(path.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert path.stat().st_size < 1.5e6 and "widgets" not in notebook["metadata"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1)), "not a clean run from top to bottom"
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    marks = [line for c in code for line in "".join(c["source"]).splitlines() if "NBVAL" in line]
    assert all(line == "# NBVAL_CHECK_OUTPUT" for line in marks), "nbval passes over a mark with other words beside it"
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    lengths = sorted(len("".join(c["source"]).splitlines()) for c in code)
    assert lengths[len(lengths) // 2] <= 8 and lengths[int(0.9 * len(lengths))] <= 25 and lengths[-1] <= 40
    ids = [c["id"] for c in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    pictures = [o for c in code for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert all(o["metadata"]["image/png"].get("alt") for o in pictures), "a picture without alt text"
    assert not re.search(r"/(root|home|work|tmp)/", path.read_text()), "a folder of somebody's machine"


def test_the_pictures_are_what_the_code_draws(tmp_path):
    """Same picture up to the rounding of another processor or font. (The points of the figure of speeds are half a per cent
    of its pixels.)"""
    subprocess.run([sys.executable, str(ROOT / "img" / "draw.py"), str(tmp_path)], check=True)
    for path in (ROOT / "img").glob("*.png"):
        stored, drawn = (imread(p)[..., :3] for p in (path, tmp_path / path.name))
        assert stored.shape == drawn.shape and (abs(stored - drawn).max(-1) > 0.25).mean() < 0.002, path.name


def test_pictures_of_the_readme_exist_and_have_alt_text():
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", (ROOT / "README.md").read_text())
    assert pictures and all(alt and (ROOT / target).exists() for alt, target in pictures)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"[^!]\[[^]]*\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


# The glossary

GLOSSARY = (ROOT / "notebooks" / "glossary.md").read_text()


def prose(path):
    cells = json.loads(path.read_text())["cells"]
    return " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("word, target", re.findall(r"^\| ([^|]+?) \| [^|]+ \| \[\d+\]\((.+?)\) \|$", GLOSSARY, flags=re.M))
def test_words_of_the_glossary_are_explained_where_it_says(word, target):
    """The notebook named sets the word in italics or bold, as all notebooks do where they explain one."""
    emphasis = rf"(\*\*?)(?=\S)[^*\n]*{re.escape(word)}[^*\n]*(?<=\S)\1"
    assert re.search(emphasis, prose(ROOT / "notebooks" / target), flags=re.I)


def test_all_questions_are_answered_in_the_notebook_named():
    rows = re.findall(r"^\| ([^|]+?\?) \| (.+?) \|$", GLOSSARY, flags=re.M)
    assert len(rows) == 15
    for question, links in rows:
        for target in re.findall(r"\((.+?)\)", links):
            text, words = prose(ROOT / "notebooks" / target).lower(), re.findall(r"[a-z_]{5,}", question.lower())
            assert sum(word in text for word in words) >= 0.6 * len(words), question


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_notebooks_lead_somewhere(path):
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", prose(path)):
        assert (path.parent / target).exists(), target


# The page on many devices

def test_costs_follow_from_measured_throughput():
    """Every row is a measurement, or the round figure that is to be scaled; the formula of the page makes its hours."""
    measured = {row["preset"]: float(row["images_per_second"])
                for row in csv.DictReader((ROOT / "data" / "benchmarks" / "scaling.csv").open())}
    page = (ROOT / "notebooks" / "scaling.md").read_text()
    table = page[page.index("| device | model"):].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in table]
    assert {model: float(rate) for _, model, rate, *_ in rows} == {**measured, "any": 1000}
    for _, model, rate, *cells in rows:
        hours = [images / 3600 / float(rate) / devices for images in (1_281_167, 100_000_000) for devices in (1, 8, 64)]
        for cell, value in zip(cells, hours, strict=True):
            assert float(cell.removesuffix(" h").replace(",", "")) == pytest.approx(value, rel=0.06), model


def test_links_of_the_page_on_many_devices_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "notebooks" / "scaling.md").read_text()):
        assert (ROOT / "notebooks" / target).exists(), target
