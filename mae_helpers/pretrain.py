"""The first job: teach a masked autoencoder to fill in what it cannot see."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch

from . import plots
from .augment import augment, check_augment
from .config import DECODER_SIZES, SIZES, InputError, PretrainConfig
from .data import ImageSet, load_images
from .distributed import join
from .losses import masked_laplacian, uniformity
from .masking import count_hidden, make_mask, scheduled_ratio, true_ratio
from .metrics import hidden_squared_error, psnr_db
from .model import MAEOutput, MaskedAutoencoder
from .patches import unpatchify
from .runs import Run, code_fingerprint, open_run, part_fingerprint, provenance, write_atomic, write_weights
from .train import (
    autocast,
    batch_sizes,
    choose_device,
    choose_precision,
    deterministic,
    fit,
    seconds_before,
    smallest_pass,
    tell,
)
from .variants import VARIANTS

EVAL_SEED = 12_345          # validation masks are the same in every epoch and for every seed
EVAL_BATCH = 500
OWN_NETWORK = "network"     # in the fingerprint of a run: what was trained is not what its configuration builds
CODE = ("patches", "masking", "losses", "model", "variants", "data", "augment", "metrics", "distributed",
        "muon", "train", "pretrain")


def pretrain(config: PretrainConfig, root="runs", name: str | None = None, model: MaskedAutoencoder | None = None,
             mask_fn: Callable | None = None, loss_fn: Callable | None = None,
             say: Callable[[str], None] = tell, on_epoch: Callable[[list[dict]], None] | None = None) -> Run:
    """Pretrain a masked autoencoder into a run directory, or find that this was done before (MAE section 3).

    A learner's own parts train in the same loop: `model` (starting weights included; where the run is found, the object
    stays as it was; `load_mae` gives it back only if it is what the configuration builds), `mask_fn(batch_size,
    num_patches, mask_ratio, generator)` → bool [B, N], `loss_fn(pred, target, mask)` → scalar. After every
    epoch `on_epoch` gets the rows of metrics.csv so far; a finished run gives all at once. Started by a launcher, the
    processes train one model together (distributed.py) and all return its run. Raises `InputError` before anything is
    written when configuration, data and model do not fit together.
    """
    group = join()
    say, parts = group.says(say), {"model": model, "mask": mask_fn, "loss": loss_fn}
    with group.together():
        device = group.device(choose_device(config.device))
        train = load_images(config.dataset, config.split, config.limit, config.image_size).to(device)
        val = load_images(config.dataset, "val", None, config.image_size).to(device)
        usual = build(config, train)
        model = (usual if model is None else model).to(device)
        for key in ("patch_size", "norm_pix_loss"):
            if getattr(config, key) != getattr(model, key):
                raise InputError(f"{key} is {getattr(config, key)}, but that of the model given is {getattr(model, key)}.")
        hidden = true_ratio(model.num_patches, config.mask_ratio)   # also refuses a single patch, before any file
        model.tokens(train.normalize(train.images[:1]))             # and images that the model does not take
        check_augment(config.augment, train.in_chans)
        group.check_batches(*batch_sizes(config, len(train)))
        if config.uniformity_weight and smallest_pass(config, len(train)) < 2:
            raise InputError(f"a batch of the {len(train)} images would be one image: uniformity_weight compares images, so "
                             "batch_size and the rest that `accumulate` leaves must be at least 2.")
    precision = choose_precision(config.precision, device, config.deterministic)
    fingerprint = {"code": code_fingerprint(*CODE), "data": train.checksum,
                   **{k: part_fingerprint(v) for k, v in parts.items() if v is not None}}
    if layout(model) != layout(usual):
        fingerprint[OWN_NETWORK] = type(model).__name__
    run = group.from_first(lambda: open_run(config, fingerprint, root, name))
    if group.from_first(lambda: run.finished):
        say(f"found the finished run {run.name}")
        if on_epoch and group.first:
            on_epoch(run.metrics)
        return run
    say(f"{run.name} on {device.type} in {precision}{group.words}\n{len(train):,} images of {train.source}, "
        f"{model.num_patches} patches, {hidden:.1%} hidden")

    def step(images, labels, generator, progress):
        change = config.augment if progress < config.augment_until else "none"
        images = train.normalize(augment(change, images, generator, config.augment_share))
        ratio = scheduled_ratio(config.mask_schedule, config.mask_ratio_start, config.mask_ratio, progress)
        if mask_fn is None:
            out = model(images, ratio, generator=generator, strategy=config.mask_strategy)
        else:
            out = model(images, mask=mask_fn(len(images), model.num_patches, ratio, generator))
        with torch.autocast(device.type, enabled=False):        # differences of nearly equal numbers need fp32
            pixels = out.loss if loss_fn is None else loss_fn(out.pred.float(), model.target(model.tokens(images)), out.mask)
            more = extra_losses(config, model, images, out)
        return pixels + sum(more.values()), {"train_pixels": pixels, **more} if more else {}

    def after_epoch(model, epoch):
        if epoch in config.snapshots():
            write_weights(run.path / "checkpoint" / f"epoch_{epoch}.safetensors", model.state_dict())
            if find_spec("matplotlib"):             # training needs no figures, so it does not need matplotlib
                figure = reconstruction_figure(model, val, config, f"{run.name}, epoch {epoch}")
                write_atomic(run.path / "figures" / f"reconstruction_{epoch:04d}.png", plots.png(figure))

    started = time.perf_counter()
    earlier = group.from_first(lambda: seconds_before(run))
    with deterministic(config.deterministic):
        model = fit(model, step, train.images, train.labels, config, run,
                    lambda model, epoch: evaluate(model, val, config.mask_ratio, config.mask_strategy),
                    after_epoch, say, on_epoch)

    def finish():
        seconds = time.perf_counter() - started + earlier
        prov = provenance(device, train.source, train.checksum, fingerprint, seconds, precision=precision,
                          processes=group.size)
        last = run.metrics[-1]
        run.finish({
            "job": "pretrain", "protocol": None, "dataset": config.dataset, "data_source": train.source,
            "image_size": train.image_size, "in_chans": train.in_chans, "classes": list(train.classes),
            "preset": config.preset, "patch_size": config.patch_size, "mask_ratio": config.mask_ratio,
            "mask_ratio_true": round(hidden, 6), "mask_strategy": config.mask_strategy,
            "norm_pix_loss": model.norm_pix_loss, "pretrained_run": None, "pretrain_epochs": config.epochs,
            "labels_seen": 0, "label_fraction": None, "images": len(train), "epochs": config.epochs,
            "batch_size": config.batch_size, "seed": config.seed,
            "parameters": sum(p.numel() for p in model.parameters()), "train_loss": last["train_loss"],
            **{k: last[k] for k in ("val_loss", "val_loss_pm1", "psnr_db", "laplacian_error")},
            "psnr_mean_db": psnr_of_the_mean(val, model, config), "seconds": round(seconds, 1),
            "device": prov["device"], "python": prov["python"], "torch": prov["torch"]}, prov)

    group.from_first(finish)
    return run


def extra_losses(config: PretrainConfig, model: MaskedAutoencoder, images: torch.Tensor,
                 out: MAEOutput) -> dict[str, torch.Tensor]:
    """The weighted terms that the configuration adds to the pixel loss, scalars by the name of their column in
    metrics.csv. images [B, C, H, H] are normalised."""
    found = {}
    if config.laplacian_weight:
        pred, target = (unpatchify(tokens.float(), model.patch_size, model.image_size, model.in_chans)
                        for tokens in (out.pred, model.target(model.tokens(images))))
        found["train_laplacian"] = config.laplacian_weight * masked_laplacian(pred, target, hidden_pixels(model, out.mask))
    if config.uniformity_weight:
        found["train_uniformity"] = config.uniformity_weight * uniformity(
            join().gather(out.latent[:, 1:].float().mean(dim=1)))     # it compares every image of the batch with every other
    return found


class ImageShape(NamedTuple):
    """What a model knows of its images."""

    image_size: int
    in_chans: int
    classes: tuple[str, ...] = ()


def shape_of_images(run: Run) -> ImageShape | ImageSet:
    """What the model of a run knows of its images: from the results, so that nobody needs the data set to use an encoder.
    Before a run has finished, and in old ones, the images say it."""
    told = run.results if run.finished else {}
    if "in_chans" in told:
        return ImageShape(told["image_size"], told["in_chans"], tuple(told["classes"]))
    return load_images(run.config.dataset, "val", 1, run.config.image_size)


def build(config: PretrainConfig, images: ImageSet | ImageShape) -> MaskedAutoencoder:
    """A fresh model for these images; the weights come from the seed and leave PyTorch's global stream as it was."""
    sizes = {k: v for k, v in vars(config.resolved()).items() if k in SIZES + DECODER_SIZES}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if config.variant == "cross_decoder":
            sizes["decode_share"] = config.decode_share
        return VARIANTS[config.variant](images.image_size, config.patch_size, images.in_chans, **sizes,
                                        norm_pix_loss=config.norm_pix_loss)


