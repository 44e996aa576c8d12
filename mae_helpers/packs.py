"""A data set as arrays, and its packed copy: one uncompressed file that loads in a fraction of a second, or for sets that
memory does not hold a folder whose images are mapped.

    <folder>/images.bin · labels.npy · moments.npy · about.json
"""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import InputError

VERSION = 1             # of the packed files; others are packed again
MEMORY = 1.0            # GB of images that are read into memory, unless MAE_MEMORY says how many: larger sets are mapped


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it was found: uint8 images [N, C, H, W] and int64 labels [N] of the official parts."""

    train_images: np.ndarray | MappedImages
    train_labels: np.ndarray            # -1 where nobody knows them
    test_images: np.ndarray | None      # None: there is no official test part
    test_labels: np.ndarray | None
    classes: tuple[str, ...]
    source: str                         # in words, for results and captions
    checksum: str                       # of the pixels and labels
    unlabeled: np.ndarray | None = None
    moments: np.ndarray | None = None   # where images are mapped: sum and sum of squares of each channel, int64 [N, 2, C]


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel on the scale 0 … 1, from exact sums: quick for 8-bit pixels."""
    n, sums, squares = images[:, 0].size, [], []
    for channel in images.swapaxes(0, 1):
        parts = (part.ravel().astype(np.float64) for part in np.array_split(channel, range(2048, len(channel), 2048)))
        both = [(part.sum(), part @ part) for part in parts]        # sums of whole numbers: no rounding in any order
        sums.append(sum(first for first, _ in both))
        squares.append(sum(second for _, second in both))
    return mean_and_deviation(n, sums, squares)


def mean_and_deviation(n: int, sums, squares) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of `n` pixels 0 … 255 a channel, on the scale 0 … 1, from the sums of them and of their squares. An empty channel,
    whose pixels are all the same, has the deviation 1, because one divides by it."""
    mean = [s / n / 255 for s in sums]
    std = [max(0, q / n / 255 ** 2 - m ** 2) ** 0.5 for q, m in zip(squares, mean)]
    return tuple(float(round(m, 6)) for m in mean), tuple(float(round(s, 6)) or 1.0 for s in std)


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


# Sets that memory does not hold

def memory_limit() -> float:
    """How many bytes of images of one set are read into memory: 1 GB, or what MAE_MEMORY says in GB."""
    given = os.environ.get("MAE_MEMORY", str(MEMORY))
    try:
        found = float(given)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise InputError(f"MAE_MEMORY is {given!r}: it must be a number at least 0, the GB of images to read into memory.")
    return found * 1e9


class MappedImages:
    """Images uint8 [N, C, H, W] in a file that is mapped into memory: a pixel is read from the disk when it is used.

    Processes that map the same file share what the system keeps of it. Left alone, the system reads up to some MB around
    each pixel, and counts all that was ever touched as resident for as long as there is room. So it is told that the
    order is random, and which images come next, and after a few images their mapping is given back.
    """

    ROWS = 32                   # images that are asked for at once, and given back together

    def __init__(self, path: Path, shape: tuple[int, ...]):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._array, self.shape = np.frombuffer(self._map, np.uint8).reshape(shape), tuple(shape)
        self._advise("MADV_RANDOM")

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the images at the indices rows [n]: uint8 [n, C, H, W]."""
        found, size = np.empty((len(rows), *self.shape[1:]), np.uint8), math.prod(self.shape[1:])
        for start in range(0, len(rows), self.ROWS):
            some = rows[start:start + self.ROWS]
            for row in some.tolist():
                page = row * size // mmap.PAGESIZE * mmap.PAGESIZE
                self._advise("MADV_WILLNEED", page, (row + 1) * size - page)
            found[start:start + self.ROWS] = self._array[some]
            self._advise("MADV_DONTNEED")
        return found

    def _advise(self, what: str, *where: int) -> None:
        if hasattr(mmap, what):                 # not on Windows
            self._map.madvise(getattr(mmap, what), *where)


