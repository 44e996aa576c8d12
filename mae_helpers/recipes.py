"""Named experiments: what the configs are set to, and the chain pretrain → kNN → probe → fine-tune → scratch."""
from __future__ import annotations

from collections.abc import Callable

from .classify import accuracy, classify, load_classifier, predict
from .config import SIZES, ClassifyConfig, InputError, PretrainConfig, check_names, unknown
from .data import load_images
from .pretrain import evaluate, load_mae, pretrain
from .runs import Run, all_runs, load_run, record, recorded_root
from .train import tell

QUICK = dict(batch_size=128, base_lr=5e-3, augment="none", label_smoothing=0.0, drop_path=0.0)
FULL = dict(batch_size=128, base_lr=8e-3, drop_path=0.0)
# One entry a job: the fields that differ from the defaults of config.py. Chosen on validation images.
RECIPES: dict[str, dict[str, dict]] = {
    # Two laptop cores, minutes: few large patches, few epochs. No augmentation, because four epochs are too few to learn
    # the digits by heart and augmented ones take longer to learn at all (after three, 98.4 against 98.0 % of val).
    "mnist-quick": {
        "pretrain": dict(dataset="mnist", patch_size=7, epochs=6, base_lr=2e-3),
        "knn": dict(),
        "probe": dict(epochs=2, augment="none"),
        "finetune": dict(epochs=4, **QUICK, layer_decay=0.85),
        "scratch": dict(epochs=4, **QUICK),
    },
    # For a GPU, or a patient laptop: smaller patches, a second decoder block, long training. Batches of 64 learn more
    # from the same images than 128, and a second decoder block pays (val loss after three epochs on 20,000 images, with
    # five encoder blocks: batch 128 .618, 64 .597, with twice the learning rate .556, and two decoder blocks .522).
    "mnist-full": {
        "pretrain": dict(dataset="mnist", patch_size=4, decoder_depth=2, epochs=40, batch_size=64, base_lr=8e-3),
        "knn": dict(),
        "probe": dict(epochs=5),
        "finetune": dict(epochs=8, **FULL, layer_decay=0.85),
        "scratch": dict(epochs=8, **FULL),
    },
}
# What all jobs of a recipe have in common.
SHARED = ("dataset", "image_size", "limit", "seed", "device", "precision", "compile")


def pretrain_config(recipe: str, **changes) -> PretrainConfig:
    """The recipe's pretraining configuration with some fields changed."""
    check_names(changes, PretrainConfig)
    return PretrainConfig(**{**_recipe(recipe)["pretrain"], **changes})


def classify_config(recipe: str, protocol: str, pretrained: Run, **changes) -> ClassifyConfig:
    """The recipe's configuration for a protocol on the encoder of a run; scratch gets the same sizes and data."""
    check_names(changes, ClassifyConfig)
    stages = {k: v for k, v in _recipe(recipe).items() if k != "pretrain"}
    if protocol not in stages:
        raise InputError(unknown("protocol", protocol, stages))
    theirs = pretrained.config.resolved()
    common = {k: getattr(theirs, k) for k in SHARED}
    if protocol == "scratch":
        common.update({k: getattr(theirs, k) for k in ("preset", "patch_size", *SIZES)})
    else:
        common["pretrained"] = str(pretrained.path)
    return ClassifyConfig(**{"protocol": protocol, **common, **stages[protocol], **changes})


def run_recipe(name: str, root="runs", say: Callable[[str], None] = tell, **changes) -> list[Run]:
    """All jobs of a recipe, one after another. Stopped at any point and started again, it goes on where it was.

    `changes` are fields of `PretrainConfig`; those in `SHARED` reach the classifiers through the pretraining run.
    """
    first = pretrain(pretrain_config(name, **changes), root, say=say)
    runs = [first]
    for protocol in _recipe(name):
        if protocol != "pretrain":
            runs.append(classify(classify_config(name, protocol, first), root, say=say))
    return runs


def _recipe(name: str) -> dict[str, dict]:
    if name not in RECIPES:
        raise InputError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def summary(root="runs") -> list[dict]:
    """One row per pretraining run below `root`, with the test accuracies of the classifiers that belong to it.

    A scratch run belongs to a pretraining run when data, seed, patch size and encoder are the same, and as many
    epochs were trained as in a fine-tuning run of that encoder. Runs with a part of the labels are another experiment.
    """
    runs = all_runs(root)
    classifiers = [run for run in runs if run.config.job == "classify" and run.config.label_fraction == 1]
    return [_row(run, classifiers) for run in runs if run.config.job == "pretrain"]


def _row(run: Run, classifiers: list[Run]) -> dict:
    result = run.results
    mine = [r for r in classifiers if r.results["pretrained_run"] == run.name]
    tuned = {r.config.epochs for r in mine if r.config.protocol == "finetune"}
    mine += [r for r in classifiers if r.config.protocol == "scratch" and r.config.epochs in tuned
             and _same_start(r.config, run.config)]
    row = {"run": run.name, "data": result["data_source"], "val loss": result["val_loss"],
           "PSNR dB": result["psnr_db"], "PSNR of the mean": result["psnr_mean_db"]}
    for protocol in ("knn", "probe", "finetune", "scratch"):
        found = [r for r in mine if r.config.protocol == protocol]
        row[protocol] = max(found, key=lambda r: r.config.epochs).results["test_accuracy"] if found else None
    return {**row, "seconds": result["seconds"] + sum(r.results["seconds"] for r in mine)}


def _same_start(a, b) -> bool:
    a, b = a.resolved(), b.resolved()
    return all(getattr(a, k) == getattr(b, k) for k in ("dataset", "limit", "seed", "patch_size", *SIZES))


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table; accuracies in per cent, "–" where there is nothing."""
    if not rows:
        return "no finished pretraining runs"

    def cell(key, value):
        if value is None:
            return "–"
        if key in ("knn", "probe", "finetune", "scratch"):
            return f"{value:.2%}"
        return f"{value:.0f}" if key == "seconds" else f"{value:.3g}" if key == "val loss" else \
            f"{value:.2f}" if isinstance(value, float) else str(value)
    cells = [[str(k) for k in rows[0]], *([cell(k, v) for k, v in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def record_run(where, weights: bool = False, root="runs") -> Run:
    """Copy a finished run to data/runs/. With `weights` they are kept in half precision, and what they reach like that
    is measured again and stands in the results as `as_stored`."""
    run = load_run(where, root)
    if not run.finished:
        raise InputError(f"the run {run.name} has not finished: start the same job again and it goes on.")
    results = run.results
    if results["pretrained_run"] is None or (recorded_root() / results["pretrained_run"]).exists():
        return record(run, {**results, "as_stored": _as_stored(run) if weights else None}, weights)
    raise InputError(f"the run {run.name} starts from {results['pretrained_run']}: record that one first.")


def _as_stored(run: Run) -> dict:
    """The scores of the weights rounded to half precision, computed in single precision."""
    model = load_mae(run) if run.config.job == "pretrain" else load_classifier(run)
    model.half().float()
    c = run.config
    if c.job == "pretrain":
        return evaluate(model, load_images(c.dataset, "val", None, c.image_size), c.mask_ratio, c.mask_strategy)
    test = load_images(c.dataset, "test", None, c.image_size)
    return {"test_accuracy": accuracy(predict(model, test).argmax(1), test.labels)}
