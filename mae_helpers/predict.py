"""One picture of one's own, shown to a finished run: what is it, and what would the model fill in?"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from . import plots
from .classify import load_classifier, predict
from .config import InputError
from .data import ImageSet, load_images
from .pretrain import fixed_mask, load_mae, reconstruction_panels
from .readers import read_pictures
from .runs import Run, load_run


def as_the_model_sees(path: str | Path, run: Run) -> ImageSet:
    """A picture file as a set of one image, of the size and channels that the run learned from, label -1.

    It is cropped to a square around its middle. For a grey data set it becomes grey; where that set is bright ink on
    black and the picture dark ink on white, as most photographs of digits are, black and white are exchanged.
    """
    path, like = Path(path).expanduser(), load_images(run.config.dataset, "val", 1, run.config.image_size)
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    if like.in_chans not in (1, 3):
        raise InputError(f"{run.name} learned from images of {like.in_chans} channels: a picture has one, grey, or three.")
    images = torch.from_numpy(read_pictures([path], like.image_size, path.parent))
    if like.in_chans == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)         # of red, green and blue in what looks grey
        images = (images * weights).sum(dim=1, keepdim=True).round().byte()
        if max(like.mean) < 0.5 < float(images.median()) / 255:
            images = 255 - images
    return replace(like, images=images, labels=torch.tensor([-1]))


def probabilities(run: Run, picture: ImageSet) -> dict[str, float]:
    """The classes with their probabilities, the most likely first. `InputError` where the run is no classifier."""
    answer = predict(load_classifier(run), picture).softmax(1)[0]
    return {picture.classes[i]: float(answer[i]) for i in answer.argsort(descending=True).tolist()}


def filled_in(run: Run, picture: ImageSet):
    """The picture masked and filled in, as a figure, by a pretraining run at its own mask ratio."""
    model = load_mae(run)
    mask = fixed_mask(model, 1, run.config.mask_ratio, run.config.mask_strategy)
    return plots.image_rows(reconstruction_panels(model, picture, mask), f"filled in by {run.name}")


def autoencoder_of(run: Run, root="runs") -> Run | None:
    """The pretraining run itself, or the one that a classifier started from; None for scratch and for a missing one."""
    if run.config.job == "pretrain":
        return run
    name = run.results["pretrained_run"]
    try:
        found = load_run(name, root) if name else None
    except InputError:
        return None
    return found if found and "last" in found.kept() else None
