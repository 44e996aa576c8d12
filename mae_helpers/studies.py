"""The studies of the course: sweeps that lie in data/studies, what came out when they ran, and what that allows to say.

    data/studies/NAME.toml        what to run: python -m mae_helpers sweep data/studies/NAME.toml
                 NAME.csv         a row for each run        NAME.curves.csv   a row for each of its epochs
                 NAME.json        on what it ran, and for how long
"""
from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .config import InputError, project_root, unknown
from .metrics import mean_and_std
from .runs import Run, read_json, runs_root, write_json
from .sweep import Sweep, plan
from .tables import write_table

# What the curves keep of an epoch.
CURVE = ("epoch", "train_loss", "val_loss", "psnr_db", "val_accuracy", "train_seconds")

# What the facts keep of where the runs come from.
MACHINE = ("device", "python", "torch", "data_source", "commit")


def studies_root() -> Path:
    return project_root() / "data" / "studies"


class Study:
    """A recorded sweep. `rows` and `curves` are lists of dicts, `facts` says on what it ran.

    Raises `InputError` for a name that is not there.
    """

    def __init__(self, name: str):
        there = sorted(path.stem for path in studies_root().glob("*.toml"))
        if name not in there:
            raise InputError(unknown("study", name, there))
        self.name, self._folder = name, studies_root()

    @property
    def sweep(self) -> Sweep:
        return Sweep.read(self._folder / f"{self.name}.toml")

    @property
    def recorded(self) -> bool:
        return (self._folder / f"{self.name}.json").is_file()

    @property
    def rows(self) -> list[dict]:
        return read_table(self._folder / f"{self.name}.csv")

    @property
    def curves(self) -> list[dict]:
        return read_table(self._folder / f"{self.name}.curves.csv")

    @property
    def facts(self) -> dict:
        return read_json(self._folder / f"{self.name}.json")

    def scores(self, stage: str, score: str, *axes: str) -> dict[tuple, dict[int, float]]:
        """{values of the axes: {seed: score}}, for one stage ("pretrain", "probe", …) and one column of its rows."""
        found: dict[tuple, dict[int, float]] = {}
        for row in self.rows:
            if row["stage"] == stage and row[score] is not None:
                found.setdefault(tuple(row[axis] for axis in axes), {})[row["seed"]] = row[score]
        return found


def all_studies(recorded: bool = True) -> list[Study]:
    """The studies of the course by name; those that have results, unless `recorded` is False."""
    studies = [Study(path.stem) for path in sorted(studies_root().glob("*.toml"))]
    return [study for study in studies if study.recorded or not recorded]


def record_sweep(name: str, root="runs") -> Path:
    """Keep what a finished sweep found in data/studies, and return the path of its table.

    Raises `InputError` for a sweep that is not there, has not finished, has a run that failed or names none, and for one
    without a file in data/studies that says what it is.
    """
    folder = runs_root(root) / "sweeps" / name
    if not (folder / "table.csv").is_file():
        raise InputError(unknown("sweep", name, sorted(path.parent.name for path in folder.parent.glob("*/table.csv"))))
    rows, jobs = read_table(folder / "table.csv"), plan(Sweep(**read_json(folder / "sweep.json")))
    bad = next((row["error"] for row in rows if row["error"]), None)
    missing = sum(len(each) for _, each in jobs) - len(rows)
    if bad or missing > 0:
        raise InputError(f"the sweep {name} has not finished ({bad or f'{missing} runs are missing'}): start it again and "
                         "it goes on.")
    if not (studies_root() / f"{folder.name}.toml").is_file():
        raise InputError(f"the sweep {folder.name} is no study: data/studies/{folder.name}.toml has to say what it is.")
    runs = [Run(runs_root(root) / each) for each in dict.fromkeys(row["run"] for row in rows if row["run"])]
    if not runs:
        raise InputError(f"the sweep {folder.name} names no runs: there is nothing to keep.")
    made = [run.provenance for run in runs]
    facts = {key: sorted({str(each[key]) for each in made}) for key in MACHINE}
    curves = [{"run": run.name, **{key: row.get(key) for key in CURVE}} for run in runs for row in run.metrics]
    target = studies_root() / f"{folder.name}.csv"          # a name may have dots, so no suffix is replaced
    write_table(rows, target)
    write_table(curves, studies_root() / f"{folder.name}.curves.csv")
    write_json(studies_root() / f"{folder.name}.json", {
        **facts, "runs": len(runs), "first": min(each["created"] for each in made),
        "last": max(each["created"] for each in made), "minutes": round(sum(each["seconds"] for each in made) / 60, 1)})
    return target


def read_table(path: str | os.PathLike) -> list[dict]:
    """The rows of a CSV table: numbers are numbers, True and False are, and an empty field is None."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: _read(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"the table {path} cannot be read: {error.strerror}.") from None


def _read(text: str):
    words = {"": None, "True": True, "False": False}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# What the numbers allow to say

class Difference(NamedTuple):
    """What one arm has more than another, over the seeds that they share."""

    mean: float
    std: float          # over seeds, with n - 1
    n: int
    low: float          # the interval that holds the true mean in 95 % of such experiments (Student's t)
    high: float
    p: float            # how often chance alone would make a mean at least as large, were there no difference

    def __str__(self) -> str:
        return (f"{self.mean:+.4g} ± {self.std:.2g} (n = {self.n}, 95 % interval {self.low:+.3g} … {self.high:+.3g}, "
                f"p = {self.p:.2g})")


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """A paired comparison of two arms {seed: score}: equal seeds had equal images, order, masks and starting weights, so
    each seed gives one difference (Student's t-test for pairs).

    Raises `InputError` with fewer than two seeds in common: one difference says nothing about its uncertainty.
    """
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        raise InputError(f"the arms share {len(seeds)} seeds: a comparison with an uncertainty needs at least 2.")
    from scipy.stats import t
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, std = mean_and_std(differences)
    n, error = len(seeds), std / math.sqrt(len(seeds))
    reach = float(t.ppf(0.975, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Difference(mean, std, n, mean - reach, mean + reach, p)


def settled(differences: Sequence[Difference], level: float = 0.05) -> list[bool]:
    """Which of several differences hold: p below `level` after Holm's correction, because of twenty comparisons without
    any effect one is expected to look like one."""
    order = sorted(range(len(differences)), key=lambda i: differences[i].p)
    held, still = [False] * len(differences), True
    for rank, i in enumerate(order):
        still = still and differences[i].p < level / (len(differences) - rank)
        held[i] = still
    return held
