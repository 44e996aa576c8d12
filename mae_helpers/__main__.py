"""python -m mae_helpers pretrain · classify · recipe · sweep · predict · record · report · compare, from config.py."""
from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from .config import CONFIGS, PROTOCOLS, InputError, JobConfig, PretrainConfig, kinds, limits, unknown
from .distributed import Group, ProcessLost, heed_the_launcher, join
from .train import TrainingStopped

TOGETHER = ("pretrain", "classify", "recipe")       # what several processes can do together


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 with one sentence on stderr when it could not.

    Of several processes that a launcher started the first one says what all of them have to say.
    """
    group = Group()
    try:
        group = join()
        heed_the_launcher(group)
        arguments = parse(words)
        if group.size > 1 and arguments.command not in TOGETHER:
            raise InputError(f"{arguments.command} is done by one process, and a launcher started {group.size}: it is for "
                             f"{', '.join(TOGETHER)}.")
        return arguments.act(arguments) or 0
    except (InputError, TrainingStopped, ProcessLost) as error:
        told = error.told if isinstance(error, ProcessLost) else not group.first
        if not told:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:        # training needs less than figures and pages do
        if (error.name or "mae_helpers").startswith("mae_helpers"):
            raise
        print(f"error: this needs {error.name}: pip install -e '.[notebooks,dev]' in the course's folder installs it.",
              file=sys.stderr)
        return 2
    except OSError as error:                    # of a file that cannot be read or written, perhaps by one process only
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if group.first:
            print("stopped: the same command goes on where this one was.", file=sys.stderr)
        return 130


def parse(words: list[str] | None = None) -> argparse.Namespace:
    from .recipes import RECIPES
    about = "Masked autoencoders for small images: pretrain, classify, compare. COMMAND --help has the options of each."
    parser = argparse.ArgumentParser("python -m mae_helpers", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for job, cls in CONFIGS.items():
        command = _command(commands, job, (cls.__doc__ or "").splitlines()[0], lambda a: _train(a))
        _add_fields(command, cls)
        command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
        command.add_argument("--name", help="name of the run directory (from the configuration)")
        command.set_defaults(job=job)
    command = _command(commands, "recipe", "a named experiment from pretraining to the table", _recipe)
    command.add_argument("recipe", help=f"its name: {', '.join(RECIPES)}")
    command.add_argument("--stages", default="", help="only these after pretraining, with commas: knn,probe (all)")
    _add_fields(command, PretrainConfig, defaults=False)
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "sweep", "a recipe or a notebook over a grid or a list of settings, on Dask", _sweep)
    command.add_argument("file", nargs="?", help="a TOML file that says what runs and varies; without one the options do")
    command.add_argument("--name", help="name of the sweep: its folder is runs/sweeps/NAME")
    command.add_argument("--recipe", help="the recipe to run")
    command.add_argument("--stages", help="only these after pretraining, with commas: knn,probe (all)")
    command.add_argument("--notebook", help="the notebook to run instead of a recipe, by papermill")
    command.add_argument("--vary", action="append", metavar="NAME=VALUE,VALUE",
                         help="values of a classifier's field (finetune.epochs, classify.limit) or a notebook's parameter")
    _add_fields(command, PretrainConfig, several=True, defaults=False)
    command.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler (a cluster on this machine)")
    command.add_argument("--workers", type=lambda text: _value(text, int),
                         help="processes on this machine (one a GPU, or one a core up to 8)")
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "predict", "what a finished run makes of a picture file", _predict)
    command.add_argument("run", help="its folder, or its name below runs/ or data/runs/")
    command.add_argument("picture", help="an image file of any size")
    command.add_argument("--out", help="where the picture masked and filled in goes (a file below runs/predict/)")
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "record", "keep a finished run in data/runs/, or a sweep in data/studies/", _record)
    command.add_argument("run", help="its folder, or its name below runs/ or runs/sweeps/")
    command.add_argument("--weights", action="store_true", help="also keep the weights, in half precision")
    command = _command(commands, "compare", "what differs between two runs: settings, code, results", _compare)
    command.add_argument("first", metavar="RUN", help="its folder, or its name below runs/ or data/runs/")
    command.add_argument("second", metavar="RUN", help="the other one")
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "report", "a table of the finished runs of a folder: a row for each encoder", _report)
    command.add_argument("--table", metavar="FILE", help="also write every run with its settings, as .csv or .parquet")
    command.add_argument("--csv", metavar="FILE", help="also write the experiments, means over seeds, beside published ones")
    command.add_argument("--html", metavar="FILE", help="also execute notebook 10 and write it as one page")
    command.add_argument("--pdf", metavar="FILE", help="the same as a PDF, printed by an installed Chromium, Chrome or Edge")
    command.add_argument("root", nargs="?", default="runs", help="folder of the run directories (runs)")
    arguments, rest = parser.parse_known_args(words)
    if rest:
        raise InputError(_surplus(rest[0].split("=")[0], arguments.command, commands.choices))
    return arguments


def _surplus(word: str, command: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    """The sentence for a word that a command does not know."""
    if not word.startswith("-"):
        return f"{word!r} is one word too many: {command} --help says what it takes."
    options = {name: [o for o in each._option_string_actions if o.startswith("--")] for name, each in commands.items()}
    others = [name for name in options if word in options[name]]
    if others:
        return f"{command} has no option {word}; {' and '.join(others)} {'has' if len(others) == 1 else 'have'}."
    return unknown("option", word, options[command])


def _command(commands, name: str, help: str, act) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(act=act, command=name)
    return command


def _add_fields(command: argparse.ArgumentParser, cls: type[JobConfig], several: bool = False,
                defaults: bool = True) -> None:
    """An option for each field; with `several` its values are lists, of what stands between commas. Without `defaults` its
    help names none, because a recipe has its own."""
    for field in dataclasses.fields(cls):
        kind, _ = kinds(cls)[field.name]
        option = dict(dest=f"field_{field.name}", help=_help(field, defaults).replace("%", "%%"),
                      default=argparse.SUPPRESS, metavar=field.name.upper())
        flag = f"--{field.name.replace('_', '-')}"
        if kind is bool:
            option.pop("metavar")
            command.add_argument(flag, action=argparse.BooleanOptionalAction, **option)
        else:
            split = several and kind is not tuple           # the commas of a tuple are its own
            command.add_argument(flag, type=lambda text, k=kind, s=split: [_value(part, k) for part in text.split(",")]
                                 if s else _value(text, k), **option)


def _help(field: dataclasses.Field, default: bool) -> str:
    """What a field is, which values it takes, and which it has when nothing is said."""
    text, bounds = field.metadata["help"], field.metadata["bounds"]
    unsaid = [choice for choice in bounds["choices"] or () if not re.search(rf"\b{re.escape(choice)}\b", text)]
    if unsaid:
        text += ": " + ", ".join(bounds["choices"])
    if limits(bounds):
        text += f"; {limits(bounds)}"
    usual = {name: values[field.name] for name, values in PROTOCOLS.items() if field.name in values and name != "knn"}
    if default and field.default is None and usual:
        return text + " (" + ", ".join(f"{name} {value}" for name, value in usual.items()) + ")"
    return f"{text} ({field.default})" if default and field.default not in (None, "", ()) else text


def _value(text: str, kind: type):
    """What the text means; text that is no number goes on as it is, and config.py says what is wrong with it."""
    try:
        if kind is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        number = float(text) if kind in (int, float) else text
        return int(number) if kind is int and number == int(number) else number
    except (ValueError, OverflowError):
        return text


def _fields(arguments: argparse.Namespace) -> dict:
    return {k.removeprefix("field_"): v for k, v in vars(arguments).items() if k.startswith("field_")}


def _train(arguments) -> None:
    from .classify import classify
    from .pretrain import pretrain
    work = {"pretrain": pretrain, "classify": classify}[arguments.job]
    run = work(CONFIGS[arguments.job](**_fields(arguments)), arguments.root, arguments.name)
    if not join().first:
        return
    for key in ("val_loss", "psnr_db", "psnr_mean_db", "val_accuracy", "test_accuracy", "seconds"):
        if run.results.get(key) is not None:
            print(f"{key:14} {run.results[key]:.4f}")
    print(run.path)


def _recipe(arguments) -> None:
    from .recipes import run_recipe, summary, table
    stages = tuple(filter(None, arguments.stages.split(",")))
    first = run_recipe(arguments.recipe, arguments.root, stages=stages, **_fields(arguments))[0]
    if not join().first:
        return
    print(table([row for row in summary(arguments.root) if row["run"] == first.name]))


def _sweep(arguments) -> int:
    from .recipes import table
    from .runs import runs_root
    from .sweep import Sweep, run_sweep
    from .tables import plain
    asked = {key: getattr(arguments, key) for key in ("name", "recipe", "stages", "notebook", "vary")}
    asked = {key: value for key, value in asked.items() if value is not None}
    if arguments.file and (asked or _fields(arguments)):
        raise InputError(f"the sweep is in {arguments.file}: write there what the options say, or leave the file out.")
    sweep = Sweep.read(arguments.file) if arguments.file else Sweep(**_varied(asked, _fields(arguments)))
    rows = run_sweep(sweep, arguments.root, arguments.scheduler, arguments.workers)
    print(table(plain(rows)))
    print(f"the same in files: {runs_root(arguments.root) / 'sweeps' / sweep.name}")
    return int(any(row["error"] for row in rows))


def _varied(asked: dict, fields: dict) -> dict:
    """What the options of a sweep ask for: a name with several values is an axis, one with a single value is fixed."""
    values = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    for text in asked.pop("vary", []):
        name, equals, parts = text.partition("=")
        if not equals:
            raise InputError(f"--vary is {text!r}: it must be NAME=VALUE,VALUE.")
        values[name] = [_guessed(part) for part in parts.split(",")]
    stages = tuple(filter(None, asked.pop("stages", "").split(",")))
    return {"name": "", **asked, "stages": stages, "fixed": {k: v[0] for k, v in values.items() if len(v) == 1},
            "grid": {k: v for k, v in values.items() if len(v) > 1}}


def _guessed(text: str):
    """A value without a field that says its type: true, false, a number or a text."""
    try:
        return {"true": True, "false": False}.get(text.lower()) if text.lower() in ("true", "false") else int(text)
    except ValueError:
        return _value(text, float)


def _compare(arguments) -> None:
    from .recipes import table
    from .tables import compare, plain
    rows = compare(arguments.first, arguments.second, arguments.root)
    print(table(plain(rows)) if rows else "the two runs are the same.")


def _predict(arguments) -> None:
    from . import plots, predict
    from .runs import load_run, runs_root, write_atomic
    if arguments.out and Path(arguments.out).suffix.lower() != ".png":
        raise InputError(f"out is {arguments.out!r}: the picture is a PNG, so its name must end in .png.")
    run = load_run(arguments.run, arguments.root)
    picture = predict.as_the_model_sees(arguments.picture, run)
    if run.config.job == "classify":
        for name, probability in list(predict.probabilities(run, picture).items())[:5]:
            print(f"{probability:7.2%}  {name}")
    source = predict.autoencoder_of(run, arguments.root)
    if source is None:
        print("nothing is filled in: the run has no autoencoder with weights.")
        return
    picture = predict.as_the_model_sees(arguments.picture, source)      # its images may be others than the classifier's
    out = Path(arguments.out or runs_root(arguments.root) / "predict" / f"{Path(arguments.picture).stem}-{source.name}.png")
    write_atomic(out, plots.png(predict.filled_in(source, picture), dpi=150))
    print(f"masked and filled in: {out}")


def _record(arguments) -> None:
    from .recipes import record_run
    from .runs import runs_root
    from .studies import record_sweep
    if (runs_root() / "sweeps" / arguments.run / "sweep.json").is_file():
        print(f"recorded {record_sweep(arguments.run)}")
    else:
        print(f"recorded {record_run(arguments.run, arguments.weights).path}")


def _report(arguments) -> None:
    from .recipes import summary, table
    from .runs import runs_root
    if arguments.root != "runs" and not runs_root(arguments.root).is_dir():
        raise InputError(f"{arguments.root} is not a folder: give the one that holds the run directories.")
    print(table(summary(arguments.root)))
    if arguments.table:
        from .tables import gather, write_table
        write_table(gather(arguments.root), arguments.table)
    if arguments.csv:
        from .report import write_results
        write_results(arguments.csv, arguments.root)
    if arguments.html or arguments.pdf:
        from .export import export
        export(arguments.root, arguments.html, arguments.pdf)
    print(f"run directories with figures, curves and weights: {runs_root(arguments.root)}")


if __name__ == "__main__":
    sys.exit(main())
