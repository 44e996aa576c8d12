"""Run directories: everything that one training run leaves behind, written once and never silently replaced.

    runs/<name>/config.json · metrics.csv · results.json · provenance.json · model.safetensors
                checkpoint/ · figures/ · tensorboard/

A folder with `results.json` is finished. The default name ends in a hash of the configuration, the data and the code,
so a change of any of them is another run, and the same one is found again.
"""
from __future__ import annotations

import ast
import csv
import functools
import hashlib
import inspect
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from .config import CONFIGS, InputError, JobConfig, project_root, unknown
from .packs import written

RECORD_LIMIT = 50_000           # bytes of a recorded run without its weights


class Run:
    """A run directory. `config`, `metrics`, `results` and `provenance` are read from its files."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise InputError(f"{self.path} is not a run directory: it has no config.json.")

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {'finished' if self.finished else 'unfinished'})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return (self.path / "results.json").is_file()

    @property
    def recorded(self) -> bool:
        return self.path.parent == recorded_root()

    @property
    def config(self) -> JobConfig:
        saved = self._saved()
        return CONFIGS[saved["job"]].from_dict(saved["config"])

    @property
    def fingerprint(self) -> dict:
        return self._saved()["fingerprint"]

    @property
    def own_parts(self) -> set[str]:
        """What in this run was a learner's own: "model", "mask" or "loss"."""
        return set(self.fingerprint) & {"model", "mask", "loss"}

    @property
    def results(self) -> dict:
        return read_json(self.path / "results.json")

    @property
    def provenance(self) -> dict:
        return read_json(self.path / "provenance.json")

    @property
    def metrics(self) -> list[dict]:
        """One dict per epoch; numbers are numbers, an empty field is None."""
        if not (self.path / "metrics.csv").exists():
            return []
        with open(self.path / "metrics.csv", newline="") as file:
            return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]

    def weights(self, which: str = "last") -> dict[str, torch.Tensor]:
        """The weights as float32: "last", "best" (lowest validation loss), or an epoch kept as a snapshot."""
        names = {"last": "model.safetensors", "best": "checkpoint/best.safetensors"}
        path = self.path / names.get(which, f"checkpoint/epoch_{which}.safetensors")
        if not path.exists():
            there = ", ".join(self.kept()) or "none"
            raise InputError(f"the run {self.name} has no weights {which!r}: it has {there}.")
        return read_weights(path)

    def kept(self) -> list[str]:
        """The weights there are: "last", "best" and the epochs of the snapshots, in order."""
        found = [n for n, p in (("last", "model.safetensors"), ("best", "checkpoint/best.safetensors"))
                 if (self.path / p).exists()]
        epochs = sorted(int(p.stem.split("_")[1]) for p in self.path.glob("checkpoint/epoch_*.safetensors"))
        return found + [str(e) for e in epochs]

    def write_metrics(self, rows: list[dict]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path / "metrics.csv", text.getvalue().encode())

    def finish(self, results: dict, provenance: dict) -> None:
        """Write provenance and, last of all, the results that mark the run as finished."""
        write_json(self.path / "provenance.json", provenance)
        write_json(self.path / "results.json", results)
        (self.path / "checkpoint" / "last.pt").unlink(missing_ok=True)      # only an unfinished run needs it

    def _saved(self) -> dict:
        saved = read_json(self.path / "config.json")
        if not isinstance(saved, dict) or saved.get("job") not in list(CONFIGS) or \
                not all(isinstance(saved.get(key), dict) for key in ("config", "fingerprint")):
            raise InputError(f"{self.path / 'config.json'} is not the configuration of a run.")
        return saved


