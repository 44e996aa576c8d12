"""Image sets: all images in memory as uint8, with what is needed to normalise, name and balance them.

Data of these sizes fits in memory, so there are no loader processes: a batch is an index into a tensor.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from .config import InputError, check, unknown
from .sources import load_raw

SPLITS = ("train", "val", "test")
VAL_SIZE = 5_000            # taken from the official training part, the same images every time


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] with labels int64 [N] and how to normalise them."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]     # of the training split, per channel, on the scale 0 … 1
    std: tuple[float, ...]
    name: str                   # as given to load_images
    split: str
    source: str                 # what the images really are, for results and captions
    checksum: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        return self.images.shape[-1]

    @property
    def in_chans(self) -> int:
        return self.images.shape[1]

    def to(self, device) -> ImageSet:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices) -> ImageSet:
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 0 … 255, or floats on the scale 0 … 1, to floats of mean 0 and deviation 1 over the training split."""
        images = images / 255 if images.dtype == torch.uint8 else images
        return (images - self._channels(self.mean, images)) / self._channels(self.std, images)

    def denormalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised floats back to the scale 0 … 1, cut off at its ends."""
        images = images.float()
        return (images * self._channels(self.std, images) + self._channels(self.mean, images)).clamp(0, 1)

    @staticmethod
    def _channels(values, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, device=like.device).view(-1, 1, 1)


def load_images(dataset: str, split: str = "train", limit: int | None = None) -> ImageSet:
    """The `split` of a data set: train (55,000 of MNIST), val (5,000 of the official training part) or test.

    `limit` keeps that many images, balanced over the classes and always the same; a smaller limit is a part of a
    larger one. Raises `InputError` for an unknown name or split and for a limit outside 1 … size of the split.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    raw = load_raw(dataset)
    train, val, mean, std = _training_split(dataset)
    if split == "test":
        images, labels = raw.test_images.copy(), raw.test_labels.copy()         # the raw arrays are kept for reuse
    else:
        index = train if split == "train" else val
        images, labels = raw.train_images[index], raw.train_labels[index]
    full = ImageSet(torch.from_numpy(images), torch.from_numpy(labels), raw.classes, mean, std, dataset, split,
                    raw.source, raw.checksum)
    return full if limit is None else balanced_subset(full, limit)


@lru_cache(maxsize=4)
def _training_split(dataset: str) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """Indices of the train and val parts of the official training images; mean and deviation of the train part."""
    raw = load_raw(dataset)
    order = balanced_order(raw.train_labels)
    train = np.sort(order[VAL_SIZE:])
    return train, np.sort(order[:VAL_SIZE]), *_statistics(raw.train_images[train])


def balanced_subset(images: ImageSet, limit: int) -> ImageSet:
    """`limit` images with as equal a number of each class as there are."""
    limit = check("limit", limit)
    if limit > len(images):
        raise InputError(f"limit is {limit}: {images.name} {images.split} has {len(images)} images.")
    return images.subset(torch.from_numpy(np.sort(balanced_order(images.labels.cpu().numpy())[:limit])))


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """An order of all indices in which every beginning is balanced over the classes; always the same.

    Each class is shuffled and its members numbered 0, 1, 2, …; sorting by that number deals the classes out in turn.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))     # RandomState: NumPy promises this stream for ever
    number = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        number[members] = np.arange(len(members))
    return np.lexsort((labels, number))


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel on the scale 0 … 1, from a histogram: exact, and quick for 8-bit pixels."""
    level = np.arange(256) / 255
    counts = [np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])]
    mean = [(n * level).sum() / n.sum() for n in counts]
    std = [((n * (level - m) ** 2).sum() / n.sum()) ** 0.5 for n, m in zip(counts, mean)]
    return tuple(float(round(m, 6)) for m in mean), tuple(float(round(s, 6)) for s in std)
