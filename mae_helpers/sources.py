"""Where a data set's files are found and how they are verified."""
from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .config import InputError, project_root, unknown

# The md5 sums of the original, decompressed IDX files (data/README.md): the embedded arrays are compared in that form.
MNIST_MD5 = {
    "x_train": "6bbc9ace898e44ae57da46a324031adb",
    "y_train": "a25bea736e30d166cdddb491f175f624",
    "x_test": "2646ac647ad5339dbf082846283269ea",
    "y_test": "27ae3e4e09519cfbb04c329615203637",
}


class Raw(NamedTuple):
    """A data set as it was found: uint8 images [N, C, H, W] and int64 labels [N] of the official two parts."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    source: str             # in words, for results and captions
    checksum: str           # of the pixels and labels


def load_raw(dataset: str) -> Raw:
    """The named data set, verified once per process. Raises `InputError` for an unknown name or damaged files."""
    if dataset not in LOADERS:
        raise InputError(unknown("dataset", dataset, LOADERS))
    return LOADERS[dataset]()


def embedded_mnist() -> Path:
    return project_root() / "data" / "mnist.npz"


def load_mnist(path: Path | None = None) -> Raw:
    """The embedded MNIST. Raises `InputError` unless all four arrays are, bit for bit, the original files."""
    return _load_mnist(Path(path or embedded_mnist()))


@lru_cache(maxsize=2)
def _load_mnist(path: Path) -> Raw:
    remedy = "restore it from the repository (git checkout data/mnist.npz)"
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in MNIST_MD5}
    except FileNotFoundError:
        raise InputError(f"{path.name} is not in {path.parent}: {remedy}.") from None
    except Exception as error:          # zipfile, zlib, numpy and KeyError each have their own way to say "damaged"
        raise InputError(f"{path.name} is damaged ({type(error).__name__}): {remedy}.") from None
    for name, expected in MNIST_MD5.items():
        if arrays[name].dtype != np.uint8 or _idx_md5(arrays[name]) != expected:
            raise InputError(f"{path.name} is damaged: {name} does not have the original's checksum; {remedy}.")
    checksum = hashlib.md5("".join(MNIST_MD5.values()).encode()).hexdigest()
    return Raw(arrays["x_train"][:, None], arrays["y_train"].astype(np.int64), arrays["x_test"][:, None],
               arrays["y_test"].astype(np.int64), tuple("0123456789"), "MNIST (original)", checksum)


def _idx_md5(array: np.ndarray) -> str:
    """The md5 sum of an array written as an IDX file: type code, rank and sizes big-endian, then the bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    digest = hashlib.md5(header)
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


LOADERS = {"mnist": load_mnist}
