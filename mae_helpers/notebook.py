"""What only notebooks need: a checked start, parameters, figures with alt text."""
from __future__ import annotations

import ast
import os
import platform
import re
import shlex
from collections.abc import Callable

import torch

from . import config, plots, recipes, runs, train
from .classify import classify, settled
from .config import ClassifyConfig, InputError, PretrainConfig
from .data import load_images
from .pretrain import load_mae

BUDGETS = ("auto", "quick", "cpu", "full")
# Whose recipes a set takes that has none of its own: a set of the same size and colours.
LIKE = {"fashion-mnist": "mnist", "cifar100": "cifar10", "shapes10": "cifar10"}
KNOBS = ("budget", "root", "run", "study")               # parameters of the notebooks that are no fields of a config


def setup() -> None:
    """Say with what this notebook runs, and let figures appear in the page. Can be run again."""
    from IPython import get_ipython
    shell = get_ipython()
    if shell is not None:
        shell.run_line_magic("matplotlib", "inline")
    device = train.choose_device()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"{runs.device_name(device)}, {train.choose_precision('auto', device)}")


def settings(namespace: dict, only: str | None = None) -> tuple[str, PretrainConfig]:
    """The recipe's name and the pretraining configuration that a notebook's parameters ask for.

    `namespace` is the notebook's `globals()`; a notebook that is about one data set names it as `only`. A parameter that
    is None leaves the recipe's own value. Raises `InputError` for a wrong value, and for a name that papermill passed and
    nobody knows.
    """
    for name in _injected():
        if name not in (*config.field_names(PretrainConfig), *KNOBS):
            raise InputError(config.unknown("parameter", name, _parameters(namespace)))
    values = {k: namespace[k] for k in config.field_names(PretrainConfig) if namespace.get(k) is not None}
    dataset, budget = values.get("dataset", "mnist"), choose_budget(namespace.get("budget", "auto"))
    known = [only] if only else [*LIKE, *sorted({name.split("-")[0] for name in recipes.RECIPES if name.endswith("-quick")})]
    if dataset not in known:
        raise InputError(config.unknown("dataset", dataset, known))
    recipe = f"{LIKE.get(dataset, dataset)}-{budget}"
    if recipe not in recipes.RECIPES:
        there = [each for each in BUDGETS if recipe.replace(budget, each) in recipes.RECIPES]
        raise InputError(f"budget is {budget!r}: for {dataset} it must be one of auto, {', '.join(there)}.")
    return recipe, recipes.pretrain_config(recipe, **values)


def picked(namespace: dict, *names: str) -> dict:
    """The parameters of a notebook that only picks among runs, checked: {name: value}, None where it takes all.

    Raises `InputError` for a wrong value, and for a name that papermill passed and the notebook does not have.
    """
    for name in _injected():
        if name not in (*names, "root"):
            raise InputError(config.unknown("parameter", name, (*names, "root")))
    values = {name: namespace[name] for name in names}
    return {name: value if value is None else config.check(name, value, PretrainConfig) for name, value in values.items()}


def available(dataset: str, budget: str = "auto") -> tuple[str, str]:
    """The data set and the budget; "shapes10", "quick" and a banner where the images are not on this machine and cannot
    be downloaded."""
    try:
        load_images(dataset, "val", 10)
        return dataset, budget
    except InputError as error:
        if dataset not in LIKE and dataset != "cifar10":
            raise
        from IPython.display import Markdown, display
        display(Markdown(f"> **These are not the images of {dataset}.** They are `shapes10`, shapes drawn by the course. "
                         f"Every number below is about them; what the text says of {dataset} need not hold. Why: {error}"))
        return "shapes10", "quick"


def choose_budget(budget: str) -> str:
    """quick, cpu or full; "auto" takes what the environment variable MAE_BUDGET says, else full where there is a GPU."""
    budget = os.environ.get("MAE_BUDGET", budget) if budget == "auto" else budget
    if budget not in BUDGETS:
        raise InputError(config.unknown("budget", budget, BUDGETS))
    return budget if budget != "auto" else "quick" if train.choose_device().type == "cpu" else "full"