def layout(model: MaskedAutoencoder) -> tuple:
    """What makes two networks the same but for their weights; the number of heads leaves no trace in a shape."""
    return ([(name, type(part), getattr(part, "num_heads", None)) for name, part in model.named_modules()],
            {name: value.shape for name, value in model.state_dict().items()})


def load_mae(run: Run, which: str = "last") -> MaskedAutoencoder:
    """The model of a pretraining run in evaluation mode: the "last" weights, the "best", or those of a kept epoch.

    Raises `InputError` for a run of another job, for a network of a learner's own, which the configuration does not
    describe, and for weights that do not belong to the configuration.
    """
    if run.config.job != "pretrain":
        raise InputError(f"the run {run.name} is a {run.config.job} run: a pretraining run is needed here.")
    if OWN_NETWORK in run.fingerprint:
        raise InputError(f"the run {run.name} trained a network of your own, {run.fingerprint[OWN_NETWORK]}, and not that "
                         f"of its configuration: make the network and call its load_state_dict(run.weights({which!r})).")
    model = build(run.config, shape_of_images(run))
    try:
        model.load_state_dict(run.weights(which))
    except RuntimeError:
        raise InputError(f"the weights of {run.name} belong to another configuration: names or shapes differ.") from None
    return model.eval()


def taught_by(teachers: Sequence[MaskedAutoencoder], share: float,
              precision: str = "fp32") -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """A `loss_fn` for `pretrain` that learns from trained models, too: the target is `share` of the mean of their answers
    and, for the rest, the true pixels (distillation, Hinton et al. 2015, for the task of the MAE).

    Models that made different mistakes are right together more often than each alone, and their mean has less chance in it
    than one picture: of all that fits the visible patches, a picture shows one case. `precision` is that of the answers
    ("fp32", "bf16", "fp16"). Raises `InputError` for no teacher, one that predicts normalised patches, teachers of other
    patches or images than the first and a share outside 0 … 1.
    """
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    if not teachers or any(teacher.norm_pix_loss for teacher in teachers):
        raise InputError("taught_by needs at least one teacher, and only teachers that predict pixels.")
    if len({(t.image_size, t.patch_size, t.in_chans) for t in teachers}) > 1:
        raise InputError("the teachers do not have the same images and patches.")
    if not 0 <= share <= 1:
        raise InputError(f"share must be 0 to 1, not {share}.")

    def loss(pred, target, mask):
        hidden = count_hidden(mask, *mask.shape)
        with torch.no_grad(), autocast(precision, target.device):
            answers = sum(teacher.predict(target, mask, hidden).float() for teacher in teachers) / len(teachers)
        return teachers[0].loss(pred, torch.lerp(target, answers, share), mask)
    return loss


