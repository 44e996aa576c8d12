"""Image sets: all images as uint8, with what is needed to normalise, name and balance them.

Data of these sizes fits in memory, or is mapped into it, so there are no loader processes: a batch is an index into a
tensor.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .config import InputError, check, unknown
from .packs import MappedImages, Raw, mean_and_deviation, memory_limit, statistics
from .sources import load_raw

SPLITS = ("train", "val", "test")
VAL_SIZE = 5_000            # taken from the official training part, the same images every time; at most a tenth of it


class Mapped:
    """Images that look like a tensor uint8 [N, C, H, W] on `device` but stay in a file: what is read is copied there.

    Indexing and `split` give tensors. Indices are wanted on the processor, `stored_on`: asking a GPU for them would wait
    until it has done all that it was given.
    """

    dtype, stored_on = torch.uint8, torch.device("cpu")

    def __init__(self, file: MappedImages, rows: np.ndarray, device: torch.device = stored_on):
        self.file, self.rows, self.device = file, rows, torch.device(device)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> torch.Tensor:
        rows = self.rows[index.cpu().numpy() if isinstance(index, torch.Tensor) else index]
        pixels = torch.from_numpy(self.file.read(rows.reshape(-1)))
        if self.device.type == "cuda":              # the copy of a batch overlaps with the computation of the one before
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=self.device.type == "cuda").view(*rows.shape, *self.shape[1:])

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), *self.file.shape[1:]])

    def select(self, indices) -> Mapped:
        return Mapped(self.file, self.rows[torch.as_tensor(indices).cpu().numpy()], self.device)

    def split(self, count: int):
        return (self[i:i + count] for i in range(0, len(self), count))

    def to(self, device) -> Mapped:
        return Mapped(self.file, self.rows, device)


class Resized:
    """Images that look like a tensor uint8 [N, C, S, S] but are stored at another size: what is read is resized.

    So the 100,000 unlabelled images of STL-10 at 224 need the memory of a batch, not 15 GB. Indexing and `split` give
    tensors.
    """

    dtype = torch.uint8

    def __init__(self, stored: torch.Tensor | Mapped, size: int):
        self.stored, self.size = stored, size

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index) -> torch.Tensor:
        part = self.stored[index]
        pixels = part.reshape(-1, *part.shape[-3:]).float()
        pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return pixels.round().clamp(0, 255).byte().view(*part.shape[:-2], self.size, self.size)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.stored.shape[:2], self.size, self.size])

    @property
    def device(self) -> torch.device:
        return self.stored.device

    @property
    def stored_on(self) -> torch.device:
        return getattr(self.stored, "stored_on", self.stored.device)

    def select(self, indices) -> Resized:
        return Resized(self.stored.select(indices) if isinstance(self.stored, Mapped) else self.stored[indices], self.size)

    def split(self, count: int):
        return (self[i:i + count] for i in range(0, len(self), count))

    def to(self, device) -> Resized:
        return Resized(self.stored.to(device), self.size)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] with labels int64 [N] and how to normalise them."""

    images: torch.Tensor | Mapped | Resized
    labels: torch.Tensor        # -1 where nobody knows them
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
        if isinstance(indices, slice):
            indices = torch.arange(len(self))[indices]
        whole = isinstance(self.images, torch.Tensor) or len(indices) * self.images.shape[1:].numel() <= memory_limit()
        images = self.images[indices] if whole else self.images.select(indices)
        return replace(self, images=images, labels=self.labels[indices])

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 0 … 255, or floats on the scale 0 … 1, to floats of mean 0 and deviation 1 over the training split."""
        images = images / 255 if images.dtype == torch.uint8 else images
        return (images - per_channel(self.mean, images.device)) / per_channel(self.std, images.device)

    def denormalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised floats back to the scale 0 … 1, cut off at its ends."""
        images = images.float()
        return (images * per_channel(self.std, images.device) + per_channel(self.mean, images.device)).clamp(0, 1)


