"""The second job: what is the encoder worth? Probe it, compare neighbours, fine-tune it, or train it from scratch."""
from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .augment import augment, check_augment, erase, mix
from .config import SIZES, ClassifyConfig, InputError
from .data import ImageSet, balanced_subset, load_images
from .distributed import BatchNorm, join
from .metrics import confusion_matrix, knn_predict, per_class_accuracy
from .model import Encoder, MaskedAutoencoder, ViTClassifier, pooled
from .pretrain import ImageShape, load_mae, shape_of_images
from .runs import Run, code_fingerprint, load_run, open_run, provenance, read_json, weights_fingerprint, write_json
from .train import (
    batch_sizes,
    choose_device,
    choose_precision,
    deterministic,
    evaluating,
    fit,
    kept_memory,
    seconds_before,
    smallest_pass,
    tell,
)

EVAL_BATCH = 500
WATCHED = 16                # test images whose predictions are kept at the first, the middle and the last epoch
TRAIN_SCORED = 10_000       # training images, unchanged, whose accuracy is given: as many as MNIST has test images
CODE = ("patches", "model", "data", "augment", "metrics", "distributed", "muon", "train", "classify")
_WATCHED = "checkpoint/watched.json"


def classify(config: ClassifyConfig, root="runs", name: str | None = None, say: Callable[[str], None] = tell) -> Run:
    """Train or read out a classifier into a run directory, or find that this was done before (MAE section 4.1).

    The test set is scored once, after the last epoch; with `views` it is also answered as `predict` does with them, which
    stands beside the plain accuracy. (Its first 16 images are watched at three epochs, for a picture: nothing is chosen by
    them.) Started by a launcher, the processes train one classifier together
    (distributed.py) and all return its run. Raises `InputError` before anything is written when configuration, data and
    the pretrained run do not fit together.
    """
    group = join()
    say = group.says(say)
    with group.together():
        device = group.device(choose_device(config.device))
        source = load_run(config.pretrained, root) if config.pretrained else None
        if source and not source.finished:
            raise InputError(f"{source.name} has not been trained to its end: start it again, and it goes on.")
        mae = load_mae(source) if source else None
        config = settled(config, source, mae)
        everything = load_images(config.dataset, "train", config.limit, config.image_size)
        if not everything.classes:
            raise InputError(f"{config.dataset} has no classes: a classifier needs images in one sub-folder per class.")
        if len(everything) < len(everything.classes):
            raise InputError(f"{config.dataset} has {len(everything)} training images and {len(everything.classes)} "
                             f"classes{' (limit)' if config.limit else ''}: a classifier needs an image of each.")
        train = balanced_subset(everything, max(len(everything.classes), round(len(everything) * config.label_fraction)))
        train, val = train.to(device), load_images(config.dataset, "val", None, config.image_size).to(device)
        model = build(config, train, mae).to(device)
        if config.protocol != "knn":
            check_augment(config.augment, train.in_chans)
            group.check_batches(*batch_sizes(config, len(train)))
        if config.protocol == "probe" and smallest_pass(config, len(train)) < 2:
            raise InputError(f"a batch of the {len(train)} images would be one image: a probe normalises features over the "
                             "batch, so batch_size and the rest that `accumulate` leaves must be at least 2.")
        if config.mix_prob and smallest_pass(config, len(train)) < 2 * group.size:
            each = " for each process" if group.size > 1 else ""
            raise InputError(f"a batch of the {len(train)} images would be one image{each}: mix_prob mixes two, so "
                             f"batch_size and the rest that `accumulate` leaves must be at least {2 * group.size}.")
    precision = choose_precision(config.precision, device, config.deterministic)
    fingerprint = {"code": code_fingerprint(*CODE), "data": train.checksum}
    if mae:
        fingerprint["pretrained"] = weights_fingerprint(mae)
    run = group.from_first(lambda: open_run(config, fingerprint, root, name))
    if group.from_first(lambda: run.finished):
        say(f"found the finished run {run.name}")
        return run
    say(f"{run.name} on {device.type} in {precision}{group.words}\n{len(train):,} labelled images of {train.source}")
    if mae and (mae.in_chans, mae.image_size) != (train.in_chans, train.image_size):
        say(f"the encoder is adapted from {mae.in_chans} × {mae.image_size} × {mae.image_size} to {train.in_chans} × "
            f"{train.image_size} × {train.image_size} images")
    with group.together():
        test = load_images(config.dataset, "test", None, config.image_size).to(device)
    started = time.perf_counter()
    earlier = group.from_first(lambda: seconds_before(run))
    if config.protocol != "knn":
        model = _train(model, train, val, test.subset(torch.arange(min(WATCHED, len(test)))), config, run, say)

    def finish():
        def classes_of(images):
            return predict(model, images).argmax(1)
        read = neighbours(model, train, config) if config.protocol == "knn" else classes_of
        last = run.metrics[-1] if run.metrics else {"val_accuracy": accuracy(read(val), val.labels)}
        scores = {"val_accuracy": last["val_accuracy"]}
        if config.protocol != "knn":                    # a training image would be its own nearest neighbour
            some = balanced_subset(train, min(len(train), TRAIN_SCORED))
            scores |= {"train_accuracy": accuracy(read(some), some.labels), "train_accuracy_images": len(some)}
        for name, part in (("val", val), ("test", test)) if config.views else ():
            logits = predict(model, part, config.views, config.augment, config.seed)
            scores[f"{name}_accuracy_views"] = accuracy(logits.argmax(1), part.labels)
        confusion = confusion_matrix(test.labels, read(test), len(test.classes))
        seconds = time.perf_counter() - started + earlier
        prov = provenance(device, train.source, train.checksum, fingerprint, seconds, precision=precision,
                          processes=group.size)
        run.finish({
            "job": "classify", "protocol": config.protocol, "dataset": config.dataset, "data_source": train.source,
            "image_size": model.image_size, "in_chans": model.in_chans, "classes": list(train.classes),
            "preset": config.preset, "patch_size": model.patch_size,
            "mask_ratio": source and source.config.mask_ratio,
            "mask_ratio_true": source and source.results["mask_ratio_true"],
            "pretrained_run": source and source.name, "pretrain_epochs": source.config.epochs if source else 0,
            "labels_seen": 0, "label_fraction": config.label_fraction, "images": len(train), "epochs": config.epochs
            if config.protocol != "knn" else 0, "batch_size": config.batch_size, "seed": config.seed, "pool": config.pool,
            "parameters": sum(p.numel() for p in model.parameters()), "train_loss": last.get("train_loss"),
            "val_loss": last.get("val_loss"), **scores, "test_accuracy": int(confusion.diag().sum()) / len(test),
            "test_images": len(test), "per_class_accuracy": per_class_accuracy(confusion),
            "confusion": confusion.tolist(), "watched": _watched(run), "seconds": round(seconds, 1),
            "device": prov["device"], "python": prov["python"], "torch": prov["torch"]}, prov)

    group.from_first(finish)
    return run


