"""The results of the course, gathered from run folders: experiments over seeds, beside what others published.

An experiment is what has the same settings on the same images; its runs differ in the seed. Each is a row, a dict:

    what                pretrain, or the protocol of a classifier
    dataset, data_source, pretrained_on     what it learned from, what these images really are, what its encoder learned from
    patch_size, mask_ratio, pretrain_epochs, epochs, images, label_fraction, embed_dim, depth, parameters
    n, seeds, encoders  how many seeds, which, and from how many pretrained encoders
    test_accuracy, test_accuracy_std, …     mean and standard deviation (n - 1, None for one seed) of each of `MEANS`
    seconds, total_seconds, device          means, without and with pretraining
    pool                what the classifier reads of the patch tokens
    unusual             what its pretraining did unlike the usual one, and a pool other than the mean, in words
    runs                its `Run`s, one for each seed
"""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence

from .config import InputError, field_names, project_root
from .metrics import mean_and_std
from .runs import Run, recorded_root, runs_root
from .studies import Study, paired, read_table, settled
from .tables import readable, write_table
from .train import tell

MEANS = ("test_accuracy", "test_accuracy_views", "val_accuracy", "train_accuracy", "psnr_db", "psnr_mean_db", "val_loss",
         "seconds")
WORDS = {"pretrain": "pretraining", "knn": "neighbours", "probe": "linear probe", "finetune": "fine-tuning",
         "scratch": "from scratch"}
# What tells experiments of one kind apart, and how it is said.
TELLING = {"patch_size": "patch {}", "mask_ratio": "{:.0%} hidden", "label_fraction": "{:.0%} of the labels",
           "images": "{:,} images", "embed_dim": "width {}", "epochs": "{} epochs", "pretrain_epochs": "after {}"}
# What a pretraining can do unlike the usual one, and how it is said; a recipe sets none of them.
UNUSUAL = {"norm_pix_loss": "normalised patches", "mask_strategy": "mask {}", "mask_schedule": "ratio {}", "variant": "{}",
           "laplacian_weight": "Laplacian {:g}", "uniformity_weight": "uniformity {:g}"}
# Where these vary, every arm paints other pixels, so its PSNR is an exam of its own.
OTHER_EXAMS = ("dataset", "patch_size", "mask_ratio", "mask_strategy")


def collect(root="runs", say: Callable[[str], None] = tell) -> list[Run]:
    """The finished runs of a folder and the recorded ones, by name. What is half-written, damaged, or another version's
    is said in one sentence and left out."""
    found: dict[str, Run] = {}
    for folder in dict.fromkeys((recorded_root(), runs_root(root))):
        def tell_short(text, here=f"{folder}{os.sep}"):         # a report may be shown to others: no folders of a machine
            say(text.replace(here, ""))
        for run in readable([Run(path.parent) for path in sorted(folder.glob("*/config.json"))], tell_short):
            try:                    # an InputError, of a file that is damaged or not there, is a ValueError
                run.metrics, run.provenance["created"], run.fingerprint["code"]
                if not all(isinstance(run.results[key], (int, float)) for key in ("seconds", "images", "parameters")):
                    raise TypeError
                found[run.name] = run
            except (ValueError, TypeError, KeyError, AttributeError):
                say(f"{run.name} is left out: a file of it is damaged, or another version's.")
    return [found[name] for name in sorted(found)]


def experiments(runs: Sequence[Run]) -> list[dict]:
    """One row per experiment, as the text above this module describes it.

    A seed, with that of the encoder, counts once: of two runs with equal settings and seeds (the code had changed between
    them) the newest.
    """
    named, groups = {run.name: run for run in runs}, {}
    for run in sorted(runs, key=lambda run: run.provenance["created"]):
        encoder = named.get(run.results.get("pretrained_run"))
        groups.setdefault(_key(run, named), {})[run.config.seed, encoder.config.seed if encoder else -1] = run
    rows = [_row([seeds[seed] for seed in sorted(seeds)], named) for seeds in groups.values()]
    return sorted(rows, key=lambda row: (
        row["dataset"] != "mnist", row["dataset"], list(WORDS).index(row["what"]), row["label_fraction"] or 0,
        row["patch_size"], row["mask_ratio"] or 0, row["images"] or 0, row["epochs"], len(row["unusual"])))


def _key(run: Run, named: dict[str, Run]) -> str:
    """All that decides what a run is, except its seed: settings, images, own parts, and the same of its encoder."""
    settings = {**run.config.identity(), "seed": None}
    parts = {part: run.fingerprint[part] for part in sorted(run.own_parts)}
    source = run.results.get("pretrained_run")
    encoder = _key(named[source], named) if source in named else source
    return json.dumps([run.config.job, settings, run.results.get("data_source"), parts, encoder], sort_keys=True)


