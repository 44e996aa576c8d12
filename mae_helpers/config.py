"""Every knob of the course: its type, default, range, help text and error sentence.

The command line, the notebooks' ``parameters`` cells, the recipes and the sweeps are all derived from the fields of
`PretrainConfig` and `ClassifyConfig`; the models and masks ask `check` for the same sentences. This module imports
nothing of the package, so every other module may import it.
"""
from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path


class InputError(ValueError):
    """A value nobody can work with, told in one sentence. A notebook shows the sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:      # IPython asks an exception for this before it draws its own
        return [f"{type(self).__name__}: {self}"]


# Width, depth and heads of the encoder, then of the decoder. The sizes of vit_tiny to vit_large are the field's usual
# ones (timm; MAE section 4); vit_micro is ours, small enough to pretrain on MNIST while one waits.
PRESETS: dict[str, dict[str, int]] = {
    "vit_micro": dict(embed_dim=96, depth=4, num_heads=3, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=2),
    "vit_tiny": dict(embed_dim=192, depth=12, num_heads=3,
                     decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3),
    "vit_small": dict(embed_dim=384, depth=12, num_heads=6,
                      decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=4),
    "vit_base": dict(embed_dim=768, depth=12, num_heads=12,
                     decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16),
    "vit_large": dict(embed_dim=1024, depth=24, num_heads=16,
                      decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16),
}

# What a protocol sets where the config leaves None. Scratch has no pretrained layers to protect, so no layer decay;
# the probe trains one linear layer on frozen features, so it takes a larger step and no weight decay (MAE appendix A).
PROTOCOLS: dict[str, dict[str, float]] = {
    "finetune": dict(base_lr=2e-3, weight_decay=0.05, layer_decay=0.75, label_smoothing=0.1, drop_path=0.05),
    "scratch": dict(base_lr=2e-3, weight_decay=0.05, layer_decay=1.0, label_smoothing=0.1, drop_path=0.05),
    "probe": dict(base_lr=1e-2, weight_decay=0.0, layer_decay=1.0, label_smoothing=0.0, drop_path=0.0),
    "knn": dict(base_lr=1.0, weight_decay=0.0, layer_decay=1.0, label_smoothing=0.0, drop_path=0.0),
}

# What augment.py can do; the names stand here because the choices of a field do.
AUGMENTATIONS = ("none", "affine", "handwriting", "crop_flip", "resized_crop_flip", "color_crop_flip", "rand_augment")

DATASETS = ("data set: mnist, fashion-mnist, cifar10, cifar100, stl10, shapes10, folder:PATH with a sub-folder of images "
            "for each class, or packed:PATH")

LIMITS = {"low": "at least", "above": "above", "high": "at most", "below": "below"}      # a knob's bounds in words

SIZES = ("embed_dim", "depth", "num_heads")
DECODER_SIZES = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def knob(default, help: str, *, low=None, high=None, above=None, below=None, choices=None, identity=True):
    """A dataclass field with its range: `low` ≤ value ≤ `high`, or `above` < value < `below`, or one of `choices`.

    `identity=False` marks what changes how a run is computed but not what it is (the device, say): two configurations
    that differ only there name the same run.
    """
    bounds = dict(low=low, high=high, above=above, below=below, choices=choices)
    return field(default=default, metadata=dict(help=help, bounds=bounds, identity=identity))


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What pretraining and classification share. Instances are immutable; every value is checked on construction."""

    dataset: str = knob("mnist", DATASETS)
    limit: int | None = knob(None, "train on this many images only, balanced over the classes (None: all)", low=1)
    image_size: int | None = knob(None, "side to which images are resized (None: as stored; 32 for a folder)", low=4)
    preset: str = knob("vit_micro", "model size; any size set beside it wins", choices=tuple(PRESETS))
    embed_dim: int | None = knob(None, "width of the encoder's tokens (None: the preset's)", low=4)
    depth: int | None = knob(None, "encoder blocks (None: the preset's)", low=1)
    num_heads: int | None = knob(None, "attention heads of the encoder (None: the preset's)", low=1)
    epochs: int = knob(10, "passes over the training images", low=1)
    batch_size: int = knob(256, "images per forward and backward pass", low=1)
    accumulate: int = knob(1, "batches whose gradients are added up before one optimizer step", low=1)
    optimizer: str = knob("adamw", "adamw; or muon for the matrices of the blocks and AdamW for the rest, which learns "
                          "more per step and takes longer for it", choices=("adamw", "muon"))
    warmup_epochs: float = knob(1.0, "epochs over which the learning rate rises to its peak, at most half the run",
                                low=0)
    clip_grad: float = knob(1.0, "largest norm of the whole gradient, longer ones are shortened to it (0: off)", low=0)
    eval_every: int = knob(1, "epochs between two looks at the validation images; the last epoch always looks", low=1,
                           identity=False)
    precision: str = knob("auto", "arithmetic of the forward pass; auto takes the fastest safe one on this device",
                          choices=("auto", "fp32", "bf16", "fp16"))
    compile: str = knob("auto", "torch.compile for the transformer blocks; auto: only where it was seen to pay",
                        choices=("auto", "on", "off"), identity=False)
    device: str = knob("auto", "where to compute; auto takes a GPU when there is one",
                       choices=("auto", "cpu", "cuda", "mps"), identity=False)
    deterministic: bool = knob(False, "only algorithms that give the same bits every time on one machine; slower on a GPU",
                               identity=False)
    seed: int = knob(0, "seed of the weights, the order of the images, the masks and the augmentation", low=0,
                     high=2 ** 32 - 1)

    def __new__(cls, **values):             # before the generated __init__, whose TypeError knows no nearest name
        check_names(values, cls)
        return super().__new__(cls)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, check(f.name, getattr(self, f.name), type(self)))
        if getattr(self, "pretrained", ""):             # the sizes are those of the pretrained run, not the preset's
            return
        sizes = {**PRESETS[self.preset], **{k: v for k, v in vars(self).items() if v is not None}}
        check_heads(sizes["embed_dim"], sizes["num_heads"])
        if hasattr(self, "decoder_embed_dim"):
            check_heads(sizes["decoder_embed_dim"], sizes["decoder_num_heads"], "decoder_")

    def resolved(self):
        """The same configuration with every None that the preset or the protocol decides filled in."""
        decided = {**PRESETS[self.preset], **PROTOCOLS.get(getattr(self, "protocol", None), {})}
        unset = {k: v for k, v in decided.items() if getattr(self, k, 0) is None}
        return dataclasses.replace(self, **unset)

    def replace(self, **changes):
        """A copy with some fields changed; an unknown name is an `InputError` that gives the nearest known one."""
        check_names(changes, type(self))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict):
        check_names(values, cls)
        return cls(**values)

    def identity(self) -> dict:
        """The resolved fields that decide what the run is, for comparing and naming runs."""
        keep = {f.name for f in dataclasses.fields(self) if f.metadata["identity"]}
        return {k: v for k, v in self.resolved().to_dict().items() if k in keep}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(JobConfig):
    """Masked-autoencoder pretraining (MAE section 3 and appendix A)."""

    job: typing.ClassVar[str] = "pretrain"
    split: str = knob("train", "which images to learn from; unlabeled: those of STL-10", choices=("train", "unlabeled"))
    patch_size: int = knob(4, "side of a square patch, in pixels", low=1)
    mask_ratio: float = knob(0.75, "share of the patches to hide", above=0, below=1)
    mask_strategy: str = knob("random", "which patches to hide", choices=("random", "block", "grid"))
    mask_schedule: str = knob("constant", "how the share of hidden patches moves from mask_ratio_start at the first step to "
                              "mask_ratio at the end", choices=("constant", "linear", "cosine"))
    mask_ratio_start: float = knob(0.5, "share of the patches to hide at first, where mask_schedule lets it move",
                                   above=0, below=1)
    laplacian_weight: float = knob(0.0, "weight of the error of fine detail in the loss (0: off)", low=0)
    uniformity_weight: float = knob(0.0, "weight in the loss of how unevenly the encoder's features are spread (0: off)",
                                    low=0)
    variant: str = knob("mae", "mae; encoder_tokens: hidden patches are mask tokens in the encoder, too; cross_decoder: a "
                        "decoder that looks at visible tokens only", choices=("mae", "encoder_tokens", "cross_decoder"))
    decode_share: float = knob(0.25, "share of the hidden patches that a cross_decoder predicts in training",
                                above=0, high=1)
    norm_pix_loss: bool = knob(False, "predict each patch after normalising it by its own mean and deviation")
    decoder_embed_dim: int | None = knob(None, "width of the decoder's tokens (None: the preset's)", low=4)
    decoder_depth: int | None = knob(None, "decoder blocks (None: the preset's)", low=1)
    decoder_num_heads: int | None = knob(None, "attention heads of the decoder (None: the preset's)", low=1)
    base_lr: float = knob(1e-3, "learning rate per 256 images of the effective batch", above=0)
    weight_decay: float = knob(0.05, "AdamW's pull of the weight matrices towards zero", low=0)
    beta2: float = knob(0.95, "AdamW's memory of squared gradients", above=0, below=1)
    augment: str = knob("none", "random changes to the training images", choices=AUGMENTATIONS)
    augment_share: float = knob(1.0, "chance that a training image is changed by augment", above=0, high=1)
    augment_until: float = knob(1.0, "share of the training after which the images are left as they are", above=0, high=1)
    snapshot_epochs: tuple[int, ...] = knob((), "epochs after which pictures and weights are kept (none given: first, "
                                                "a quarter, half, last; one past the end: nothing is kept)", low=1)

    def __post_init__(self):
        super().__post_init__()
        if self.uniformity_weight and self.batch_size < 2:
            raise InputError(f"uniformity_weight is {self.uniformity_weight} and batch_size 1: how features are spread is a "
                             "matter of at least two images.")

    def snapshots(self) -> set[int]:
        return set(self.snapshot_epochs) or {1, max(1, self.epochs // 4), max(1, self.epochs // 2), self.epochs}


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(JobConfig):
    """Training, or only reading, a classifier: `protocol` says which (MAE section 4.1 and appendix A).

    A value of None means the protocol's own, from `PROTOCOLS`; the data set, the sizes and the patch size of a pretrained
    encoder come from its run.
    """

    dataset: str | None = knob(None, DATASETS + " (None: the pretrained run's, at its image_size; mnist for scratch)")
    protocol: str = knob("finetune", "finetune: all weights · probe: a linear layer on the frozen encoder · knn: "
                         "neighbours, no training · scratch: fresh weights", choices=tuple(PROTOCOLS))
    pretrained: str = knob("", "the pretraining run to start from: a folder, or a name below runs/ or data/runs/",
                           identity=False)     # the weights themselves are part of the run's fingerprint
    patch_size: int | None = knob(None, "side of a square patch (None: the pretrained run's; 4 for scratch)", low=1)
    label_fraction: float = knob(1.0, "share of the training labels to use, balanced over the classes",
                                 above=0, high=1)
    pool: str = knob("mean", "what the classifier reads: the mean of the patch tokens, the class token, or four means, one "
                     "for each quarter of the image", choices=("mean", "cls", "quadrants"))
    base_lr: float | None = knob(None, "learning rate per 256 images of the effective batch", above=0)
    weight_decay: float | None = knob(None, "AdamW's pull of the weight matrices towards zero", low=0)
    beta2: float = knob(0.999, "AdamW's memory of squared gradients", above=0, below=1)
    layer_decay: float | None = knob(None, "learning rate of a block as a multiple of the next block's",
                                     above=0, high=1)
    label_smoothing: float | None = knob(None, "share of the target spread over all classes", low=0, below=1)
    drop_path: float | None = knob(None, "chance that a sample skips the last block; less for earlier blocks",
                                   low=0, below=1)
    ema_decay: float = knob(0.99, "memory of the running mean of the weights that is evaluated (0: off)",
                            low=0, below=1)
    augment: str = knob("affine", "random changes to the training images", choices=AUGMENTATIONS)
    erase_prob: float = knob(0.0, "chance that a box of a training image is filled with noise", low=0, high=1)
    mix_prob: float = knob(0.0, "chance that a training image is mixed with another one, by mixup or CutMix", low=0, high=1)
    views: int = knob(0, "changed copies of a test image (by `augment`) whose answers are averaged with its own, for an "
                      "accuracy of its own beside the plain one", low=0)
    knn_k: int = knob(20, "neighbours that vote", low=1)
    knn_temperature: float = knob(0.07, "how fast a neighbour's vote fades with its distance", above=0)

    @property
    def job(self) -> str:
        return "classify"

    def __post_init__(self):
        super().__post_init__()
        if self.protocol != "scratch" and not self.pretrained:
            raise InputError(f"protocol is {self.protocol!r} but pretrained is empty: it must name a pretraining run.")
        if self.protocol == "scratch" and self.pretrained:
            raise InputError(f"pretrained is {self.pretrained!r} but protocol is 'scratch', which starts from fresh "
                             "weights: leave it empty.")
        if self.views and (self.protocol == "knn" or self.augment == "none"):
            why = "the protocol is 'knn', which has no classifier" if self.protocol == "knn" else \
                "augment is 'none', so that all copies would be equal"
            raise InputError(f"views is {self.views} but {why}: it must be 0 then.")


CONFIGS = {"pretrain": PretrainConfig, "classify": ClassifyConfig}


def field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@functools.cache                 # evaluating annotations takes far longer than checking a value
def kinds(cls: type) -> dict[str, tuple[type, bool]]:
    """For each field of a config class: its type (int, float, str, bool or tuple) and whether None is allowed."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        parts = [t for t in typing.get_args(hint) if t is not type(None)]
        optional = type(None) in typing.get_args(hint)
        found[name] = (tuple if typing.get_origin(hint) is tuple else parts[0] if optional else hint, optional)
    return found


def check(name: str, value, cls: type | None = None):
    """`value` as the field's type when it is in the field's range; otherwise an `InputError` that says what is.

    Without `cls` the field is looked up by its name in both config classes.
    """
    cls = cls or next(c for c in CONFIGS.values() if name in field_names(c))
    spec = cls.__dataclass_fields__[name]
    kind, optional = kinds(cls)[name]
    if value is None and optional:
        return None
    if kind is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_check_one(name, item, int, spec.metadata["bounds"]) for item in items)
    return _check_one(name, value, kind, spec.metadata["bounds"])


def _check_one(name: str, value, kind: type, bounds: dict):
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if bounds["choices"] and value not in bounds["choices"]:
        raise InputError(unknown(name, value, bounds["choices"]))
    wanted = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}[kind]
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    good = {int: number and value == int(value), float: number, str: isinstance(value, str),
            bool: isinstance(value, bool)}[kind] if number or kind in (str, bool) else False
    holds = {"low": lambda bound: value >= bound, "above": lambda bound: value > bound,
             "high": lambda bound: value <= bound, "below": lambda bound: value < bound}
    if not good or not all(holds[key](bounds[key]) for key in LIMITS if bounds[key] is not None):
        raise InputError(f"{name} is {value!r}: it must be {f'{wanted} {limits(bounds)}'.strip()}.")
    return kind(value)


def limits(bounds: dict) -> str:
    """A range in words: "at least 1 and at most 5", or nothing where there is none."""
    return " and ".join(f"{words} {bounds[key]}" for key, words in LIMITS.items() if bounds[key] is not None)


def check_names(values: dict, cls: type, extra: tuple[str, ...] = ()) -> None:
    """Raise `InputError` for the first key that is neither a field of `cls` nor one of `extra`."""
    known = [*field_names(cls), *extra]
    for name in values:
        if name not in known:
            raise InputError(unknown("parameter", name, known))


def check_heads(embed_dim: int, num_heads: int, prefix: str = "") -> None:
    """A width must split evenly over the heads, and into quarters for the sin-cos positions (row and column)."""
    if embed_dim % num_heads:
        raise InputError(f"{prefix}embed_dim is {embed_dim}: it must be a multiple of {prefix}num_heads, {num_heads}.")
    if embed_dim % 4:
        raise InputError(f"{prefix}embed_dim is {embed_dim}: sin-cos positions need a multiple of 4.")


def unknown(what: str, value, known) -> str:
    """The sentence for a name that is not one of `known`, with the nearest one where there is one."""
    near = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} is {value!r}: it must be one of {', '.join(map(str, known))}.{hint}"


def project_root() -> Path:
    """The checkout that holds this package, or the current folder when the package is installed elsewhere."""
    here = Path(__file__).resolve().parent.parent
    return here if (here / "pyproject.toml").exists() else Path.cwd()
