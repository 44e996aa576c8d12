"""python -m mae_helpers pretrain · classify · recipe · predict · record · report: all options come from config.py."""
from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from .config import CONFIGS, InputError, JobConfig, PretrainConfig, kinds, unknown
from .train import TrainingStopped


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 with one sentence on stderr when it could not."""
    try:
        arguments = parse(words)
        return arguments.act(arguments) or 0
    except (InputError, TrainingStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on where this one was.", file=sys.stderr)
        return 130


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m mae_helpers", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for job, cls in CONFIGS.items():
        command = _command(commands, job, (cls.__doc__ or "").splitlines()[0], lambda a: _train(a))
        _add_fields(command, cls)
        command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
        command.add_argument("--name", help="name of the run directory (from the configuration)")
        command.set_defaults(job=job)
    command = _command(commands, "recipe", "a named experiment from pretraining to the table", _recipe)
    command.add_argument("recipe", help="its name; any wrong one lists them")
    command.add_argument("--stages", default="", help="only these after pretraining, with commas: knn,probe (all)")
    _add_fields(command, PretrainConfig)
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "predict", "what a finished run makes of a picture file", _predict)
    command.add_argument("run", help="its folder, or its name below runs/ or data/runs/")
    command.add_argument("picture", help="an image file of any size")
    command.add_argument("--out", help="where the picture masked and filled in goes (a file below runs/predict/)")
    command.add_argument("--root", default="runs", help="folder of the run directories (runs)")
    command = _command(commands, "record", "keep a finished run in data/runs/, for README and notebooks", _record)
    command.add_argument("run", help="its folder, or its name below runs/")
    command.add_argument("--weights", action="store_true", help="also keep the weights, in half precision")
    command = _command(commands, "report", "one table of all finished runs of a folder", _report)
    command.add_argument("root", nargs="?", default="runs", help="folder of the run directories (runs)")
    arguments, rest = parser.parse_known_args(words)
    if rest:
        known = [o for c in commands.choices.values() for o in c._option_string_actions if o.startswith("--")]
        raise InputError(unknown("option", rest[0].split("=")[0], dict.fromkeys(known)))
    return arguments


def _command(commands, name: str, help: str, act) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(act=act)
    return command


def _add_fields(command: argparse.ArgumentParser, cls: type[JobConfig]) -> None:
    for field in dataclasses.fields(cls):
        kind, _ = kinds(cls)[field.name]
        default = "" if field.default is None else f" ({field.default})"
        option = dict(dest=f"field_{field.name}", help=(field.metadata["help"] + default).replace("%", "%%"),
                      default=argparse.SUPPRESS, metavar=field.name.upper())
        flag = f"--{field.name.replace('_', '-')}"
        if kind is bool:
            option.pop("metavar")
            command.add_argument(flag, action=argparse.BooleanOptionalAction, **option)
        else:
            command.add_argument(flag, type=lambda text, k=kind: _value(text, k), **option)


def _value(text: str, kind: type):
    """What the text means; text that is no number goes on as it is, and config.py says what is wrong with it."""
    try:
        if kind is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        number = float(text) if kind in (int, float) else text
        return int(number) if kind is int and number == int(number) else number
    except ValueError:
        return text


def _fields(arguments: argparse.Namespace) -> dict:
    return {k.removeprefix("field_"): v for k, v in vars(arguments).items() if k.startswith("field_")}


def _train(arguments) -> None:
    from .classify import classify
    from .pretrain import pretrain
    work = {"pretrain": pretrain, "classify": classify}[arguments.job]
    run = work(CONFIGS[arguments.job](**_fields(arguments)), arguments.root, arguments.name)
    for key in ("val_loss", "psnr_db", "psnr_mean_db", "val_accuracy", "test_accuracy", "seconds"):
        if run.results.get(key) is not None:
            print(f"{key:14} {run.results[key]:.4f}")
    print(run.path)


def _recipe(arguments) -> None:
    from .recipes import run_recipe, summary, table
    stages = tuple(filter(None, arguments.stages.split(",")))
    first = run_recipe(arguments.recipe, arguments.root, stages=stages, **_fields(arguments))[0]
    print(table([row for row in summary(arguments.root) if row["run"] == first.name]))


def _predict(arguments) -> None:
    from . import plots, predict
    from .runs import load_run, runs_root, write_atomic
    run = load_run(arguments.run, arguments.root)
    picture = predict.as_the_model_sees(arguments.picture, run)
    if run.config.job == "classify":
        for name, probability in list(predict.probabilities(run, picture).items())[:5]:
            print(f"{probability:7.2%}  {name}")
    source = predict.autoencoder_of(run, arguments.root)
    if source is None:
        print("nothing is filled in: the run has no autoencoder with weights.")
        return
    out = Path(arguments.out or runs_root(arguments.root) / "predict" / f"{Path(arguments.picture).stem}-{source.name}.png")
    write_atomic(out, plots.png(predict.filled_in(source, picture), dpi=150))
    print(f"masked and filled in: {out}")


def _record(arguments) -> None:
    from .recipes import record_run
    run = record_run(arguments.run, arguments.weights)
    print(f"recorded {run.path}")


def _report(arguments) -> None:
    from .recipes import summary, table
    from .runs import runs_root
    print(table(summary(arguments.root)))
    print(f"run directories with figures, curves and weights: {runs_root(arguments.root)}")


if __name__ == "__main__":
    sys.exit(main())
