"""How image files become arrays: torchvision's layouts, parquet of the Hugging Face Hub, STL-10's binaries, any picture.

`words` says in messages where the files lie. Every error is one `InputError` that names the file, and the row in it.
"""
from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from .config import InputError
from .packs import Raw, written

PARQUET = "{}-00000-of-00001.parquet"                       # the Hub's name for a part that is one file
PARTS = {"train", "training", "val", "valid", "validation", "test"}        # folders that are no classes
COLUMNS = (("img", "image"), ("label", "fine_label"))       # names in use on the Hub for the image and for its class


def read_torchvision(kind: str, root: Path, shape: tuple, words: str) -> list[np.ndarray]:
    """Images uint8 [N, C, H, W] and labels int64 [N] of the training part, then of the test part.

    `kind` is the class in torchvision.datasets; those of CIFAR check the md5 sums of their files.
    """
    from torchvision import datasets
    arrays = []
    for train in (True, False):
        try:
            part = getattr(datasets, kind)(root, train=train)
        except Exception as error:          # RuntimeError for a wrong sum, and whatever pickle and numpy raise
            raise InputError(f"{words} is damaged or incomplete ({type(error).__name__}): remove it, or put the original "
                             "files there.") from None
        images = np.asarray(part.data)
        if images.shape not in ((len(part.targets), *shape[1:]), (len(part.targets), *shape[1:], shape[0])):
            raise InputError(f"{words} is damaged or incomplete: its images are {list(images.shape)} with "
                             f"{len(part.targets):,} labels.")
        images = images.reshape(-1, *shape[1:], shape[0])
        arrays += [np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.asarray(part.targets, dtype=np.int64)]
    return arrays


def read_parquet(files, shape: tuple, words: str) -> tuple[list[np.ndarray], bool]:
    """The same four arrays from files named train… and test…, and whether any image of them is a JPEG."""
    arrays, jpeg = [], False
    for part in ("train", "test"):
        images, labels = [np.empty((0, *shape), dtype=np.uint8)], [np.empty(0, dtype=np.int64)]
        for path in (p for p in files if p.name.startswith(part)):
            encoded, classes = _columns(path, f"{path.name} of the {words}")
            images.append(np.empty((len(encoded), *shape), dtype=np.uint8))
            labels.append(classes)
            for row, content in enumerate(encoded):
                try:
                    images[-1][row] = _decode(content, shape[0])
                except Exception as error:      # Pillow raises what the decoder of the format raises
                    raise InputError(f"row {row} of {path.name} of the {words} does not hold an image of {shape[1]} × "
                                     f"{shape[2]} pixels ({type(error).__name__}).") from None
            jpeg = jpeg or any(content[:2] == b"\xff\xd8" for content in encoded)
        arrays += [np.concatenate(images), np.concatenate(labels)]
    return arrays, jpeg


def _columns(path: Path, words: str) -> tuple[list[bytes], np.ndarray]:
    import pyarrow.parquet as pq
    try:
        table = pq.read_table(path, partitioning=None)
    except Exception as error:              # pyarrow's own errors, OSError and ValueError
        raise InputError(f"{words} is damaged ({type(error).__name__}): fetch it again.") from None
    try:
        image, label = (next(c for c in names if c in table.column_names) for names in COLUMNS)
        return table[image].combine_chunks().field("bytes").to_pylist(), table[label].to_numpy().astype(np.int64)
    except (RuntimeError, StopIteration, LookupError, AttributeError, ValueError):
        raise InputError(f"{words} has the columns {', '.join(table.column_names)}: it must have img or image, with bytes, "
                         "and label, with whole numbers.") from None


def _decode(content: bytes, channels: int) -> np.ndarray:
    """The pixels [C, H, W] of an encoded image."""
    from PIL import Image
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)