def open_run(config: JobConfig, fingerprint: dict, root: str | os.PathLike = "runs", name: str | None = None) -> Run:
    """The directory for this configuration: a new one, or the one that exists (finished or not).

    Under a name of one's own: another configuration there is an `InputError` that names the first difference, other
    code or data gets the name with a hash behind it.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise InputError(f"name is {name!r}: it must be the name of one folder, without slashes.")
    identity, folder = config.identity(), runs_root(root)
    key = hashlib.sha256(json.dumps([config.job, identity, fingerprint], sort_keys=True).encode()).hexdigest()[:8]
    path = folder / (name or f"{default_name(config)}-{key}")
    if name and (path / "config.json").is_file():
        saved = Run(path)
        difference = _difference(saved.config, config)
        if difference:
            raise InputError(f"the run {name} exists with another configuration: {difference}. Choose another name.")
        if saved.fingerprint != fingerprint:
            path = folder / f"{name}-{key}"
    if not (path / "config.json").is_file():        # new, or its first start was killed before it had one
        try:
            (path / "checkpoint").mkdir(parents=True, exist_ok=True)
            write_json(path / "config.json", {"job": config.job, "config": config.resolved().to_dict(),
                                              "fingerprint": fingerprint})
        except OSError as error:
            raise InputError(f"the run directory {path} cannot be written: {error.strerror}.") from None
    return Run(path)


def load_run(where: str | os.PathLike, root: str | os.PathLike = "runs") -> Run:
    """A run by its folder, or by its name below `root`, runs/ or data/runs/. `InputError` if there is none."""
    where = Path(where).expanduser()
    places = [where] if where.is_absolute() else \
        [runs_root(root) / where, runs_root("runs") / where, recorded_root() / where, project_root() / where]
    for place in places:
        if (place / "config.json").is_file():
            return Run(place)
    names = [p.parent.name for r in (runs_root(root), recorded_root()) for p in sorted(r.glob("*/config.json"))]
    raise InputError(unknown("run", str(where), names) if names else f"run is {str(where)!r}: there are no runs yet.")


def find_run(config: JobConfig, root: str | os.PathLike = "runs") -> Run | None:
    """The newest finished run with this configuration and no parts of a learner's own, below `root` before data/runs/."""
    for folder in (runs_root(root), recorded_root()):
        found = [run for run in all_runs(folder) if (run.path / "model.safetensors").exists() and same_job(run, config)]
        if found:
            return max(found, key=lambda run: (run.path / "results.json").stat().st_mtime)
    return None


def same_job(run: Run, config: JobConfig) -> bool:
    """Whether a run has this configuration and no parts of a learner's own; one of another version has not."""
    try:
        return not run.own_parts and not _difference(run.config, config)
    except InputError:
        return False


def all_runs(folder: str | os.PathLike = "runs") -> list[Run]:
    """The finished runs of a folder, by name; folders that are not runs are passed over."""
    found = sorted(runs_root(folder).glob("*/results.json"))
    return [Run(path.parent) for path in found if (path.parent / "config.json").exists()]


def record(run: Run, results: dict, weights: bool = False) -> Run:
    """Copy a finished run to data/runs/: config, metrics, results and provenance, at most 50 KB, and on request the
    weights in half precision. `results` are those to record (evaluated with the weights as stored)."""
    target = recorded_root() / run.name
    texts = {"config.json": (run.path / "config.json").read_bytes(), "metrics.csv": b"",
             "provenance.json": (run.path / "provenance.json").read_bytes(), "results.json": _json(results)}
    if run.metrics:
        texts["metrics.csv"] = (run.path / "metrics.csv").read_bytes()
    size = sum(map(len, texts.values()))
    if size > RECORD_LIMIT:
        raise InputError(f"the run {run.name} takes {size} bytes without its weights: a recorded run may take "
                         f"{RECORD_LIMIT}.")
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if text:
            write_atomic(target / name, text)
    if weights:
        write_weights(target / "model.safetensors", {k: v.half() if v.is_floating_point() else v
                                                     for k, v in run.weights().items()})
    return Run(target)


# Names and fingerprints