@lru_cache(maxsize=16)
def per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """One number per channel as [C, 1, 1] on a device; kept, because a copy to a GPU in every step would be waited for."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)


def load_images(dataset: str, split: str = "train", limit: int | None = None, image_size: int | None = None) -> ImageSet:
    """The `split` of a data set: train (55,000 of MNIST), val (5,000 of the official training part) or test.

    A set larger than MAE_MEMORY (1 GB) that comes from `folder:PATH` or `packed:PATH` stays on the disk, see `Mapped`.
    Val is a tenth of the official training part, at most 5,000. Where there is no official test part (folder:PATH) a
    tenth of all images is kept apart for it first. STL-10 has "unlabeled" too, mapped into memory; its labels are -1.

    `limit` keeps that many images, balanced over the classes and always the same; a smaller limit is a part of a
    larger one. `image_size` is the side to resize to (None: as stored; 32 for a folder). Raises `InputError` for an
    unknown name or split, for a limit outside 1 … size of the split and for data that is missing or damaged.
    """
    splits = (*SPLITS, "unlabeled") if dataset == "stl10" else SPLITS
    if split not in splits:
        raise InputError(unknown("split", split, splits))
    raw = load_raw(dataset, check("image_size", image_size))
    parts, mean, std = _parts(raw)
    if split == "unlabeled":
        if raw.unlabeled is None:
            raise InputError("stl10 has no unlabeled images here: unlabeled_X.bin is missing.")
        images, labels = raw.unlabeled, np.full(len(raw.unlabeled), -1)
    elif split == "test" and raw.test_images is not None:
        images, labels = raw.test_images.copy(), raw.test_labels.copy()         # the raw arrays are kept for reuse
    else:
        images, labels = raw.train_images, raw.train_labels[parts[split]]
        images = Mapped(images, parts[split]) if isinstance(images, MappedImages) else images[parts[split]]
    if isinstance(images, Mapped):                  # a small part of a large set fits
        images = images[:] if images.shape.numel() <= memory_limit() else images
    else:
        images = torch.from_numpy(images)
    found = ImageSet(images, torch.from_numpy(labels), raw.classes, mean, std, dataset, split,
                     raw.source, raw.checksum)
    found = found if limit is None else balanced_subset(found, limit)
    same = image_size in (None, found.image_size)
    return found if same else replace(found, images=Resized(found.images, image_size))


@lru_cache(maxsize=2)
def _parts(raw: Raw) -> tuple[dict[str, np.ndarray], tuple[float, ...], tuple[float, ...]]:
    """Indices of the parts of the official training images; mean and deviation of the train part."""
    order, parts = balanced_order(raw.train_labels, by_share=raw.test_images is None), {}
    if raw.test_images is None:
        tenth = max(1, len(order) // 10)
        parts["test"], order = np.sort(order[:tenth]), order[tenth:]
    count = min(VAL_SIZE, max(1, len(order) // 10))
    parts |= {"train": np.sort(order[count:]), "val": np.sort(order[:count])}
    lacking = {part: len(raw.classes) - len(np.unique(raw.train_labels[rows])) for part, rows in parts.items()}
    if raw.classes and any(lacking.values()):
        told = ", ".join(f"{part} has no image of {n}" for part, n in lacking.items() if n)
        print(f"{raw.source}: of its {len(raw.classes)} classes {told}. More images of each class would mend that.",
              flush=True)
    if raw.moments is None:
        return parts, *statistics(raw.train_images[parts["train"]])
    pixels = len(parts["train"]) * int(np.prod(raw.train_images.shape[2:]))
    return parts, *mean_and_deviation(pixels, *raw.moments[parts["train"]].sum(0))


def balanced_subset(images: ImageSet, limit: int) -> ImageSet:
    """`limit` images with as equal a number of each class as there are."""
    limit = check("limit", limit)
    if limit > len(images):
        raise InputError(f"limit is {limit}: {images.name} {images.split} has {len(images)} images.")
    return images.subset(torch.from_numpy(np.sort(balanced_order(images.labels.cpu().numpy())[:limit])))


def balanced_order(labels: np.ndarray, by_share: bool = False) -> np.ndarray:
    """An order of all indices in which every beginning is balanced over the classes; always the same.

    Each class is shuffled and its members numbered 0, 1, 2, …; sorting by that number deals the classes out in turn, as
    many of each as there are. `by_share` sorts by number / size of the class instead: every beginning has the same share
    of each class, so that what is kept apart for tests never takes all of a rare one.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))     # RandomState: NumPy promises this stream for ever
    number = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        number[members] = (np.arange(len(members)) + 0.5) / (len(members) if by_share else 1)
    return np.lexsort((labels, number))