def settled(config: ClassifyConfig, source: Run | None, mae: MaskedAutoencoder | None) -> ClassifyConfig:
    """The configuration with data set, patch size and sizes decided: those of the pretrained run, or the preset's for
    scratch. Images of the pretrained run have its size, too; of a data set that is named, the size that is given.

    Raises `InputError` where a size is given that the pretrained encoder does not have.
    """
    if source is None:
        return config.replace(dataset=config.dataset or "mnist", patch_size=config.patch_size or 4)
    theirs = source.config.resolved()
    if config.dataset is None:
        config = config.replace(dataset=theirs.dataset, image_size=config.image_size or theirs.image_size)
    decided = {"preset": theirs.preset, "patch_size": mae.patch_size, "embed_dim": mae.embed_dim,
               "depth": len(mae.blocks), "num_heads": mae.blocks[0].attn.num_heads}
    for key in ("patch_size", *SIZES):
        if getattr(config, key) not in (None, decided[key]):
            raise InputError(f"{key} is {getattr(config, key)}: the pretrained run {source.name} has {decided[key]}.")
    return config.replace(pretrained=source.name, **decided)


def build(config: ClassifyConfig, images: ImageSet | ImageShape, mae: MaskedAutoencoder | None) -> ViTClassifier:
    """A classifier for these images, its encoder from `mae` where there is one; a probe's is frozen.

    A probe's head is a batch normalisation without weights of its own and one linear layer (MAE appendix A.1): the
    features' scales differ, and a linear layer alone would first have to learn them.
    """
    c = config.resolved()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = ViTClassifier(images.image_size, c.patch_size, images.in_chans, len(images.classes), c.embed_dim,
                              c.depth, c.num_heads, pool=c.pool, drop_path=c.drop_path)
    if mae is not None:
        model.load_encoder(mae)
    if config.protocol in ("probe", "knn"):
        model.requires_grad_(False)
    if config.protocol == "probe":
        norm = BatchNorm(model.head.in_features, affine=False, eps=1e-6)
        model.head = nn.Sequential(norm, model.head).requires_grad_(True)
    return model