def write_jpeg_copy(raw: Raw, folder: str | os.PathLike, quality: int = 75) -> None:
    """Write a set as parquet files with JPEG images, 4:2:0, as the Hub lays them out.

    With the original at hand this makes the kind of copy that results named "(JPEG copy)" come from, so both can be
    compared: `write_jpeg_copy(load_raw("cifar10"), "elsewhere/cifar10")`, then MAE_DATA_DIR=/…/elsewhere.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def encoded(pixels):
        content = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(content, "JPEG", quality=quality, subsampling="4:2:0")
        return {"bytes": content.getvalue(), "path": None}

    for part, images, labels in (("train", raw.train_images, raw.train_labels), ("test", raw.test_images, raw.test_labels)):
        with written(Path(folder) / PARQUET.format(part)) as file:
            pq.write_table(pa.table({"img": [encoded(pixels) for pixels in images], "label": labels}), file)


def read_pictures(files, size: int, root: Path) -> np.ndarray:
    """Pictures of any size, resized and cropped around the middle: uint8 RGB [N, 3, size, size]."""
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    for i, file in enumerate(files):
        try:
            images[i] = fit_picture(file, size)
        except Exception as error:          # as above
            raise InputError(f"{file.relative_to(root)} in folder {root.name} cannot be read as an image "
                             f"({why(error)}).") from None
    return images


def why(error: Exception) -> str:
    """What a person is told of it: our own sentence, or the kind of somebody else's error."""
    return str(error) if isinstance(error, InputError) else type(error).__name__


def fit_picture(file, size: int) -> np.ndarray:
    """One picture, from its path or an open binary file, as above: uint8 [3, size, size]. Where it is transparent, white
    paper shows through. Raises what Pillow raises, and `InputError` for pixels whose range nothing says."""
    from PIL import Image, ImageOps
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F"):
            raise InputError("its pixels are 32-bit numbers, and nothing says which of them is white")
        if upright.mode.startswith("I;16"):             # 65,535 is white; Pillow itself would make 255 of all above it
            upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
        if upright.has_transparency_data:
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright.convert("RGBA"))
        upright = upright.convert("RGB")
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def list_pictures(root: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The image files below a folder, their labels int64 [N] and the classes: its sub-folders, or none and labels -1.

    Raises `InputError` for sub-folders beside loose images, for an empty class, for fewer than three images, and where the
    sub-folders are train and val or the like.
    """
    from PIL import Image
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}

    def pictures(paths):
        return sorted(p for p in paths if p.suffix.lower() in endings and p.is_file()
                      and not any(part.startswith(".") for part in p.relative_to(root).parts))

    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    parts = folders and {folder.name.lower() for folder in folders} <= PARTS
    if parts and any(inside.is_dir() for folder in folders for inside in folder.iterdir()):
        raise InputError(f"folder {root.name} is divided into {', '.join(p.name for p in folders)} already: sub-folders "
                         "must be the classes, so give one of the parts, or put all images of a class into one folder.")
    loose, by_class = pictures(root.iterdir()), [pictures(folder.rglob("*")) for folder in folders]
    if folders and loose:
        raise InputError(f"folder {root.name} has both sub-folders and loose images such as {loose[0].name}: it must be one "
                         "of them.")
    if not all(by_class):
        raise InputError(f"folder {root.name} has a class without images: {folders[by_class.index([])].name}.")
    if len(loose) + sum(map(len, by_class)) < 3:
        raise InputError(f"folder {root.name} has fewer than 3 images: training, validation and test need one each.")
    labels = np.repeat(np.arange(len(folders)), [len(group) for group in by_class]) if folders else np.full(len(loose), -1)
    return sum(by_class, loose), labels.astype(np.int64), tuple(folder.name for folder in folders)


def map_stl10(folder: Path, part: str) -> np.ndarray:
    """The images [N, 3, 96, 96] of a part of STL-10, mapped into memory: a pixel is read when it is used.

    In the file columns come before rows. Changes to the array stay in memory, the file is never written.
    """
    return np.memmap(folder / f"{part}_X.bin", np.uint8, "c").reshape(-1, 3, 96, 96).swapaxes(2, 3)