def write_pack(folder: Path, blocks: Iterable[tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...], source: str) -> None:
    """Write a set of any size as `packed:FOLDER`, from blocks of images uint8 [n, C, H, W] with labels int64 [n].

    Only one block is in memory at a time. The folder gets its name when it is complete. Raises `InputError` where it
    exists, for blocks that do not fit together or cannot be read, for images that are not square, and where the disk has
    no room.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists: remove it, or write the set to another folder.")
    unfinished = unfinished_name(folder)
    digest, shape, labels, moments = hashlib.sha256(), None, [], []
    try:
        unfinished.mkdir(parents=True)
        with open(unfinished / "images.bin", "wb") as file:
            for images, known in _read(blocks, folder.name):
                shape = shape or images.shape[1:]
                _check_block(images, known, shape, folder.name)
                images = np.ascontiguousarray(images)
                file.write(images)
                digest.update(images)
                pixels = images.reshape(*images.shape[:2], -1)
                moments.append(np.stack([pixels.sum(2, dtype=np.int64),
                                         np.multiply(pixels, pixels, dtype=np.uint16).sum(2, dtype=np.int64)], 1))
                labels.append(np.asarray(known, dtype=np.int64))
        if not labels:
            raise InputError(f"{folder.name} would be empty: there is no block of images.")
        labels = np.concatenate(labels)
        digest.update(labels)
        np.save(unfinished / "labels.npy", labels)
        np.save(unfinished / "moments.npy", np.concatenate(moments))
        (unfinished / "about.json").write_text(json.dumps({
            "version": VERSION, "shape": [len(labels), *shape], "classes": list(classes), "source": source,
            "checksum": digest.hexdigest()}), encoding="utf-8")
        os.replace(unfinished, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read(blocks, name: str):
    """The blocks that are not empty. What cannot be read is the fault of whoever makes them, and not of the disk that is
    written to, so it gets its own sentence."""
    try:
        yield from ((images, np.asarray(known)) for images, known in blocks if len(images))
    except OSError as error:
        raise InputError(f"a block of {name} cannot be read: {error}.") from error


def _check_block(images: np.ndarray, known: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    square = images.ndim == 4 and images.shape[2] == images.shape[3]
    if square and images.dtype == np.uint8 and images.shape[1:] == shape and known.shape == (len(images),):
        return
    wanted = ", ".join(map(str, shape)) if len(shape) == 3 and shape[1] == shape[2] else "C, H, H"
    raise InputError(f"a block of {name} is {images.dtype} {list(images.shape)} with labels {list(known.shape)}: every "
                     f"block must be uint8 [n, {wanted}], channels first and square, with labels [n].")


def open_pack(folder: Path) -> Raw:
    """The set in a folder that `write_pack` wrote, its images mapped. `InputError` for another folder, a
    damaged one, fewer than three images, and labels that are no class."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        shape = about["shape"]
        images, labels, moments = (MappedImages(folder / "images.bin", shape), np.load(folder / "labels.npy"),
                                   np.load(folder / "moments.npy", mmap_mode="r"))
        good = about["version"] == VERSION and len(labels) == len(moments) == shape[0]
        raw = Raw(images, labels, None, None, tuple(about["classes"]), about["source"], about["checksum"], moments=moments)
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a packed set: it has no {Path(error.filename).name}.") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"{folder} is damaged ({type(error).__name__}): pack the set again.") from None
    if not good:
        raise InputError(f"{folder} is damaged or of another version: pack the set again.")
    if len(labels) < 3:
        raise InputError(f"{folder} has {len(labels)} images: train, val and test need at least one each.")
    if raw.classes and not (0 <= labels.min() and labels.max() < len(raw.classes)):
        wrong = int(np.flatnonzero((labels < 0) | (labels >= len(raw.classes)))[0])
        raise InputError(f"{folder}: the label of image {wrong} is {labels[wrong]}, and there are {len(raw.classes)} "
                         "classes.")
    return raw


def unfinished_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody else uses: processes in two containers may have the same number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def written(path: Path):
    """A file to write that gets its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished_name(path)
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
