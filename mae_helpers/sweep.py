"""Sweeps: a recipe or a notebook many times, over a grid or a list of settings and seeds, on Dask.

    runs/sweeps/<name>/sweep.json · table.csv · table.parquet, and executed notebooks

Every run is one Dask task. A run that several cells need is done once, one that is finished is found, and one that was
stopped goes on from its checkpoint: all of that is the engine's, so a sweep keeps no state of its own.
"""
from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from filelock import FileLock, Timeout

from . import exercises, recipes
from .classify import CODE as CLASSIFY_CODE
from .classify import classify
from .config import ClassifyConfig, InputError, PretrainConfig, check, check_names, field_names, project_root, unknown
from .distributed import ALONE
from .pretrain import CODE, pretrain
from .runs import all_runs, code_fingerprint, read_json, runs_root, write_json
from .tables import scores, write_table
from .train import clock, tell

CONNECT_SECONDS = 10            # for a scheduler to answer
MOST_WORKERS = 8                # on processors, unless asked for: each holds its own copy of the images
ALL = "classify"                # classify.epochs is the field of every classifier, finetune.epochs that of one
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A worker lives in a process of its own, which Ctrl-C in a terminal reaches too; only the sweep shall answer it.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
_alone = threading.Lock()       # threads of one worker would share PyTorch's random stream: one run at a time in a process


class Failed(RuntimeError):
    """What went wrong in a task, in one line: it travels to the scheduler, and back, without tensors in its traceback."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to run, and what varies: every row of `list` with every combination of the values in `grid`, over `fixed`.

    Names are fields of `PretrainConfig`; "finetune.base_lr" is a field of that stage's classifier, "classify.limit" one
    of all classifiers. For a notebook they are the names in its cell tagged "parameters". Raises `InputError` for what
    cannot be a sweep; `plan` checks every value.
    """

    name: str
    recipe: str = ""
    notebook: str = ""
    stages: tuple[str, ...] = ()        # none: all of the recipe; "pretrain": pretraining alone
    fixed: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    list: tuple[dict, ...] = ()

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.-]*", str(self.name)):
            raise InputError(f"a sweep's name is {self.name!r}: it must be letters, digits, '.', '_' and '-'.")
        if bool(self.recipe) == bool(self.notebook):
            raise InputError(f"the sweep {self.name} must name a recipe or a notebook, and not both.")
        for key, kind, words in (("stages", (list, tuple), "a list of stages"), ("fixed", dict, "a table of values"),
                                 ("grid", dict, "a table of lists"), ("list", (list, tuple), "a list of tables")):
            if not isinstance(getattr(self, key), kind):
                raise InputError(f"{key} of the sweep {self.name} is {getattr(self, key)!r}: it must be {words}.")
        if not all(isinstance(row, dict) for row in self.list):
            raise InputError(f"list of the sweep {self.name} is {self.list!r}: it must be a list of tables.")
        for key, value in (("stages", tuple(self.stages)), ("fixed", _flat(self.fixed)), ("grid", _flat(self.grid)),
                           ("list", tuple(_flat(row) for row in self.list))):
            object.__setattr__(self, key, value)
        for axis, values in self.grid.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise InputError(f"{axis} in the grid of the sweep {self.name} is {values!r}: it must be a list of values.")
        if not self.grid and not any(self.list):
            raise InputError(f"the sweep {self.name} is empty: its grid or its list must name what varies.")

    @classmethod
    def read(cls, path: str | os.PathLike) -> Sweep:
        """The sweep in a TOML file; its name is the file's unless it says another. Raises `InputError`."""
        try:
            import tomllib
        except ModuleNotFoundError:             # Python 3.10
            import tomli as tomllib
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise InputError(f"{path} is not a TOML file: {error}.") from None
        check_names(values, cls)
        return cls(**{"name": Path(path).stem, **values})

    @property
    def axes(self) -> list[str]:
        """The names that vary, in the order in which they are given."""
        return list(dict.fromkeys([*itertools.chain(*self.list), *self.grid]))

    def cells(self) -> list[dict]:
        """The settings of each cell; the last name of the grid varies fastest."""
        values = list(itertools.product(*self.grid.values()))
        return [{**self.fixed, **row, **dict(zip(self.grid, each))} for row in (self.list or [{}]) for each in values]


def _flat(values: dict, before: str = "") -> dict:
    """TOML reads finetune.epochs = 4 as {"finetune": {"epochs": 4}}, which becomes {"finetune.epochs": 4}."""
    found = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


# What is to be done