@torch.no_grad()
def evaluate(model: MaskedAutoencoder, images: ImageSet, mask_ratio: float, strategy: str = "random") -> dict:
    """Loss and PSNR on hidden pixels, with masks that are the same at every call.

    `val_loss` is the pretraining loss. For the others predictions are cut off at black and white: `val_loss_pm1` is the
    mean squared error of pixels on the scale -1 … 1, for comparison with published numbers; `psnr_db` comes from the mean
    error over all hidden pixels of the set; `laplacian_error` is the error of the fine detail there, for pixels on the
    scale 0 … 1. These three are None for a model that predicts normalised patches, whose pixels would need the true
    statistics.
    """
    generator = torch.Generator(images.images.device).manual_seed(EVAL_SEED)
    total, pixel_error, pixels, detail = 0.0, 0.0, 0, 0.0
    for part in images.images.split(EVAL_BATCH):
        batch = images.normalize(part)
        mask = make_mask(strategy, len(part), model.num_patches, mask_ratio, generator)
        out = model(batch, mask=mask)
        total += float(out.loss) * len(part)
        if not model.norm_pix_loss:
            filled = unpatchify(out.pred.float(), model.patch_size, model.image_size, model.in_chans)
            original, shown, hidden = part / 255, images.denormalize(filled), hidden_pixels(model, mask)
            error, count = hidden_squared_error(original, shown, hidden)
            pixel_error, pixels = pixel_error + error, pixels + count
            detail += float(masked_laplacian(shown, original, hidden)) * count
    mse = pixel_error / pixels if pixels else None
    return {"val_loss": total / len(images), "val_loss_pm1": None if mse is None else 4 * mse,
            "psnr_db": None if mse is None else psnr_db(mse),
            "laplacian_error": detail / pixels if pixels else None}