def _row(runs: list[Run], named: dict[str, Run]) -> dict:
    config, results = runs[0].config.resolved(), [run.results for run in runs]
    sources = {each["pretrained_run"]: named.get(each["pretrained_run"]) for each in results if each.get("pretrained_run")}
    before = [run.results["seconds"] for run in sources.values() if run]
    row = {"what": getattr(config, "protocol", "pretrain"), "pretrained_on": next(iter(
        {run.config.dataset for run in sources.values() if run}), None)}
    row |= {key: results[0].get(key) for key in ("dataset", "data_source", "patch_size", "mask_ratio", "pretrain_epochs",
                                                 "epochs", "images", "label_fraction", "parameters")}
    row |= {"all_images": config.limit is None, "embed_dim": config.embed_dim, "depth": config.depth, "n": len(runs),
            "seeds": [run.config.seed for run in runs], "encoders": len(sources)}
    row["pool"] = getattr(config, "pool", None)
    row["unusual"] = _unusual(next(iter(sources.values())) or runs[0] if sources else runs[0])
    row["unusual"] += [row["pool"]] * (row["pool"] not in (None, "mean"))
    for score in MEANS:
        mean, std = mean_and_std([each[score] for each in results if each.get(score) is not None] or [math.nan])
        row |= {score: None if math.isnan(mean) else mean, f"{score}_std": None if math.isnan(std) else std}
    row["total_seconds"] = row["seconds"] + (sum(before) / len(before) if before else 0)
    return {**row, "device": "; ".join(sorted({each["device"] for each in results})), "runs": runs}


def _unusual(run: Run) -> list[str]:
    config, usual = run.config, type(run.config)
    found = [text.format(getattr(config, name)) for name, text in UNUSUAL.items()
             if name in field_names(usual) and getattr(config, name) != usual.__dataclass_fields__[name].default]
    return found + [f"own {part}" for part in sorted(run.own_parts)]


def where(rows: Sequence[dict], **wanted) -> list[dict]:
    """The rows whose fields have these values; a value of None asks for nothing."""
    return [row for row in rows if all(value is None or row[key] == value for key, value in wanted.items())]


def complete(rows: Sequence[dict], *what: str) -> list[dict]:
    """The experiments of these kinds (none: every classifier) with all images and all labels."""
    return [row for row in rows if row["all_images"] and row["label_fraction"] == 1 and (not what or row["what"] in what)]


# Words and numbers for tables

def spread(row: dict, score: str = "test_accuracy", digits: int = 2, scale: float = 100) -> str:
    """"76.84 ± 0.17": mean and standard deviation, the mean alone for one seed, "–" for a score that is not there."""
    mean, std = row[score], row[f"{score}_std"]
    if mean is None:
        return "–"
    return f"{scale * mean:.{digits}f}" + ("" if std is None else f" ± {scale * std:.{digits}f}")


def kind(row: dict) -> str:
    """What an experiment does, in words; a borrowed encoder is named, and what was unusual in its pretraining."""
    borrowed = row["pretrained_on"] not in (None, row["dataset"])
    return ", ".join([WORDS[row["what"]], *[f"encoder of {row['pretrained_on']}"] * borrowed, *row["unusual"]])


def labels(rows: Sequence[dict]) -> list[str]:
    """A short name for each row that tells it from the others: its kind, and of `TELLING` no more than is needed."""
    found = [kind(row) for row in rows]
    for key, text in TELLING.items():
        longer = [name if row[key] is None else f"{name}, {text.format(row[key])}" for name, row in zip(found, rows)]
        found = [more if len({b for a, b in zip(found, longer) if a == name}) > 1 else name
                 for name, more in zip(found, longer)]
    twice = {name for name in found if found.count(name) > 1}           # a learning rate differs, for example
    return [f"{name}, {row['runs'][0].name[-8:]}" if name in twice else name for name, row in zip(found, rows)]


def listed(rows: Sequence[dict]) -> list[dict]:
    """The experiments as a table to read: settings, then scores. Accuracies are those of the test images, in per cent;
    "with views": each answered together with changed copies of it."""
    found = []
    for row in rows:
        before = row["pretrain_epochs"] if row["encoders"] else 0
        found.append({"": kind(row), "patch": row["patch_size"], "hidden": _share(row["mask_ratio"]),
                      "images": f"{row['images']:,}", "parameters": f"{row['parameters'] / 1e6:.2f} M",
                      "epochs": _epochs(before, row["epochs"]), "n": row["n"],
                      "accuracy, %": spread(row), "with views, %": spread(row, "test_accuracy_views"),
                      "PSNR, dB": spread(row, "psnr_db", scale=1), "seconds": f"{row['seconds']:,.0f}"})
    unused = [key for key in ("accuracy, %", "with views, %", "PSNR, dB") if all(row[key] == "–" for row in found)]
    return [{key: value for key, value in row.items() if key not in unused} for row in found]


