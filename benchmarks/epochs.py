"""Whole epochs, data and augmentation included: this package's training loop and the classic one, in turns."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mae_helpers import ClassifyConfig, ImageSet, MaskedAutoencoder, PretrainConfig, ViTClassifier
from mae_helpers.augment import augment
from mae_helpers.runs import open_run
from mae_helpers.train import choose_precision, fit

from . import classic
from .contestants import Task, choose_attention
from .timing import alternate, median, seconds, speedup, spread, synchronize

AUGMENT = "crop_flip"       # both loops: pad by 4, cut out, mirror


def image_set(count: int, side: int, device: torch.device) -> ImageSet:
    """Random pixels in memory, as many as asked for: a subset the size of which is said with the result."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return ImageSet(images, labels, tuple("0123456789"), (0.5,) * 3, (0.5,) * 3, "random", "train", "random pixels",
                    "").to(device)


def ours(job: str, task: Task, images: ImageSet, rounds: int, compile: str, between: Callable[[], None]) -> list[float]:
    """Seconds of each epoch of `mae_helpers.train.fit`, the first one left out; `between` runs after each epoch."""
    s, device = task.sizes, images.images.device.type
    size = {k: v for k, v in s.items() if k in ("embed_dim", "depth", "num_heads")}
    usual = dict(preset=task.preset, depth=task.depth, patch_size=task.patch_size, batch_size=task.batch_size,
                 epochs=rounds + 1, augment=AUGMENT, compile=compile, device=device)
    if job == "pretrain":
        config = PretrainConfig(**usual, base_lr=3e-4, mask_ratio=task.mask_ratio)
        model = MaskedAutoencoder.preset(task.preset, image_size=task.image_size, patch_size=task.patch_size, in_chans=3,
                                         depth=task.depth)
    else:
        config = ClassifyConfig(**usual, base_lr=3e-4, weight_decay=0.05, layer_decay=1.0, protocol="scratch", drop_path=0,
                                label_smoothing=0, ema_decay=0)
        model = ViTClassifier(task.image_size, task.patch_size, 3, 10, **size)

    def step(batch, labels, generator, progress):
        pixels = images.normalize(augment(config.augment, batch, generator))
        if job == "pretrain":
            return model(pixels, config.mask_ratio, generator=generator).loss, {}
        return F.cross_entropy(model(pixels).float(), labels), {}

    def after(model, epoch):
        with torch.enable_grad():
            between()

    model = model.to(images.images.device)
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(config, {}, folder, "timed")     # a classifier's own name would need a data set
        fit(model, step, images.images, images.labels, config, run, lambda model, epoch: {}, after, lambda text: None)
        return [row["train_seconds"] for row in run.metrics][1:]


def theirs(job: str, task: Task, images: ImageSet, workers: int, attention: str) -> classic.ClassicJob:
    s, device = task.sizes, images.images.device
    if job == "pretrain":
        model = classic.ClassicAutoencoder(
            task.image_size, task.patch_size, task.mask_ratio, s["embed_dim"], s["depth"], s["num_heads"],
            s["decoder_embed_dim"], s["decoder_depth"], s["decoder_num_heads"])

        def loss(model, images, labels):
            return classic.pretraining_loss(model, images, task.patches, task.mask_ratio)
    else:
        model, loss = classic.classifier(task.image_size, task.patch_size, s["embed_dim"], s["depth"],
                                         s["num_heads"]), classic.classifier_loss
    return classic.ClassicJob(images.images.cpu(), images.labels.cpu(), choose_attention(model, attention), loss, device,
                              task.batch_size, workers)


def data_alone(task: Task, images: ImageSet) -> None:
    """What an epoch does beside the model: the order, the batches, augmentation and normalisation."""
    order = torch.randperm(len(images), device=images.images.device)
    for part in order.split(task.batch_size):
        images.normalize(augment(AUGMENT, images.images[part]))


def part(task: Task, device: torch.device, job: str = "pretrain", count: int = 2_560, rounds: int = 3,
         compile: str = "auto", workers: int | None = None, attention: str = "fused",
         say: Callable[[str], None] = print) -> dict:
    """Epochs in turns, ours and then theirs; and what share of ours is data and augmentation."""
    count = max(1, count // task.batch_size) * task.batch_size
    images = image_set(count, task.image_size, device)
    workers = min(4, os.cpu_count() or 1) if workers is None else workers
    loop = theirs(job, task, images, workers, attention)
    slow: list[float] = []

    def turn():
        slow.append(seconds(loop.epoch, device))
        synchronize(device)

    fast = ours(job, task, images, rounds, compile, turn)
    slow = slow[1:]
    data = alternate({"data": lambda: data_alone(task, images)}, device, rounds=max(3, rounds), warmup=1)["data"]
    found = {"images": count, "augment": AUGMENT, "workers_of_the_classic_loop": workers,
             "attention_of_the_classic_loop": attention, "precision": choose_precision("auto", device), "compile": compile,
             "patch_size": task.patch_size, "batch_size": task.batch_size,
             "images_per_second": round(count / median(fast), 1), "spread": round(spread(fast), 4),
             "classic_images_per_second": round(count / median(slow), 1), "classic_spread": round(spread(slow), 4),
             "data_share": round(median(data) / median(fast), 4), **speedup(slow, fast)}
    say(f"{job}: an epoch of {count:,} images at {found['images_per_second']:,} images/s, {found['ratio']} times the "
        f"classic loop's {found['classic_images_per_second']:,}; data and augmentation take {found['data_share']:.1%} of it")
    return {"epoch" if job == "pretrain" else "finetune": found,
            **({"ratio_epoch_classic": found["ratio"]} if job == "pretrain" else {})}
