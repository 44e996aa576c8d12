"""Named experiments: what the configs are set to, and the chain pretrain → kNN → probe → fine-tune → scratch."""
from __future__ import annotations

from collections.abc import Callable

from .classify import accuracy, classify, load_classifier, predict
from .config import SIZES, ClassifyConfig, InputError, PretrainConfig, check_names, unknown
from .data import load_images
from .distributed import join
from .pretrain import evaluate, load_mae, pretrain
from .runs import Run, all_runs, load_run, record, recorded_root
from .tables import readable
from .train import tell

QUICK = dict(batch_size=128, base_lr=5e-3, augment="none", label_smoothing=0.0, drop_path=0.0)
FULL = dict(batch_size=64, optimizer="muon", base_lr=1.6e-2, drop_path=0.0, ema_decay=0.995, views=16)
# Photographs: strong random changes, mixed images, and a long running mean of the weights.
STRONG = dict(augment="rand_augment", erase_prob=0.25, mix_prob=0.5, drop_path=0.1, warmup_epochs=5, ema_decay=0.999)
LIGHT = dict(augment="crop_flip", label_smoothing=0.1, optimizer="muon")
# One entry a job: the fields that differ from the defaults of config.py. Those of MNIST and cifar10-cpu were chosen on
# validation images; the others have not been run yet, and the times that their comments name are what they are meant to
# take. A name that is no protocol's is another run of the protocol it gives.
RECIPES: dict[str, dict[str, dict]] = {
    # Two laptop cores, minutes: few large patches, few epochs. No augmentation, because four epochs are too few to learn
    # the digits by heart and augmented ones take longer to learn at all (after three, 98.4 against 98.0 % of val).
    "mnist-quick": {
        "pretrain": dict(dataset="mnist", patch_size=7, epochs=6, base_lr=2e-3),
        "knn": dict(),
        "probe": dict(epochs=2, augment="none"),
        "finetune": dict(epochs=4, **QUICK, layer_decay=0.85),
        "scratch": dict(epochs=4, **QUICK),
        "scratch_long": dict(protocol="scratch", epochs=8, **QUICK),
    },
    # For a GPU, or a patient laptop: smaller patches, a second decoder block, long training. Batches of 64 learn more
    # from the same images than 128, and a second decoder block pays (val loss after three epochs on 20,000 images, with
    # five encoder blocks: batch 128 .618, 64 .597, with twice the learning rate .556, and two decoder blocks .522).
    # Fine-tuning with Muon names 99.44 % of val after six epochs, as with AdamW after eight; the mean over 16 changed copies
    # of each digit makes it 99.68 %. Scratch has the same settings, without trials of its own.
    "mnist-full": {
        "pretrain": dict(dataset="mnist", patch_size=4, decoder_depth=2, epochs=40, batch_size=64, base_lr=8e-3),
        "knn": dict(),
        "probe": dict(epochs=5),
        "finetune": dict(epochs=10, **FULL, layer_decay=0.85),
        "scratch": dict(epochs=10, **FULL),
        "scratch_long": dict(protocol="scratch", epochs=56, **FULL),
    },
    # Two laptop cores, minutes: to see every step work on photographs, not to learn much. Our own settings, untuned.
    "cifar10-quick": {
        "pretrain": dict(dataset="cifar10", patch_size=8, limit=2_000, epochs=4, batch_size=64, optimizer="muon",
                         base_lr=3.2e-2),
        "knn": dict(),
        "probe": dict(epochs=3, augment="none"),
        "finetune": dict(epochs=3, batch_size=64, base_lr=1.6e-2, layer_decay=0.85, **LIGHT),
        "scratch": dict(epochs=3, batch_size=64, base_lr=1.6e-2, **LIGHT),
        "scratch_long": dict(protocol="scratch", epochs=5, batch_size=64, base_lr=1.6e-2, **LIGHT),
    },
    # One slow core took two hours. Muon, because after four epochs on 10,000 images scratch names 53 % of val with it and
    # 43 % with AdamW; there fine-tuning gains from the full rate in all layers (60.2 %, with half of it 54.0 %). Frozen
    # features are read twice, as one mean and as one for each quarter of the image.
    "cifar10-cpu": {
        "pretrain": dict(dataset="cifar10", decoder_embed_dim=96, decoder_depth=2, decoder_num_heads=3, epochs=12,
                         batch_size=64, optimizer="muon", base_lr=3.2e-2, augment="resized_crop_flip"),
        "knn": dict(),
        "probe": dict(epochs=20, augment="none"),
        "knn_quadrants": dict(protocol="knn", pool="quadrants"),
        "probe_quadrants": dict(protocol="probe", epochs=20, augment="none", pool="quadrants"),
        "finetune": dict(epochs=6, batch_size=64, base_lr=1.6e-2, layer_decay=1.0, **LIGHT),
        "scratch": dict(epochs=6, batch_size=64, base_lr=1.6e-2, **LIGHT),
        "scratch_long": dict(protocol="scratch", epochs=18, batch_size=64, base_lr=1.6e-2, **LIGHT),
    },
    # One large GPU, 25 minutes; like the next two put together from settings that others published.
    "cifar10-full": {
        "pretrain": dict(dataset="cifar10", preset="vit_tiny", decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4,
                         epochs=1_400, batch_size=1_024, base_lr=2.5e-4, warmup_epochs=40, norm_pix_loss=True,
                         augment="resized_crop_flip", eval_every=20),
        "knn": dict(),
        "probe": dict(epochs=50, batch_size=1_024, augment="crop_flip", eval_every=5),
        "finetune": dict(epochs=300, batch_size=512, base_lr=7.5e-4, layer_decay=0.75, eval_every=5, **STRONG),
        "scratch": dict(epochs=300, batch_size=512, base_lr=7.5e-4, eval_every=5, **STRONG),
        "scratch_long": dict(protocol="scratch", epochs=700, batch_size=512, base_lr=7.5e-4, eval_every=5, **STRONG),
    },
    # The same GPU, a minute and a half.
    "cifar10-90s": {
        "pretrain": dict(dataset="cifar10", preset="vit_tiny", depth=9, decoder_embed_dim=128, decoder_depth=2,
                         decoder_num_heads=4, epochs=90, batch_size=512, base_lr=1e-3, warmup_epochs=5, norm_pix_loss=True,
                         augment="resized_crop_flip", eval_every=30),
        "knn": dict(),
        "probe": dict(epochs=20, batch_size=1_024, augment="crop_flip", eval_every=20),
        "finetune": dict(epochs=50, batch_size=512, base_lr=7.5e-4, layer_decay=0.8, augment="rand_augment", mix_prob=0.5,
                         ema_decay=0.998, eval_every=10),
        "scratch": dict(epochs=50, batch_size=512, base_lr=7.5e-4, augment="rand_augment", mix_prob=0.5, ema_decay=0.998,
                        eval_every=10),
    },
    # 96×96 images: learn from the 100,000 without labels, then from 4,500 with them.
    "stl10": {
        "pretrain": dict(dataset="stl10", split="unlabeled", preset="vit_tiny", patch_size=8, decoder_embed_dim=128,
                         decoder_depth=2, decoder_num_heads=4, epochs=100, batch_size=512, base_lr=5e-4, warmup_epochs=5,
                         norm_pix_loss=True, augment="resized_crop_flip", eval_every=5),
        "knn": dict(),
        "probe": dict(epochs=50, augment="crop_flip", eval_every=5),
        "finetune": dict(epochs=100, batch_size=128, base_lr=1e-3, layer_decay=0.75, eval_every=5, **STRONG),
        "scratch": dict(epochs=100, batch_size=128, base_lr=1e-3, eval_every=5, **STRONG),
    },
    # Published runs with as many epochs and patches of 2; what else they set is not all known, and filled in by us.
    "repro-cifar-150-50": {
        "pretrain": dict(dataset="cifar10", preset="vit_tiny", patch_size=2, epochs=150, batch_size=512,
                         base_lr=5e-4, warmup_epochs=10, eval_every=10),
        "knn": dict(),
        "probe": dict(epochs=50, batch_size=512, augment="none"),
        "finetune": dict(epochs=50, batch_size=512, base_lr=5e-4, augment="none", warmup_epochs=5),
        "scratch": dict(epochs=50, batch_size=512, base_lr=5e-4, augment="none", warmup_epochs=5),
    },
    "repro-cifar-600-100": {
        "pretrain": dict(dataset="cifar10", preset="vit_tiny", patch_size=2, epochs=600, batch_size=512,
                         base_lr=5e-4, warmup_epochs=20, eval_every=20),
        "knn": dict(),
        "probe": dict(epochs=100, batch_size=512, augment="none", eval_every=5),
        "finetune": dict(epochs=100, batch_size=512, base_lr=5e-4, augment="none", warmup_epochs=5),
        "scratch": dict(epochs=100, batch_size=512, base_lr=5e-4, augment="none", warmup_epochs=5),
    },
    # An encoder of digits moved to photographs, as in a published report: 20 epochs, batches of 64, AdamW at 1e-3.
    "repro-transfer-20": {
        "pretrain": dict(dataset="mnist", preset="vit_tiny", epochs=50, batch_size=512, base_lr=5e-4, warmup_epochs=5),
        "finetune": dict(dataset="cifar10", epochs=20, batch_size=64, base_lr=4e-3, layer_decay=1.0, augment="none"),
        "scratch": dict(dataset="cifar10", epochs=20, batch_size=64, base_lr=4e-3, augment="none"),
    },
}
QUADRANTS = ("knn, quadrants", "probe, quadrants")
SCORES = ("knn", "probe", *QUADRANTS, "finetune", "scratch")           # columns of a summary
# What all jobs of a recipe have in common.
SHARED = ("dataset", "image_size", "limit", "seed", "device", "precision", "compile")