def default_name(config: JobConfig) -> str:
    c = config.resolved()
    parts = [getattr(c, "protocol", c.job), re.sub(r"[^\w-]+", "_", c.dataset), f"p{c.patch_size}"]
    if c.job == "pretrain":
        parts += [f"m{c.mask_ratio:g}"]
    if parts[0] != "knn":                                   # neighbours are not trained
        parts += [f"e{c.epochs}"]
    return "-".join([*parts, f"s{c.seed}"])


def code_fingerprint(*modules: str) -> str:
    """A hash of what modules of this package do: their syntax trees without docstrings, comments or line numbers."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and \
                    isinstance(getattr(body[0], "value", None), ast.Constant) and isinstance(body[0].value.value, str):
                body[0].value.value = ""
        # Python 3.12 knows one field more, and 3.13 leaves empty ones out: the same code should keep its hash.
        text = ast.dump(tree, **({"show_empty": True} if sys.version_info >= (3, 13) else {}))
        digest.update(text.replace(", type_params=[]", "").encode())
    return digest.hexdigest()[:16]


def part_fingerprint(part) -> str:
    """A hash of a learner's own function, object or model: its compiled code and the values that belong to it. They are
    the default arguments of a function and the variables of the function around it, the attributes of an object or a model
    and, for a model, its starting weights.

    What a function reads from the surrounding notebook is not part of it; give such values as default arguments.
    """
    digest = hashlib.sha256()
    _add_part(digest, part, {})
    return digest.hexdigest()[:16]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights of a model, with their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + _raw(value))
    return digest.hexdigest()[:16]


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _add_part(digest, part, seen: dict[int, object]) -> None:
    """`seen` is what was met before, by its address, which nothing else gets while it is kept: a function may refer to
    itself."""
    if id(part) in seen:
        digest.update(f"number {list(seen).index(id(part))} again".encode())
        return
    seen[id(part)] = part
    _add_code(digest, part, seen)
    if isinstance(part, torch.nn.Module):
        digest.update(repr(part).encode())
        for module in part.modules():
            _add_object(digest, module, seen)
        digest.update(weights_fingerprint(part).encode())
    elif not inspect.isroutine(part):
        digest.update(re.sub("0x[0-9a-fA-F]+", "", repr(part)).encode())       # the address is another one each time
        _add_object(digest, part, seen)


def _add_code(digest, part, seen: dict[int, object]) -> None:
    def add(*values):
        digest.update(repr(_settled(values, seen)).encode())
    if isinstance(part, functools.partial):
        add(part.args, part.keywords)
        part = part.func
    holder = getattr(part, "__self__", None)
    if inspect.isroutine(part) and holder is not None:      # a method, of an object with settings of its own
        add(holder)
    function = getattr(part, "__func__", part)
    code = getattr(function, "__code__", None)
    if code is not None:
        add(function.__defaults__, function.__kwdefaults__)
        _add_compiled(digest, code)
        for name, cell in zip(code.co_freevars, function.__closure__ or ()):
            if name != "__class__":                         # what super() looks at, whose code is added as a class's
                add(name, _content(cell))
    elif inspect.isroutine(function):
        add(getattr(function, "__qualname__", ""))          # written in C: it has nothing but a name
    if "__wrapped__" in getattr(function, "__dict__", {}):  # what a decorator such as functools.cache keeps
        add(function.__wrapped__)


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:                                      # not assigned yet
        return None


def _settled(value, seen: dict[int, object]):
    """A value as one whose repr says all of it and is the same in another process: nothing left out, no address."""
    if value is None or value is ... or isinstance(value, (int, float, complex, str, bytes)):
        return value
    if isinstance(value, tuple):
        return tuple(_settled(each, seen) for each in value)
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(_raw(value)).hexdigest()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, (set, frozenset)):
        return sorted((_settled(each, seen) for each in value), key=repr)
    if inspect.ismodule(value):
        return value.__name__
    if isinstance(value, torch.Generator):
        return value.initial_seed()
    if isinstance(value, (list, dict)) and id(value) not in seen:
        seen[id(value)] = value
        return {key: _settled(each, seen) for key, each in value.items()} if isinstance(value, dict) else \
            [_settled(each, seen) for each in value]
    digest = hashlib.sha256()
    _add_part(digest, value, seen)
    return digest.hexdigest()


def _add_compiled(digest, code) -> None:
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):                    # a function inside the function
            _add_compiled(digest, constant)
        else:
            digest.update(repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode())


def _add_object(digest, thing, seen: dict[int, object]) -> None:
    """The methods and variables of its classes, as far as they are not PyTorch's, and what it keeps in attributes."""
    for cls in (thing if isinstance(thing, type) else type(thing)).__mro__:
        if not cls.__module__.startswith("torch") and cls is not object:
            for member in vars(cls).values():
                _add_code(digest, getattr(member, "fget", None) or member, seen)
            shared = {name: value for name, value in _public(vars(cls)).items()
                      if not callable(value) and not hasattr(value, "__get__")}
            if shared:
                digest.update(repr(_settled(shared, seen)).encode())
    if not isinstance(thing, type):
        digest.update(repr(_settled(_public(getattr(thing, "__dict__", {})), seen)).encode())