def pretrained(wanted: PretrainConfig, run: str = "", root: str = "runs") -> runs.Run:
    """The pretraining run to look at: the one named, else the newest finished one with these settings, else the
    recorded one, and it says which. Raises `InputError` with the remedy when there is none."""
    found = runs.load_run(run, root) if run else runs.find_run(wanted, root)
    if found is None:
        place = "" if str(root) == "runs" else f" --root {shlex.quote(str(root))}"
        raise InputError("there is no finished run with these parameters: run 04_pretraining with the same ones first, "
                         f"or python -m mae_helpers pretrain {flags(wanted)}{place}".rstrip())
    what = "recorded with the course" if found.recorded else "found in your runs"
    print(f"{found.name}\n({what}; {found.results['epochs']} epochs, trained in "
          f"{train.clock(found.results['seconds'])} on {found.results['device']})")
    return found


def classified(wanted: ClassifyConfig, root: str = "runs", weights: bool = False,
               say: Callable[[str], None] = train.tell) -> runs.Run:
    """The classifier with these settings, and `say` tells which: yours, else the recorded one, else trained now.

    A recorded one counts only where its encoder was trained with the same settings on the same data. Most come without
    their weights; `weights` asks for one that has them.
    """
    source = runs.load_run(wanted.pretrained, root) if wanted.pretrained else None
    config = settled(wanted, source, source and load_mae(source))
    for folder, what in ((root, "found in your runs"), (runs.recorded_root(), "recorded with the course")):
        found = [run for run in runs.all_runs(folder) if runs.same_job(run, config) and _starts_from(run, source)
                 and not (weights and "last" not in run.kept())]
        if found:
            run = max(found, key=lambda run: (run.path / "results.json").stat().st_mtime)
            say(f"{run.name} ({what}; {train.clock(run.results['seconds'])} on {run.results['device']})")
            return run
    return classify(wanted, root, say=say)


def _starts_from(run: runs.Run, source: runs.Run | None) -> bool:
    """Whether a classifier's encoder is that of `source`, or the recorded one that was trained in the same way."""
    name = run.results["pretrained_run"]
    if not name or not source or name == source.name:
        return name == (source and source.name)
    if not run.recorded or source.own_parts:
        return False
    theirs = runs.load_run(runs.recorded_root() / name)
    return theirs.config.identity() == source.config.identity() and \
        theirs.fingerprint["data"] == source.fingerprint["data"]


def flags(wanted: PretrainConfig) -> str:
    """The options of the command line that make this configuration."""
    usual, words = PretrainConfig().to_dict(), []
    for name, value in wanted.to_dict().items():
        if value != usual[name]:
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return " ".join(words)


def show(figure) -> None:
    """Put a figure of plots.py into the page, with its alt text for those who do not see it."""
    from IPython.display import display
    display(_picture(figure))


def live(draw: Callable) -> Callable:
    """A function that puts the figure `draw(values)` into the page when it is first called, and every further time another
    one in its place. `pretrain(..., on_epoch=live(draw))` draws the rows of metrics.csv while it trains. Where there is no
    page, as in a script, the alt text is printed."""
    from IPython import get_ipython
    from IPython.display import display
    places = []

    def update(values) -> None:
        figure = draw(values)
        if get_ipython() is None:
            print(figure.alt)
        elif places:
            places[0].update(_picture(figure))
        else:
            places.append(display(_picture(figure), display_id=True))
    return update


def _picture(figure):
    from IPython.display import Image
    width = int(figure.get_figwidth() * 100)
    return Image(plots.png(figure, dpi=110, optimize=True), format="png", width=width, alt=figure.alt)


def show_table(rows: list[dict], empty: str = "nothing yet") -> None:
    """Put rows into the page as a table: a column per key, numbers to the right; `empty` is said where there is no row."""
    from IPython.display import Markdown, display
    if not rows:
        return print(empty)
    columns = {key: [str(row[key]) for row in rows] for key in rows[0]}
    edges = ["--:" if all(re.match(r"[-–+?]|\d|not run", cell) for cell in cells) else ":--" for cells in columns.values()]
    lines = [columns, edges, *zip(*columns.values())]
    display(Markdown("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)))


def _injected() -> list[str]:
    """The names that the cell injected by papermill sets, when the last cells run were that and this one."""
    from IPython import get_ipython
    shell = get_ipython()
    cells = (shell.user_ns.get("In") or []) if shell is not None else []
    cell = cells[-2] if len(cells) > 1 else ""
    if not cell.lstrip().startswith("# Parameters"):
        return []
    return [target.id for node in ast.parse(cell).body if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)]


def _parameters(namespace: dict) -> list[str]:
    return [name for name in (*config.field_names(PretrainConfig), *KNOBS) if name in namespace]