def pretrain_config(recipe: str, **changes) -> PretrainConfig:
    """The recipe's pretraining configuration with some fields changed."""
    check_names(changes, PretrainConfig)
    return PretrainConfig(**{**_recipe(recipe)["pretrain"], **changes})


def classify_config(recipe: str, stage: str, pretrained: Run, **changes) -> ClassifyConfig:
    """The recipe's configuration for a stage on the encoder of a run; scratch gets the same sizes and data.

    A stage is a protocol, or one of the recipe's own names: "scratch_long" is scratch with the time of both
    jobs, "probe_quadrants" a probe that reads each quarter of the image.
    """
    check_names(changes, ClassifyConfig)
    stages = {k: v for k, v in _recipe(recipe).items() if k != "pretrain"}
    if stage not in stages:
        raise InputError(unknown("stage", stage, stages))
    protocol = stages[stage].get("protocol", stage)
    theirs = pretrained.config.resolved()
    common = {k: getattr(theirs, k) for k in SHARED}
    if protocol == "scratch":
        common.update({k: getattr(theirs, k) for k in ("preset", "patch_size", *SIZES)})
    else:
        common["pretrained"] = str(pretrained.path)
    return ClassifyConfig(**{"protocol": protocol, **common, **stages[stage], **changes})


def run_recipe(name: str, root="runs", say: Callable[[str], None] = tell, stages: tuple[str, ...] = (),
               **changes) -> list[Run]:
    """All jobs of a recipe, or pretraining and the named stages. Stopped anywhere and started again, it goes on there.

    `changes` are fields of `PretrainConfig`; those in `SHARED` reach the classifiers through the pretraining run. Raises
    `InputError` before anything is trained for a stage that the recipe does not have, and for labelled images that a stage
    will need and that are not there.
    """
    known = [stage for stage in _recipe(name) if stage != "pretrain"]
    for stage in stages:
        if stage not in known:
            raise InputError(unknown("stage", stage, known))
    wanted, config = [stage for stage in known if stage in (stages or known)], pretrain_config(name, **changes)
    with join().together():
        for stage in wanted:
            asked = {**vars(config), **_recipe(name)[stage]}
            load_images(asked["dataset"], "train", asked["limit"], asked["image_size"])
    first = pretrain(config, root, say=say)
    return [first, *(classify(classify_config(name, stage, first), root, say=say) for stage in wanted)]