def counts(rows: Sequence[dict]) -> list[dict]:
    """How many experiments and runs there are, as a table to read."""
    found = {}
    for row in rows:
        line = found.setdefault((row["data_source"], kind(row)), {"experiments": 0, "runs": 0, "with several seeds": 0})
        line["experiments"] += 1
        line["runs"] += row["n"]
        line["with several seeds"] += row["n"] > 1
    return [{"images": images, "": what, **line} for (images, what), line in found.items()]


def by_labels(rows: Sequence[dict], dataset: str) -> list[dict]:
    """Fine-tuning and scratch by their share of the labels, as a table to read: test accuracy in per cent. Of several
    experiments with equal labels the shortest training, which has the epochs of the fine-tuning, is taken."""
    found: dict[float, dict[str, dict]] = {}
    for row in sorted(where(rows, dataset=dataset, all_images=True), key=lambda row: -row["epochs"]):
        if row["what"] in ("finetune", "scratch"):
            found.setdefault(row["label_fraction"], {})[kind(row)] = row
    names = list(dict.fromkeys(name for line in found.values() for name in line))
    return [{"labels": f"{share:.0%} ({next(iter(line.values()))['images']:,})"} |
            {name: f"{spread(line[name], digits=1)} (n = {line[name]['n']})" if name in line else "–" for name in names}
            for share, line in sorted(found.items())]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


# What others published

def published() -> list[dict]:
    """The rows of data/published_results.csv; numbers are numbers, an empty field is None."""
    return read_table(project_root() / "data" / "published_results.csv")


def beside(rows: Sequence[dict], theirs: Sequence[dict]) -> list[tuple[dict, dict | None]]:
    """Each published row with each of our experiments on the same task, or with None: same images (a copy or not, in
    colour or not), same patch size and mask ratio, an encoder of the same images, all labels."""
    found: list[tuple[dict, dict | None]] = []
    for one in theirs:
        ours = [row for row in complete(rows, *_protocol(one)) if _same_task(one, row)]
        found += [(one, row) for row in ours or [None]]
    return found


def _protocol(one: dict) -> list[str]:
    return [one["protocol"].replace("-", "")]


def _set(name: str) -> str:
    """"CIFAR-10 (grey)" as it is given to load_images."""
    return re.sub(r" \(.*\)|-", "", name).lower()


def _encoder(one: dict) -> re.Match | None:
    """The images that a borrowed encoder learned from stand in the name of the model."""
    return re.search(r"\((\S+) encoder\)", one["model"])


def _same_task(one: dict, row: dict) -> bool:
    encoder = _encoder(one)
    source = None if one["protocol"] == "scratch" else _set(encoder[1] if encoder else one["dataset"])
    return (row["dataset"], row["patch_size"], row["mask_ratio"], row["pretrained_on"]) == \
        (_set(one["dataset"]), one["patch_size"], one["mask_ratio"], source)


def compared(pairs: Sequence[tuple[dict, dict | None]]) -> list[dict]:
    """Published rows and ours as a table to read; accuracies in per cent."""
    found = []
    for one, row in pairs:
        task = WORDS[_protocol(one)[0]] + (f", {encoder[1]} encoder" if (encoder := _encoder(one)) else "")
        found.append({"published by": one["source"], "images": one["dataset"], "": task, "patch": one["patch_size"] or "?",
                      "hidden": _share(one["mask_ratio"]), "theirs": f"{one['value']:.2f}",
                      "their epochs": _epochs(one["pretrain_epochs"], one["classifier_epochs"]),
                      "ours": spread(row) if row else "not run", "n": row["n"] if row else "–",
                      "our epochs": _epochs(row["pretrain_epochs"], row["epochs"]) if row else "–"})
    return found


def differences(pairs: Sequence[tuple[dict, dict | None]]) -> list[dict]:
    """What one has to know before comparing each published row with ours, as a table to read."""
    rows = [{"published by": one["source"], "patch": one["patch_size"] or "?", "hidden": _share(one["mask_ratio"]),
             "theirs, %": f"{one['value']:.2f}", "about theirs": _about_theirs(one),
             "about ours": _about_ours(row) if row else "–"} for one, row in pairs]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _about_theirs(one: dict) -> str:
    best = "the best epoch" if one["metric"].endswith("_best") and "best epoch" not in (one["note"] or "") else ""
    return "; ".join(filter(None, [one["model"], "grey images" if "(grey)" in one["dataset"] else "", best, one["note"]]))


