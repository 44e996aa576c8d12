"""Which module may import which, and that importing the package is quick and without side effects."""
import ast
import functools
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mae_helpers

PACKAGE = Path(mae_helpers.__file__).parent

# No other edge, imports inside functions included. config.py holds every range and error sentence, so all may use it.
ALLOWED = {
    "config": "",
    "patches": "config",
    "masking": "config",
    "losses": "",
    "variants": "config masking model",
    "model": "config losses masking patches",
    "metrics": "",
    "shapes": "",
    "packs": "config",
    "fetch": "config packs",
    "readers": "config packs",
    "sources": "config fetch packs readers shapes",
    "data": "config packs sources",
    "distributed": "config",
    "augment": "config",
    "corruptions": "config",
    "runs": "config packs",
    "muon": "config",
    "train": "config distributed muon packs runs",
    "plots": "",
    "pretrain": "augment config data distributed losses masking metrics model patches plots runs train variants",
    "classify": "augment config data distributed metrics model pretrain runs train",
    "recipes": "classify config data distributed pretrain runs tables train",
    "tables": "config runs train",
    "sweep": "classify config distributed exercises pretrain recipes runs tables train",
    "studies": "config metrics runs sweep tables",
    "report": "config metrics runs studies tables train",
    "export": "bootstrap config exercises runs train",
    "predict": "classify config data plots pretrain readers runs",
    "widgets": "config plots readers",
    "notebook": "classify config data plots pretrain recipes runs train",
    "mistakes": "losses masking metrics model patches",
    "checks": "config mistakes",
    "exercises": "config",
    "bootstrap": "config exercises",
    "grade": "config exercises",
    "__init__": "classify config data masking model patches pretrain runs",
    "__main__": "classify config distributed export plots predict pretrain recipes report runs studies sweep tables"
                " train",
}


def imports_of(module):
    """The modules of this package that a module names in an import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = "mae_helpers." if node.level else ""
            names = [f"{start}{node.module}"] if node.module and node.module != "mae_helpers" else \
                [f"mae_helpers.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("mae_helpers.")}
    return found


def test_the_table_names_every_module():
    assert set(ALLOWED) == {path.stem for path in PACKAGE.glob("*.py")}


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_are_those_of_the_table(module):
    assert imports_of(module) == set(ALLOWED[module].split())


def test_no_module_imports_itself_by_a_detour():
    graph = {path.stem: imports_of(path.stem) for path in PACKAGE.glob("*.py")}
    list(TopologicalSorter(graph).static_order())       # raises CycleError, which shows the cycle


# Importing, watched in a process of its own

WATCHER = """
import json, random, sys, threading, time
import numpy, torch, einops, safetensors.torch, tqdm


def state():
    return [torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()[1],
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
            threading.active_count(), numpy.geterr()]


before, opened = state(), []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
started = time.process_time()           # other tests run beside this one
import mae_helpers
seconds = time.process_time() - started
json.dump({"seconds": seconds, "opened": list(opened), "same": state() == before, "modules": list(sys.modules),
           "file": mae_helpers.__file__}, sys.stdout)
"""


@functools.cache
def watched():
    done = subprocess.run([sys.executable, "-c", WATCHER], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_importing_is_quick():
    assert watched()["seconds"] <= 2


def test_importing_reads_nothing_but_code():
    code = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", "METADATA", "entry_points.txt", "top_level.txt", "RECORD")
    assert watched()["file"] == mae_helpers.__file__
    # ".pyc.139…" is the unfinished file of a module that is compiled for the first time
    other = [name for name in watched()["opened"] if not name.endswith(code) and ".pyc." not in name]
    assert any(name.startswith(str(PACKAGE)) for name in watched()["opened"])
    assert other == []


def test_importing_changes_no_global_state():
    assert watched()["same"]


@pytest.mark.parametrize("heavy", ["matplotlib", "IPython", "ipywidgets", "pandas", "torchvision", "tensorboard", "pyarrow",
                                   "PIL", "requests", "distributed"])
def test_importing_leaves_heavy_packages_alone(heavy):
    assert heavy not in watched()["modules"]