@dataclass(frozen=True)
class Job:
    """One run, or one notebook. Jobs with the same key are the same run."""

    key: str
    label: str                          # the first cell that needs it, and the stage
    stage: str
    work: object                        # a configuration, or (path, parameters) of a notebook
    needs: str | None = None            # the key of the pretraining it starts from


def plan(sweep: Sweep) -> list[tuple[dict, list[Job]]]:
    """Each cell with its jobs, pretraining first. Raises `InputError` for the first value that cannot be."""
    make = _notebook_jobs if sweep.notebook else _recipe_jobs
    return [(cell, make(sweep, cell, number)) for number, cell in enumerate(sweep.cells())]


def _recipe_jobs(sweep: Sweep, cell: dict, number: int) -> list[Job]:
    recipes.pretrain_config(sweep.recipe)               # the sentence for a recipe that there is not
    stages = tuple(stage for stage in sweep.stages or recipes.RECIPES[sweep.recipe] if stage != "pretrain")
    changes: dict[str, dict] = {stage: {} for stage in ("", ALL, *stages)}
    for name, value in cell.items():
        stage, _, key = name.rpartition(".")
        if stage not in changes:
            raise InputError(unknown("stage", stage, (ALL, *stages)))
        if not stage and key not in field_names(PretrainConfig) and key in field_names(ClassifyConfig):
            raise InputError(f"{key} is a field of classifiers: write {ALL}.{key}, or {key} behind the name of a stage.")
        if stage and key in ("protocol", "pretrained"):
            raise InputError(f"{name} cannot vary: the recipe decides it.")
        changes[stage][key] = value
    config = recipes.pretrain_config(sweep.recipe, **changes[""])
    first = _job(config, f"cell {number}", "pretrain")
    # The pretraining run is not there yet, but what it will be configured like is known, and that is all one looks at.
    later = SimpleNamespace(config=config, path=Path(first.key))
    found = [(stage, recipes.classify_config(sweep.recipe, stage, later, **{**changes[ALL], **changes[stage]}))
             for stage in stages]
    return [first, *(_job(each, f"cell {number}", stage, first.key if each.pretrained else None) for stage, each in found)]


def _job(config, cell: str, stage: str, needs: str | None = None) -> Job:
    return Job(f"{stage}-{_hash(config.job, config.identity(), needs)}", f"{cell} {stage}", stage, config, needs)


def _notebook_jobs(sweep: Sweep, cell: dict, number: int) -> list[Job]:
    path = next((p for p in (Path(sweep.notebook), project_root() / sweep.notebook) if p.is_file()), None)
    if path is None:
        raise InputError(f"there is no notebook {sweep.notebook}.")
    if not find_spec("papermill"):
        raise InputError('notebooks are run by papermill, which is not installed: pip install -e ".[notebooks]"')
    try:
        code = [c for c in exercises.read(path)["cells"] if c["cell_type"] == "code"]
        text = [exercises.source(c) for c in code]
        marked = "\n".join(each for c, each in zip(code, text) if "parameters" in exercises.tags(c))
        names = (node for node in ast.walk(ast.parse(marked)) if isinstance(node, ast.Name))
        known = [name.id for name in names if isinstance(name.ctx, ast.Store)]
    except (ValueError, KeyError, TypeError, SyntaxError, OSError) as error:
        raise InputError(f"{path} is not a notebook ({_line(error)}).") from None
    for name, value in cell.items():
        if name == "root" or name not in known:
            raise InputError(unknown(f"parameter of {path.name}", name, [each for each in known if each != "root"]))
        if name in field_names(PretrainConfig) and value is not None:       # None leaves the recipe's own
            check(name, value, PretrainConfig)
    # Code that changed, the notebook's or the package's, makes another file: what an old one shows is not true any more.
    key = f"{path.stem}-{_hash(cell, text, _code())}"
    return [Job(key, f"cell {number} {path.stem}", "notebook", (str(path.resolve()), cell, "root" in known))]


@functools.cache                 # reading all modules for every cell would take longer than checking the cell
def _code() -> str:
    return code_fingerprint(*sorted({*CODE, *CLASSIFY_CODE}))