def psnr_of_the_mean(images: ImageSet, model: MaskedAutoencoder, config: PretrainConfig) -> float:
    """What guessing the mean brightness everywhere reaches under the same masks: the floor to stand above."""
    generator = torch.Generator(images.images.device).manual_seed(EVAL_SEED)
    error, pixels = 0.0, 0
    for part in images.images.split(EVAL_BATCH):
        mask = make_mask(config.mask_strategy, len(part), model.num_patches, config.mask_ratio, generator)
        guess = images.denormalize(torch.zeros(part.shape, device=part.device))
        more, count = hidden_squared_error(part / 255, guess, hidden_pixels(model, mask))
        error, pixels = error + more, pixels + count
    return psnr_db(error / pixels)


def hidden_pixels(model: MaskedAutoencoder, mask: torch.Tensor) -> torch.Tensor:
    """The mask as an image: bool [B, N] → bool [B, 1, H, H], padding cropped."""
    squares = mask[..., None].expand(-1, -1, model.patch_size ** 2)
    return unpatchify(squares, model.patch_size, model.image_size, 1)


def fixed_examples(images: ImageSet, count: int = 8) -> ImageSet:
    """The same `count` images every time, one of each class in turn; the first ones where there are no classes."""
    classes = images.labels.unique().tolist() if images.classes else []
    chosen = [int((images.labels == c).nonzero()[0]) for c in classes[:count]] or list(range(min(count, len(images))))
    return images.subset(torch.tensor(chosen, device=images.images.device))


def fixed_mask(model: MaskedAutoencoder, count: int, mask_ratio: float, strategy: str = "random") -> torch.Tensor:
    """The mask that every picture of the course uses for `count` images: bool [count, N] on the CPU."""
    return make_mask(strategy, count, model.num_patches, mask_ratio, torch.Generator().manual_seed(EVAL_SEED))


@torch.no_grad()
def reconstruction_panels(model: MaskedAutoencoder, examples: ImageSet,
                          mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Original, masked, reconstruction and pasted pictures of a few images: each float [B, C, H, W] on 0 … 1.

    Hidden pixels of "masked" are not-a-number, which figures draw in one neutral colour. For a model that predicts
    normalised patches the true patch statistics are put back, and the keys say so.
    """
    batch = examples.normalize(examples.images)
    mask = mask.to(batch.device)
    truth = model.norm_pix_loss
    note = " (true patch statistics)" if truth else ""
    everything = model.reconstruct(batch, mask=mask, paste=False, use_true_statistics=truth)
    original = examples.images / 255
    hidden = hidden_pixels(model, mask)
    predicted = examples.denormalize(everything)
    return {"original": original, "masked": original.masked_fill(hidden, torch.nan),
            f"reconstruction{note}": predicted, f"pasted{note}": torch.where(hidden, predicted, original)}


def reconstruction_figure(model: MaskedAutoencoder, images: ImageSet, config: PretrainConfig, title: str):
    """The four panels for the fixed examples under the fixed mask, as a figure."""
    examples = fixed_examples(images)
    mask = fixed_mask(model, len(examples), config.mask_ratio, config.mask_strategy)
    panels = reconstruction_panels(model, examples, mask)
    return plots.image_rows({k: v.cpu() for k, v in panels.items()}, title)