def _about_ours(row: dict) -> str:
    return f"width {row['embed_dim']}, {row['depth']} blocks; last epoch; {row['data_source']}"


def _epochs(before: int | None, after: int | None) -> str:
    """"12 + 6": epochs of pretraining, where there was one, and of the classifier, where it trains; ? is not known."""
    parts = ["?" if count is None else str(count) for count in (before, after) if count != 0]
    return " + ".join(parts)


def results(rows: Sequence[dict], theirs: Sequence[dict]) -> list[dict]:
    """The rows of results.csv: ours with their settings and scores, then what others published. A column is empty where
    it does not apply; accuracies are shares of 1."""
    ours = [{"source": "this course", **row, "unusual": ", ".join(row["unusual"]),
             "runs": " ".join(run.name for run in row["runs"])} for row in rows]
    for row in ours:
        row["seeds"] = " ".join(map(str, row["seeds"]))
    others = [{"source": one["source"], "what": _protocol(one)[0], "dataset": _set(one["dataset"]),
               "data_source": one["dataset"], "epochs": one["classifier_epochs"],
               "published_value": round(one["value"] / 100, 6),
               **{key: one[key] for key in ("patch_size", "mask_ratio", "pretrain_epochs", "model", "metric", "note")}}
              for one in theirs]
    return ours + others


def write_results(path, root="runs", say: Callable[[str], None] = tell) -> None:
    """All experiments and all published rows as one table, .csv or .parquet."""
    write_table(results(experiments(collect(root, say)), published()), path)


# What figures need

def lines(row: dict, score: str) -> list[tuple[list[int], list[float]]]:
    """The learning curves of an experiment: for each seed the epochs, and the score after each. A seed that was looked
    at once, after the last epoch, has no curve."""
    found = []
    for run in row["runs"]:
        points = [(each["epoch"], each[score]) for each in run.metrics if each.get(score) is not None]
        found += [([x for x, _ in points], [y for _, y in points])] if len(points) > 1 else []
    return found


def curves(rows: Sequence[dict], score: str, scale: float = 1.0) -> dict[str, list[tuple[list[int], list[float]]]]:
    """The learning curves of experiments by their `labels`, times `scale`; those without a curve are left out."""
    drawn = [(row, found) for row in rows if (found := lines(row, score))]
    return {name: [(x, [scale * value for value in y]) for x, y in found]
            for name, (_, found) in zip(labels([row for row, _ in drawn]), drawn)}


def costs(rows: Sequence[dict]) -> dict[str, list[tuple[float, list[float]]]]:
    """For each kind of classifier, with all images and labels: seconds with pretraining, and the accuracy of each seed."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for row in complete(rows):
        scores = [run.results["test_accuracy"] for run in row["runs"]]
        found.setdefault(kind(row), []).append((row["total_seconds"], scores))
    return found


def ablation(study: Study, score: str = "val_accuracy") -> tuple[list[str], dict[str, dict[tuple, dict[int, float]]]]:
    """The axes of a study without the seed, and for each stage in which arms differ {values of the axes: {seed: score}}:
    accuracies in per cent, and the PSNR in decibels where all arms paint the same pixels."""
    axes = [axis for axis in study.sweep.axes if axis != "seed"]
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in study.rows):
        arms = study.scores(stage, "psnr_db" if stage == "pretrain" else score, *axes)
        differ = len({row["run"] for row in study.rows if row["stage"] == stage}) > len(set().union(*arms.values()))
        if differ and (stage != "pretrain" or not set(axes) & set(OTHER_EXAMS)):
            scale, unit = (1, "PSNR, dB") if stage == "pretrain" else (100, f"{WORDS.get(stage, stage)}, %")
            found[unit] = {arm: {seed: scale * value for seed, value in seeds.items()} for arm, seeds in arms.items()}
    return axes, found


def standing(axes: Sequence[str], panels: dict[str, dict[tuple, dict[int, float]]]) -> list[dict]:
    """What a study found as a table to read: mean ± standard deviation of each arm, with ▲ or ▼ where it lies above or
    below the first arm by more than chance explains (paired over seeds, Holm's correction within a column)."""
    arms = list(dict.fromkeys(arm for each in panels.values() for arm in each))
    table = [{**dict(zip(axes, arm)), "n": max(len(each.get(arm, ())) for each in panels.values())} for arm in arms]
    for panel, each in panels.items():
        others = [arm for arm in arms[1:] if len(set(each.get(arm, ())) & set(each.get(arms[0], ()))) > 1]
        found = [paired(each[arm], each[arms[0]]) for arm in others]
        marks = {arm: (" ▲" if one.mean > 0 else " ▼") if holds else "" for arm, one, holds in
                 zip(others, found, settled(found))}
        for line, arm in zip(table, arms):
            mean, std = mean_and_std(each[arm].values()) if arm in each else (math.nan, math.nan)
            line[panel] = "–" if math.isnan(mean) else \
                f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}") + marks.get(arm, "")
    return table