def _hash(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


# What a worker does

def work(job: Job, first: dict | None, root: str, folder: str, topic: str) -> dict:
    """One job on a Dask worker: {"run": its name}, {"notebook": its path}, or for wrong input {"error": the sentence}.

    `first` is what the pretraining before it gave. Raises `Failed` for anything else that goes wrong.
    """
    from distributed import get_worker
    worker = get_worker()
    if first and "error" in first:
        return first

    def say(text):
        worker.log_event(topic, f"{job.label}: {text}".replace("\n", "; "))
    os.environ.update(ALONE)                # srun may have started many workers, but each trains its own runs
    try:
        # Nobody else trains this run: not another sweep, nor a worker that the scheduler believes to be dead.
        with _alone, FileLock(Path(root) / "sweeps" / ".locks" / job.key):
            torch.set_num_threads(max(worker.state.nthreads, int(os.environ.get(THREADS[0]) or 1)))
            if job.stage == "notebook":
                return _run_notebook(job, root, Path(folder))
            config = job.work.replace(pretrained=str(Path(root) / first["run"])) if first else job.work
            train = pretrain if config.job == "pretrain" else classify
            return {"run": train(config, root, say=say).name}
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:
        problem = _line(error)
    say(f"failed: {problem}")
    raise Failed(problem)


def _run_notebook(job: Job, root: str, folder: Path) -> dict:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    path, cell, rooted = job.work
    out = folder / f"{job.key}.ipynb"
    state = exercises.read(out)["metadata"].get("papermill", {}) if out.is_file() else {}
    if not state.get("end_time") or state.get("exception"):
        try:
            values = {**cell, "root": root} if rooted else cell
            papermill.execute_notebook(path, str(out), values, cwd=str(Path(path).parent), progress_bar=False)
        except PapermillExecutionError as error:
            problem = InputError(error.evalue) if error.ename == "InputError" else Failed(f"{error.ename}: {error.evalue}")
            raise problem from None
    return {"notebook": str(out)}


def _line(error: BaseException) -> str:
    text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


# Where it is done

def worker_environments(count: int, cores: int, gpus: list[str]) -> list[dict[str, str]]:
    """The environment of each of `count` workers: the cores divided among them, at least one for each, and a GPU in turn."""
    threads = {name: str(max(1, cores // count)) for name in THREADS}
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})} for i in range(count)]


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[:count]


@contextlib.contextmanager
def connected(scheduler: str | None, workers: int | None, jobs: int, say: Callable[[str], None] = tell):
    """A Dask client: of the scheduler at an address, or of a cluster of processes on this machine, which ends with it.

    Local workers are as many as asked for, else one a GPU, else one a core up to `MOST_WORKERS`, and never more than
    jobs. Raises `InputError` without Dask, and for a scheduler that does not answer.
    """
    try:
        import dask
        from distributed import Client, Nanny, Scheduler, SpecCluster
    except ImportError:
        raise InputError('a sweep runs on Dask, which is not installed: pip install -e ".[sweep]"') from None
    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"the scheduler {scheduler} cannot be reached ({_line(error)}): is it running?") from None
        with client:
            say(f"scheduler {scheduler}, {len(client.nthreads())} workers now")
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = visible_gpus()
    count = min(workers or len(gpus) or min(cores, MOST_WORKERS), jobs)
    # Looking a hundred times a second what a worker does would take processor time from the training.
    unwatched = dask.config.set({"distributed.worker.profile.enabled": False})
    with tempfile.TemporaryDirectory(prefix="mae-sweep-", ignore_cleanup_errors=True) as scratch, unwatched:
        here = dict(host="127.0.0.1", local_directory=scratch, nthreads=1, memory_limit=0, preload=DEAF,
                    silence_logs=logging.CRITICAL)
        cluster = SpecCluster(
            scheduler={"cls": Scheduler, "options": dict(host="127.0.0.1", port=0, dashboard=bool(find_spec("bokeh")),
                                                         dashboard_address="127.0.0.1:0")},
            workers={i: {"cls": Nanny, "options": {**here, "env": env}}
                     for i, env in enumerate(worker_environments(count, cores, gpus))}, silence_logs=logging.CRITICAL)
        with cluster, Client(cluster, set_as_default=False) as client:
            say(f"workers: {count}, each with {max(1, cores // count)} of {cores} threads"
                + (f" and one of {len(gpus)} GPUs" if gpus else ""))
            say(f"dashboard: {cluster.dashboard_link}" if find_spec("bokeh") else "no dashboard: bokeh is not installed")
            yield client