def _recipe(name: str) -> dict[str, dict]:
    if name not in RECIPES:
        raise InputError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def summary(root="runs", say: Callable[[str], None] = tell) -> list[dict]:
    """One row per pretraining run below `root` and data set of its classifiers, with their test accuracies.

    An accuracy is the mean over the runs that differ in nothing but their seed. A scratch run belongs to a pretraining run
    when data, patch size and encoder are the same, and its seed is that of a fine-tuning run. "scratch" had as many
    epochs as a fine-tuning run of that encoder, "scratch, long" more; "probe, quadrants" is a probe that reads quarters of
    the image, and stands only where there is one. "seconds" are those of the pretraining and of the runs whose accuracies
    stand in the row. Runs with a part of the labels are another experiment. A run whose files are damaged, or another
    version's, is said and left out.
    """
    runs = readable(all_runs(root), say)
    classifiers = [run for run in runs if run.config.job == "classify" and run.config.label_fraction == 1]
    rows = []
    for run in (run for run in runs if run.config.job == "pretrain"):
        mine = [r for r in classifiers if r.results["pretrained_run"] == run.name]
        rows += [_row(run, [r for r in mine if r.config.dataset == dataset], classifiers, dataset)
                 for dataset in dict.fromkeys([run.config.dataset, *(r.config.dataset for r in mine)])]
    unused = {name for name in QUADRANTS if all(row[name] is None for row in rows)}
    return [{name: value for name, value in row.items() if name not in unused} for row in rows]