def load_classifier(run: Run, which: str = "last") -> ViTClassifier:
    """The classifier of a finished run, in evaluation mode. `InputError` for another kind of run or other weights."""
    if run.config.job != "classify" or run.config.protocol == "knn":
        raise InputError(f"the run {run.name} has no classifier: a probe, finetune or scratch run is needed here.")
    model = build(run.config, shape_of_images(run), None)
    try:
        model.load_state_dict(run.weights(which))
    except RuntimeError:
        raise InputError(f"the weights of {run.name} belong to another configuration: names or shapes differ.") from None
    return model.eval()


def predict(model: ViTClassifier, images: ImageSet, views: int = 0, change: str = "none", seed: int = 0) -> torch.Tensor:
    """Logits [N, classes] for whole images, computed in fp32; with `views`, the mean over each image and that many
    randomly changed copies of it (test-time augmentation; Krizhevsky et al. 2012, section 4.1, with crops)."""
    generator = torch.Generator(images.images.device).manual_seed(seed)

    def answer(part):
        total = model(images.normalize(part))
        for _ in range(views):
            total = total + model(images.normalize(augment(change, part, generator)))
        return total / (1 + views)
    return _in_batches(model, answer, images)


def features(model: Encoder, images: ImageSet, pool: str = "mean") -> torch.Tensor:
    """One vector per image [N, D] from any encoder, a masked autoencoder's or a classifier's; nothing is masked."""
    return _in_batches(model, lambda part: pooled(model.encode(images.normalize(part)), pool), images)


def neighbours(model: Encoder, train: ImageSet, config: ClassifyConfig) -> Callable[[ImageSet], torch.Tensor]:
    """A function that gives the class [N] of each image of a set by its nearest neighbours among the training images."""
    known = features(model, train, config.pool)

    def read(images):
        new = features(model, images, config.pool)
        return knn_predict(known, train.labels, new, len(train.classes), config.knn_k, config.knn_temperature)
    return read


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of predictions [N] that equal the labels [N]."""
    return int((predictions == labels).sum()) / len(labels)


def _in_batches(model: nn.Module, function: Callable, images: ImageSet) -> torch.Tensor:
    with evaluating(model), kept_memory(images.images.device):
        return torch.cat([function(part) for part in images.images.split(EVAL_BATCH)])


def _train(model: ViTClassifier, train: ImageSet, val: ImageSet, watched: ImageSet, config: ClassifyConfig, run: Run,
           say) -> nn.Module:
    c = config.resolved()
    kept = {1, (c.epochs + 1) // 2, c.epochs}
    # A frozen encoder makes the same features of the same images every time: once is enough.
    still = c.protocol == "probe" and c.augment == "none" and not c.erase_prob and not c.mix_prob
    known, seen = (features(model, part, c.pool) if still else part.images for part in (train, val))

    def step(images, labels, generator, progress):
        if still:
            return scored(model.head(images), labels, labels)
        images, targets = augment(c.augment, images, generator), labels
        if c.erase_prob:
            images = erase(images, c.erase_prob, generator)
        if c.mix_prob:
            images, targets = mix(images, F.one_hot(labels, len(train.classes)).float(), c.mix_prob, generator)
        return scored(model(train.normalize(images)), targets, labels)

    def scored(logits, targets, labels):
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=c.label_smoothing)
        return loss, {"train_accuracy": (logits.argmax(1) == labels).float().mean()}     # of the augmented images

    def evaluate(model, epoch):
        logits = model.head(seen) if still else predict(model, val)
        return {"val_loss": float(F.cross_entropy(logits, val.labels)),
                "val_accuracy": accuracy(logits.argmax(1), val.labels)}

    def after_epoch(model, epoch):
        if epoch in kept:           # a file at once, because a resumed run has forgotten what it saw before
            sure, guess = predict(model, watched).softmax(1).max(1)
            write_json(run.path / _WATCHED, {**_watched(run), str(epoch): {
                "predicted": guess.tolist(), "probability": [round(p, 4) for p in sure.tolist()]}})

    with deterministic(c.deterministic):
        return fit(model, step, known, train.labels, c, run, evaluate, after_epoch, say)


def _watched(run: Run) -> dict:
    """For each kept epoch the predicted class and its probability, for the first `WATCHED` test images."""
    path = run.path / _WATCHED
    return read_json(path) if path.exists() else {}