def run_sweep(sweep: Sweep, root="runs", scheduler: str | None = None, workers: int | None = None,
              say: Callable[[str], None] = tell) -> list[dict]:
    """Run every cell and return the rows of the table, which is also written; started again, it goes on where it was.

    What fails is tried once more and then stands in its row as `error`, one sentence, while the others go on. Raises
    `InputError` before anything starts for a value that cannot be, a name that another sweep has, and what `connected`
    raises. In a script, call it below `if __name__ == "__main__":`, because the workers import the script.
    """
    cells = plan(sweep)
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise InputError(f"workers is {workers!r}: it must be a whole number at least 1.")
    jobs = {job.key: job for _, found in reversed(cells) for job in found}      # a shared one is called after its first cell
    jobs = {job.key: jobs[job.key] for _, found in cells for job in found}
    root = runs_root(root)
    folder, outcomes, futures = root / "sweeps" / sweep.name, {}, {}
    with _opened(sweep, folder), connected(scheduler, workers, len(jobs), say) as client:
        say(f"sweep {sweep.name}: {len(cells)} cells, {len(jobs)} {'notebooks' if sweep.notebook else 'runs'}")
        topic = f"mae-{sweep.name}-{os.getpid()}"
        client.subscribe_topic(topic, lambda event: say(event[1]))
        (root / "sweeps" / ".locks").mkdir(exist_ok=True)
        for job in jobs.values():
            futures[job.key] = client.submit(work, job, futures.get(job.needs), str(root), str(folder), topic,
                                             key=f"{job.key}-{_hash(str(root))}", retries=1)
        keys = {future.key: key for key, future in futures.items()}
        from distributed import as_completed
        for future in as_completed(list(futures.values()), loop=client.loop):
            key = keys[future.key]
            outcomes[key] = future.result() if future.status == "finished" else {
                "error": _line(future.exception()) if future.status == "error" else "the scheduler has lost it"}
            rows = _rows(sweep, cells, outcomes, root)
            write_table(rows, folder / "table.csv")
            write_table(rows, folder / "table.parquet")
            say(f"[{len(outcomes)}/{len(jobs)}] {jobs[key].label}: {_said(outcomes[key], root)}")
    return rows


@contextlib.contextmanager
def _opened(sweep: Sweep, folder: Path):
    """The folder of the sweep, held for this process alone. `InputError` when it is another one's, or in use."""
    asked, path = json.loads(json.dumps(dataclasses.asdict(sweep), default=str)), folder / "sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be written: {error.strerror}.") from None
    try:
        with FileLock(folder / ".lock", timeout=0):
            there = read_json(path) if path.exists() else asked
            key = next((k for k in asked if not isinstance(there, dict) or there.get(k) != asked[k]), None)
            if key:
                raise InputError(f"the sweep {sweep.name} exists with other contents: {key} is "
                                 f"{there.get(key) if isinstance(there, dict) else there!r} there and {asked[key]!r} here. "
                                 "Choose another name.")
            write_json(path, asked)
            yield
    except Timeout:
        raise InputError(f"the sweep {sweep.name} is running in another process: wait for it, or choose another name.") \
            from None


# The table

def _rows(sweep: Sweep, cells: list[tuple[dict, list[Job]]], outcomes: dict[str, dict], root: Path) -> list[dict]:
    """One row per cell and run so far; a cell's own values first, and every row with the same columns."""
    rows = []
    for number, (cell, found) in enumerate(cells):
        for job in (job for job in found if job.key in outcomes):
            outcome, start = outcomes[job.key], {"cell": number, **{axis: cell.get(axis) for axis in sweep.axes}}
            if job.needs and "error" in outcomes.get(job.needs, {}):
                outcome = {"error": "not started, because its pretraining failed"}
            names = [outcome.get("run")] if "notebook" not in outcome else _named(Path(outcome["notebook"]), root) or [None]
            for name in names:
                more = {"stage": job.stage, "run": name, "notebook": outcome.get("notebook"), **scores(name, root)}
                more["error"] = outcome.get("error") or more["error"]
                rows.append({**start, **{k: v for k, v in more.items() if k not in start or start[k] is None}})
    return rows


def _named(path: Path, root: Path) -> list[str]:
    """The finished runs that the outputs of an executed notebook name."""
    text = json.dumps([c.get("outputs", []) for c in exercises.read(path)["cells"]])
    return [run.name for run in all_runs(root) if re.search(rf"(?<![\w.-]){re.escape(run.name)}(?![\w-])", text)]


def _said(outcome: dict, root: Path) -> str:
    row = scores(outcome.get("run"), root)
    words = [f"{row['psnr_db']:.2f} dB"] if row["psnr_db"] is not None else []
    words += [f"test {row['test_accuracy']:.2%}"] if row["test_accuracy"] is not None else []
    words += [clock(row["seconds"])] if row["seconds"] is not None else []
    return outcome.get("error") or row["error"] or ", ".join([outcome.get("run") or outcome["notebook"], *words])