def _row(run: Run, mine: list[Run], classifiers: list[Run], dataset: str) -> dict:
    """`mine` are the classifiers of this encoder on this data set, among all `classifiers` are their controls."""
    result = run.results
    tuned = {r.config.epochs for r in mine if r.config.protocol == "finetune"}
    seeds = {r.config.seed for r in mine if r.config.protocol == "finetune"} or {run.config.seed}
    controls = [r for r in classifiers if r.config.protocol == "scratch" and r.config.dataset == dataset
                and r.config.seed in seeds and _same_start(r.config, run.config)]
    shown, mine = [run], mine + [r for r in controls if r.config.epochs in tuned]
    data = dict.fromkeys([result["data_source"], *(r.results["data_source"] for r in mine)])
    row = {"run": run.name, "data": " → ".join(data), "val loss": result["val_loss"],
           "PSNR dB": result["psnr_db"], "PSNR of the mean": result["psnr_mean_db"]}

    def longest(found: list[Run]) -> Mean | None:
        if not found:
            return None
        last = max(found, key=lambda r: r.config.epochs)
        alike = [r for r in found if _but_seed(r.config) == _but_seed(last.config)]
        shown.extend(alike)
        return Mean([r.results["test_accuracy"] for r in alike])
    for name in SCORES:
        found = [r for r in mine if name == r.config.protocol + ", quadrants" * (r.config.pool == "quadrants")]
        row[name] = longest(found)
    row["scratch, long"] = longest([r for r in controls if tuned and r.config.epochs > max(tuned)])
    return {**row, "seconds": sum(r.results["seconds"] for r in shown)}


def _same_start(a, b) -> bool:
    a, b = a.resolved(), b.resolved()
    return all(getattr(a, k) == getattr(b, k) for k in ("limit", "image_size", "patch_size", *SIZES))


def _but_seed(config: ClassifyConfig) -> dict:
    return {**config.identity(), "seed": None}


class Mean(float):
    """The mean of some numbers, which knows of how many."""

    def __new__(cls, values: list[float]):
        mean = super().__new__(cls, sum(values) / len(values))
        mean.n = len(values)
        return mean


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table; accuracies in per cent, with n where they are means, "–" where there is nothing."""
    if not rows:
        return "no finished pretraining runs"

    def cell(key, value):
        if value is None:
            return "–"
        if key in (*SCORES, "scratch, long"):
            return f"{value:.2%}" + (f" (n = {value.n})" if getattr(value, "n", 1) > 1 else "")
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
    if run.recorded:
        raise InputError(f"the run {run.name} is recorded already, and there is none of that name below {root}.")
    if not weights and (recorded_root() / run.name / "model.safetensors").exists():
        raise InputError(f"the run {run.name} is recorded with its weights: with --weights they are recorded again.")
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