# One data set against another

def chain(rows: Sequence[dict], dataset: str) -> dict[str, dict]:
    """The pretraining on a data set for which most is known, and what belongs to it: {"pretrain": row, "knn": row, …}.

    "scratch" had as many epochs as the fine-tuning and the same network, "scratch_long" about the time of both jobs. All
    read the mean of the patch tokens, so that sets are compared alike.
    """
    found: list[dict[str, dict]] = []
    for start in where(rows, what="pretrain", dataset=dataset, all_images=True):
        names = {run.name for run in start["runs"]}
        links = {"pretrain": start}
        for row in complete(where(rows, dataset=dataset, pool="mean"), "knn", "probe", "finetune"):
            if {run.results["pretrained_run"] for run in row["runs"]} <= names:
                links[row["what"]] = row
        if "finetune" in links:
            same = {key: start[key] for key in ("dataset", "patch_size", "embed_dim", "depth")}
            for row in complete(where(rows, **same, pool="mean"), "scratch"):
                name = "scratch" if row["epochs"] == links["finetune"]["epochs"] else "scratch_long"
                if row["epochs"] >= links["finetune"]["epochs"]:
                    links[name] = row
        found.append(links)
    return max(found, key=lambda links: (len(links), links["pretrain"]["epochs"]), default={})


def more_mistakes(accuracy: float, control: float) -> float:
    """By which share an accuracy has more mistakes than a control; negative where it has fewer."""
    return (1 - accuracy) / (1 - control) - 1


def contrast(links: dict[str, dict]) -> dict[str, str]:
    """What a chain found, as a column of a table; "–" for what is not there."""
    def score(name, key="test_accuracy"):
        return links[name][key] if name in links else None

    def told(text, function, *values):
        try:
            return "–" if None in values else text.format(function(*values))
        except ZeroDivisionError:               # nothing is a multiple of no mistakes
            return "–"
    tuned, seconds = score("finetune"), score("finetune", "total_seconds")
    column = {"images": links["pretrain"]["data_source"] if links else "–",
              "PSNR above the average answer": told("{:+.2f} dB", lambda a, b: a - b, score("pretrain", "psnr_db"),
                                                    score("pretrain", "psnr_mean_db"))}
    for name in ("knn", "probe", "finetune", "scratch", "scratch_long"):
        words = {"scratch": "from scratch, same epochs", "scratch_long": "from scratch, about the same time"}
        column[f"{words.get(name, WORDS.get(name))}, %"] = spread(links[name]) if name in links else "–"
    column |= {
        "mistakes of fine-tuning against scratch, same epochs": told("{:+.0%}", more_mistakes, tuned, score("scratch")),
        "… against scratch, about the same time": told("{:+.0%}", more_mistakes, tuned, score("scratch_long")),
        "… against the probe": told("{:+.0%}", more_mistakes, tuned, score("probe")),
        "fine-tuning above the probe, points": told("{:.1f}", lambda a, b: 100 * (a - b), tuned, score("probe")),
        "train above test after fine-tuning, points": told("{:.1f}", lambda a, b: 100 * (a - b),
                                                           score("finetune", "train_accuracy"), tuned),
        "mistakes on test, as a multiple of those on train": told("{:.1f}", lambda a, b: (1 - a) / (1 - b), tuned,
                                                                  score("finetune", "train_accuracy")),
        "seconds of pretraining and fine-tuning": told("{:,.0f}", lambda a: a, seconds),
        "seconds of the longer scratch": told("{:,.0f}", lambda a: a, score("scratch_long", "seconds"))}
    return column


def known(rows: Sequence[dict], **wanted) -> None:
    """Raise `InputError` for a filter that nothing passes, with the values that there are."""
    for key, value in wanted.items():
        there = sorted({row[key] for row in rows if row[key] is not None})
        if value is not None and value not in there:
            raise InputError(f"{key} is {value!r}: there are runs with {', '.join(map(str, there)) or 'nothing yet'}.")
