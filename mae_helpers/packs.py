"""A data set as arrays, and its packed copy: one uncompressed file that loads in a fraction of a second."""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 1             # of the packed files; others are packed again


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it was found: uint8 images [N, C, H, W] and int64 labels [N] of the official parts."""

    train_images: np.ndarray
    train_labels: np.ndarray            # -1 where nobody knows them
    test_images: np.ndarray | None      # None: there is no official test part
    test_labels: np.ndarray | None
    classes: tuple[str, ...]
    source: str                         # in words, for results and captions
    checksum: str                       # of the pixels and labels
    unlabeled: np.ndarray | None = None


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel on the scale 0 … 1, from exact sums: quick for 8-bit pixels."""
    n, sums, squares = images[:, 0].size, [], []
    for channel in images.swapaxes(0, 1):
        parts = (part.ravel().astype(np.float64) for part in np.array_split(channel, range(2048, len(channel), 2048)))
        both = [(part.sum(), part @ part) for part in parts]        # sums of whole numbers: no rounding in any order
        sums.append(sum(first for first, _ in both))
        squares.append(sum(second for _, second in both))
    mean = [s / n / 255 for s in sums]
    std = [max(0, q / n / 255 ** 2 - m ** 2) ** 0.5 for q, m in zip(squares, mean)]
    return tuple(float(round(m, 6)) for m in mean), tuple(float(round(s, 6)) for s in std)


def pack(raw: Raw, path: Path) -> None:
    """Write a set to one file, uncompressed. A disk without room costs time at the next start, not this one."""
    arrays = {key: value for key, value in vars(raw).items() if value is not None}
    try:
        with written(path) as file:
            np.savez(file, version=VERSION, **{**arrays, "classes": np.array(raw.classes, dtype=str)})
    except OSError as error:
        print(f"{path.name} cannot be written ({error.strerror}): the images will be decoded again next time.")


def unpack(path: Path) -> Raw | None:
    """The set in a packed file; None, and it is said, where the file is damaged or another version's."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as archive:          # zip keeps a checksum of each array
            if archive["version"] == VERSION:
                found = {f.name: archive[f.name] if f.name in archive else None for f in dataclasses.fields(Raw)}
                words = {key: str(found[key]) for key in ("source", "checksum")}
                return Raw(**{**found, **words, "classes": tuple(found["classes"].tolist())})
        reason = "another version wrote it"
    except Exception as error:                  # zipfile, zlib, numpy and KeyError each have their own way
        reason = f"it is damaged, {type(error).__name__}"
    print(f"{path.name} cannot be used ({reason}): the set is packed again.", flush=True)
    return None


@contextlib.contextmanager
def written(path: Path):
    """A file to write that gets its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum(arrays) -> str:
    """Of pixels and labels: the same for the same images, however they were stored."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def file_sum(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_sum(files) -> str:
    return hashlib.sha256("".join(f"{p.name} {file_sum(p, 'sha256')}\n" for p in files).encode()).hexdigest()[:16]


def listing_sum(files) -> str:
    """Of names, sizes and times, where reading everything would take too long."""
    facts = ((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return hashlib.sha256(repr(list(facts)).encode()).hexdigest()[:16]