def _public(values: Mapping) -> dict:
    """In alphabetical order; whether a model stands in training mode is no setting of it."""
    return {name: values[name] for name in sorted(values) if not name.startswith("_") and name != "training"}


def provenance(device: torch.device, source: str, checksum: str, fingerprint: dict, seconds: float, **more) -> dict:
    """What one needs to know to trust or repeat a number: versions, machine, data, code and time."""
    return {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "python": platform.python_version(),
            "torch": torch.__version__, "platform": f"{platform.system()} {platform.machine()}",
            "device": device_name(device), "data_source": source, "data_checksum": checksum, "fingerprint": fingerprint,
            "commit": _commit(), "seconds": round(seconds, 1), **more}


def device_name(device: torch.device) -> str:
    """The processor's own name, with the number of threads for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The commit of the checkout, with "+" when tracked files of the package were changed since; None without git."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head.stdout.strip() + ("+" if git("diff", "HEAD", "--quiet", "--", ".").returncode else "") \
            if head.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


# Places and files

def runs_root(root: str | os.PathLike = "runs") -> Path:
    """Relative paths count from the project root, not from the notebook's or the shell's folder. The environment
    variable MAE_RUNS_DIR moves the default folder, "runs"."""
    if str(root) == "runs" and os.environ.get("MAE_RUNS_DIR"):
        root = os.environ["MAE_RUNS_DIR"]
    return project_root() / Path(root).expanduser()         # joining with an absolute path gives that path


def recorded_root() -> Path:
    return project_root() / "data" / "runs"


def write_atomic(path: Path, content: bytes) -> None:
    """All or nothing: a reader, or a crash, never sees half a file."""
    with written(path) as file:
        file.write(content)


def write_json(path: Path, value) -> None:
    write_atomic(path, _json(value))


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the run has not finished.") from None
    except ValueError:
        raise InputError(f"{path} is damaged: it is not valid JSON.") from None


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in weights.items()}))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}): it is truncated or not a "
                         "checkpoint.") from None


def _json(value) -> bytes:
    def plain(v):
        if isinstance(v, dict):
            return {k: plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v      # JSON has no NaN
    return (json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n").encode()


def _difference(saved: JobConfig, wanted: JobConfig) -> str:
    if saved.job != wanted.job:
        return f"it is a {saved.job} run"
    a, b = saved.identity(), wanted.identity()
    return next((f"{k} is {a[k]!r} there and {b[k]!r} here" for k in b if a.get(k) != b[k]), "")


def _number(text: str):
    if text == "":
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text and "e" not in text.lower() else value
