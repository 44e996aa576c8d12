"""Tables of runs, for other programs and for people: gathered from run directories, compared side by side."""
from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from .config import InputError
from .runs import Run, load_run, runs_root, write_atomic
from .train import tell

SCORES = ("train_loss", "val_loss", "psnr_db", "laplacian_error", "val_accuracy", "test_accuracy", "seconds", "device")


def scores(name: str | None, root: Path) -> dict:
    """What a run directory says of a run, with `error` where it is half-written or of another version."""
    empty = dict.fromkeys(("job", "protocol", "dataset", "seed", *SCORES, "error"))
    try:
        return {**empty, **results_of(Run(root / name))} if name else empty
    except InputError as error:
        return {**empty, "error": str(error)}


def results_of(run: Run) -> dict:
    """What a run was and reached. Raises `InputError` when it has not finished, or when another version wrote its files."""
    try:
        results, job = run.results, run.config.job          # reading the configuration checks its fields
        known = isinstance(results, dict) and results.get("job") == job
    except (KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{run.path} was written by another version: its configuration and its results are not known here.")
    return {key: results.get(key) for key in ("job", "protocol", "dataset", "seed", *SCORES)}


def readable(runs: list[Run], say: Callable[[str], None] = tell) -> list[Run]:
    """The runs that have finished and that this version understands; each of the others is said in one sentence."""
    kept = []
    for run in runs:
        try:
            results_of(run)
            kept.append(run)
        except InputError as error:
            say(f"{run.name} is left out: {error}")
    return kept


def gather(root="runs", say: Callable[[str], None] = tell) -> list[dict]:
    """One row per finished run of a folder: its settings, then its scores. What is half-written, or another version's, is
    said in one sentence and left out."""
    runs = readable([Run(path.parent) for path in sorted(runs_root(root).glob("*/config.json"))], say)
    return [{"run": run.name, **run.config.resolved().to_dict(), **results_of(run)} for run in runs]


def write_table(rows: list[dict], path: str | os.PathLike) -> None:
    """Rows as CSV, or as parquet when the name ends so. A column whose values are of several kinds becomes text."""
    path = Path(path)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: json.dumps(row[key]) if isinstance(row.get(key), (list, tuple)) else row.get(key) for key in columns}
            for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if path.suffix == ".csv":
        return write_atomic(path, text.getvalue().encode())
    if path.suffix != ".parquet":
        raise InputError(f"a table is written to a .csv or a .parquet file, not to {path.name}.")
    import pyarrow as pa
    from pyarrow import parquet

    def column(values):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if value is None else str(value) for value in values])
    buffer = io.BytesIO()
    parquet.write_table(pa.table({key: column([row[key] for row in rows]) for key in columns}), buffer)
    write_atomic(path, buffer.getvalue())


def compare(a, b, root="runs") -> list[dict]:
    """What differs between two runs, one row each: their settings, what they were made from, and what they reached.

    Raises `InputError` for a run that is not there, has not finished or was written by another version.
    """
    one, two = (load_run(each, root) for each in (a, b))
    for run in (one, two):
        results_of(run)
    names = (one.name, two.name) if one.name != two.name else (str(one.path), str(two.path))
    rows: list[dict] = []
    for kind, parts in (("setting", [run.config.resolved().to_dict() for run in (one, two)]),
                        ("made from", [run.fingerprint for run in (one, two)]),
                        ("result", [run.results for run in (one, two)])):
        said = {row["what"] for row in rows}                # results repeat some of the settings
        for key in dict.fromkeys(key for part in parts for key in part):
            values = [part.get(key) for part in parts]
            long = kind == "result" and any(isinstance(value, (list, dict)) for value in values)
            if values[0] != values[1] and key not in said and not long:
                rows.append({"kind": kind, "what": key, **dict(zip(names, values))})
    return rows


def plain(rows: list[dict]) -> list[dict]:
    """Rows for printing: numbers with four digits, and no column that is empty everywhere."""
    columns = dict.fromkeys(key for row in rows for key in row)
    kept = [key for key in columns if any(row.get(key) is not None for row in rows)]

    def short(key, value):
        return f"{value:.4g}" if isinstance(value, float) and key != "seconds" else value
    return [{key: short(key, row.get(key)) for key in kept} for row in rows]
