"""Where a data set's files are found, how they are recognised, and the packed copy that makes the next start quick.

A published set is looked for below MAE_DATA_DIR, then below the project's data/, then among earlier downloads; in each
place first as torchvision stores it, then as parquet files of the Hugging Face Hub. Only what is nowhere is fetched.
What was found is checked, packed into one file named after the checksum of its files, and said.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import shapes
from .config import InputError, project_root, unknown
from .fetch import download
from .packs import (
    Raw,
    checksum,
    file_sum,
    files_sum,
    listing_sum,
    memory_limit,
    open_pack,
    pack,
    statistics,
    unpack,
    write_pack,
    written,
)
from .readers import PARQUET, list_pictures, map_stl10, read_parquet, read_pictures, read_torchvision

# The md5 sums of the original, decompressed IDX files (data/README.md): the embedded arrays are compared in that form.
MNIST_MD5 = {
    "x_train": "6bbc9ace898e44ae57da46a324031adb",
    "y_train": "a25bea736e30d166cdddb491f175f624",
    "x_test": "2646ac647ad5339dbf082846283269ea",
    "y_test": "27ae3e4e09519cfbb04c329615203637",
}


class Known(NamedTuple):
    """What is known of a published set before any file is opened: where to look for it, how to recognise it."""

    title: str
    classes: tuple[str, ...]
    counts: tuple[int, int]             # training and test images, equally many of each class
    shape: tuple[int, int, int]
    torchvision: str                    # the class in torchvision.datasets, which has the addresses and md5 sums
    layout: str                         # the folder that torchvision makes below a root
    hub: str = ""                       # folder and repository on the Hub, the images as PNG
    moments: tuple[float, ...] = ()     # means, then deviations, of the original's training pixels on the scale 0 … 1


KNOWN = {
    "fashion-mnist": Known(
        "Fashion-MNIST", ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                          "Ankle boot"), (60_000, 10_000), (1, 28, 28), "FashionMNIST", "FashionMNIST/raw",
        "zalando-datasets/fashion_mnist/resolve/main/fashion_mnist", (0.2860, 0.3530)),
    "cifar10": Known(
        "CIFAR-10", tuple("airplane automobile bird cat deer dog frog horse ship truck".split()), (50_000, 10_000),
        (3, 32, 32), "CIFAR10", "cifar-10-batches-py", "uoft-cs/cifar10/resolve/main/plain_text",
        (0.4914, 0.4822, 0.4465, 0.2470, 0.2435, 0.2616)),
    "cifar100": Known(
        "CIFAR-100", tuple("""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
        dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
        skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()),
        (50_000, 10_000), (3, 32, 32), "CIFAR100", "cifar-100-python",
        "uoft-cs/cifar100/resolve/main/cifar100", (0.5071, 0.4865, 0.4409, 0.2673, 0.2564, 0.2762)),
    "stl10": Known(
        "STL-10", tuple("airplane bird car cat deer dog horse monkey ship truck".split()), (5_000, 8_000), (3, 96, 96),
        "STL10", "stl10_binary"),
}
BLOCK = 256                                 # pictures that are decoded before they are written to a packed folder
FOLDER_SIZE = 32                            # side of the images of folder:PATH where nobody asks for another


def load_raw(dataset: str, image_size: int | None = None) -> Raw:
    """The named data set, verified once per process; `image_size` is the side of the images of a folder:PATH.

    Raises `InputError` for an unknown name and for files that are missing, damaged or not what their name says.
    """
    if str(dataset).startswith("folder:"):
        return load_folder(dataset.removeprefix("folder:"), image_size or FOLDER_SIZE)
    if str(dataset).startswith("packed:"):
        return load_packed(dataset.removeprefix("packed:"))
    if dataset not in LOADERS:
        raise InputError(unknown("dataset", dataset, [*LOADERS, "folder:PATH", "packed:PATH"]))
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
    return Raw(arrays["x_train"][:, None], arrays["y_train"].astype(np.int64), arrays["x_test"][:, None],
               arrays["y_test"].astype(np.int64), tuple("0123456789"), "MNIST (original)",
               hashlib.md5("".join(MNIST_MD5.values()).encode()).hexdigest())


def _idx_md5(array: np.ndarray) -> str:
    """The md5 sum of an array written as an IDX file: type code, rank and sizes big-endian, then the bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    digest = hashlib.md5(header)
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def load_shapes() -> Raw:
    """The drawn set of shapes.py: 10,000 training and 2,000 test images."""
    parts = *shapes.draw(10_000, seed=0), *shapes.draw(2_000, seed=1)
    return Raw(*parts, shapes.CLASSES, "shapes10 (drawn)", checksum(parts))


# Published sets

class Place(NamedTuple):
    """Where a published set lies: the files of torchvision's layout, or parquet files."""

    root: Path
    files: tuple[Path, ...]
    parquet: bool
    words: str


def load_published(name: str) -> Raw:
    """One of `KNOWN`, from the first place that has it, else downloaded. Says what was used."""
    return _load_published(name, data_roots(), cache_folder())


@lru_cache(maxsize=2)
def _load_published(name: str, roots: tuple, cache: Path) -> Raw:
    raw, place = None, find(name, roots, cache)
    if place is None:
        newest_first = sorted(cache.glob(f"{name}-*.npz"), key=os.path.getmtime, reverse=True)
        earlier = next(filter(None, map(unpack, newest_first)), None)
        if earlier:
            return _said(name, earlier, "packed earlier from files that are gone")
        raw = fetch_published(name, roots, cache)
        place = find(name, roots, cache)
    if name == "stl10" and not place.parquet:       # its files are mapped into memory as they are
        return _said(name, load_stl10(place, cache), place.words)
    packed = cache / f"{name}-{files_sum(place.files)}.npz"
    earlier = None if raw else unpack(packed)
    if earlier:
        return _said(name, earlier, f"packed from {place.words}")
    raw = raw or read(KNOWN[name], place)
    pack(raw, packed)
    return _said(name, raw, place.words)


def _said(name: str, raw: Raw, words: str) -> Raw:
    print(f"{name}: {raw.source}, {words}", flush=True)
    return raw


def data_roots() -> tuple[tuple[Path, str], ...]:
    """The folders to look in, each with its name in messages. `InputError` where MAE_DATA_DIR is no folder."""
    own, given = (project_root() / "data", "data/"), os.environ.get("MAE_DATA_DIR")
    if given and not (Path(given).is_absolute() and Path(given).is_dir()):
        raise InputError(f"MAE_DATA_DIR is {given!r}: it must be the absolute path of a folder that exists.")
    return ((Path(given), "MAE_DATA_DIR"), own) if given else (own,)


def cache_folder() -> Path:
    """Where packed copies and downloads go: MAE_CACHE_DIR, else the platform's folder for such files."""
    given = os.environ.get("MAE_CACHE_DIR")
    if given:
        return project_root() / Path(given).expanduser()
    from platformdirs import user_cache_path
    return user_cache_path("mae_helpers", appauthor=False)


def find(name: str, roots: tuple, cache: Path) -> Place | None:
    """The first place that has files of the set, complete or not."""
    others = set(KNOWN) - {name}
    for root, words in (*roots, (cache / "downloads" / name, "the downloads")):
        layout = root / KNOWN[name].layout
        if layout.is_dir():
            files = (p for p in layout.iterdir() if p.is_file())
            return Place(root, tuple(sorted(files)), False, f"{KNOWN[name].layout} in {words}")
        files = _parquet((root / name).rglob("*"))
        if not files and root.name not in others:           # a root named after another set holds that one
            files = _parquet(root.rglob("*") if root.name == name else root.glob("*"))
        if files:
            return Place(root, tuple(files), True, f"parquet files in {words}")
    return None


def _parquet(paths) -> list[Path]:
    """The parts of a set among files of which some may be anything: a table of results is no data set."""
    return sorted(p for p in paths if p.suffix == ".parquet" and p.name.startswith(("train", "test")))


def read(known: Known, place: Place) -> Raw:
    """The four arrays of a published set, decoded and checked, with the name that their bytes deserve."""
    if place.parquet:
        arrays, jpeg = read_parquet(place.files, known.shape, place.words)
    else:
        arrays, jpeg = read_torchvision(known.torchvision, place.root, known.shape, place.words), False
    classes = len(known.classes)
    for labels, count in zip(arrays[1::2], known.counts):
        if len(labels) != count or set(labels) != set(range(classes)) or np.ptp(np.bincount(labels)):
            raise InputError(f"the {place.words} hold {len(arrays[1]):,} + {len(arrays[3]):,} images, which are not "
                             f"{known.title}'s {known.counts[0]:,} + {known.counts[1]:,} in {classes} equal classes.")
    # No checksum is published for the pixels alone, so a lossless copy is recognised by its means and deviations: those
    # of a JPEG copy that was saved as PNG differ by more than three times this tolerance.
    same = known.moments and np.allclose(np.concatenate(statistics(arrays[0])), known.moments, atol=5e-4, rtol=0)
    what = "JPEG copy" if jpeg else "original" if same else "altered copy"
    return Raw(*arrays, known.classes, f"{known.title} ({what})", checksum(arrays))


# Downloads

def fetch_published(name: str, roots: tuple, cache: Path) -> Raw | None:
    """Download a set into the cache; the decoded set where it had to be decoded to be checked.

    A download has its own folder until all of it is there and verified, and goes on there when it was cut.
    """
    from filelock import FileLock
    if os.environ.get("MAE_OFFLINE", "").lower() not in ("", "0", "false", "no"):
        raise InputError(f"{name} is neither below MAE_DATA_DIR nor in data/, and MAE_OFFLINE forbids to download it.")
    known, folder, failures = KNOWN[name], cache / "downloads" / name, []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):         # the jobs of a sweep all start at once
            if find(name, roots, cache):
                return None
            for way in (_from_hub, _from_torchvision) if known.hub else (_from_torchvision,):
                incoming = folder.with_name(f"{name}{way.__name__}")
                try:
                    raw = way(known, incoming)
                except InputError as error:
                    failures.append(str(error).rstrip("."))
                else:
                    os.replace(incoming, folder)
                    for part in folder.parent.glob(f"{name}_from_*"):       # what another way had begun
                        shutil.rmtree(part)
                    return raw
    except OSError as error:
        failures.append(f"{folder} cannot be written: {error.strerror}")
    files = f"{name}/*.parquet from {hub_address(known)} or " if known.hub else ""
    raise InputError(f"{name} is neither below MAE_DATA_DIR nor in data/ and cannot be downloaded ({'; '.join(failures)}): "
                     f"try again, or put {files}torchvision's {known.layout}/ into one of the two, or use shapes10, which "
                     "needs no files.")


def hub_address(known: Known) -> str:
    """Where the parquet files are; HF_ENDPOINT names a mirror, as for the Hub's own tools."""
    return f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/datasets/{known.hub}"


def _from_hub(known: Known, incoming: Path) -> Raw:
    """The Hub comes first: CIFAR's own host has been throttled to less than 100 kB/s since the middle of 2026.

    The course knows no checksum of these files. What arrives has to have the one that the Hub announces with it, and to
    decode to the right images.
    """
    files = [incoming / PARQUET.format(part) for part in ("train", "test")]
    for path in files:
        if not path.exists():
            download(f"{hub_address(known)}/{path.name}", path)
    try:
        return read(known, Place(incoming, tuple(files), True, f"files of {hub_address(known)}"))
    except InputError:
        shutil.rmtree(incoming)
        raise


def _from_torchvision(known: Known, incoming: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import extract_archive
    source = getattr(datasets, known.torchvision)
    if hasattr(source, "resources"):                        # an archive for each array, unpacked into the layout
        archives, target = [(source.mirrors[0] + file, md5) for file, md5 in source.resources], incoming / known.layout
    else:
        archives, target = [(source.url, source.tgz_md5)], incoming
    paths = [incoming / Path(url).name for url, _ in archives]
    for path, (url, md5) in zip(paths, archives):
        if not path.exists():
            download(url, path, md5)
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        extract_archive(path, target)
    for path in paths:
        path.unlink()


# STL-10, too large to be read into memory, and one's own images

def load_stl10(place: Place, cache: Path) -> Raw:
    """STL-10's own files, mapped into memory; `unlabeled_X.bin` may be missing. Their md5 sums are computed once."""
    folder, known = place.root / KNOWN["stl10"].layout, KNOWN["stl10"]
    note = cache / f"stl10-{listing_sum(place.files)}.md5"
    known_sum = note.read_text() if note.is_file() else _stl10_checksum(folder, place.words)
    with contextlib.suppress(OSError), written(note) as file:       # without a cache it is computed every time
        file.write(known_sum.encode())
    labels = [np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1 for part in ("train", "test")]
    unlabeled = map_stl10(folder, "unlabeled") if (folder / "unlabeled_X.bin").exists() else None
    return Raw(map_stl10(folder, "train"), labels[0], map_stl10(folder, "test"), labels[1], known.classes,
               "STL-10 (original)", known_sum, unlabeled)


def _stl10_checksum(folder: Path, words: str) -> str:
    from torchvision.datasets import STL10
    print("stl10: the checksums of its files are computed once, which takes a while", flush=True)
    sums = dict(STL10.train_list + STL10.test_list)
    if not (folder / "unlabeled_X.bin").exists():
        del sums["unlabeled_X.bin"]
    for file, md5 in sums.items():
        if not (folder / file).exists() or file_sum(folder / file, "md5") != md5:
            raise InputError(f"{words} is damaged or incomplete: {file} is not the original.")
    return hashlib.md5("".join(sums.values()).encode()).hexdigest()


def stl10_folds() -> np.ndarray:
    """The ten official selections of 1,000 training images to learn from: int64 [10, 1000], indices into the whole."""
    place = find("stl10", data_roots(), cache_folder())
    path = place and place.root / KNOWN["stl10"].layout / "fold_indices.txt"
    if not path or not path.is_file():
        raise InputError("fold_indices.txt of STL-10 is in none of the data folders.")
    return np.loadtxt(path, dtype=np.int64, ndmin=2)


def load_folder(path: str, image_size: int = FOLDER_SIZE) -> Raw:
    """Image files of any size, in one sub-folder per class, or loose ones without labels for pretraining only.

    They become RGB [3, image_size, image_size]. A relative path starts at the project root.
    """
    root = named_folder("folder", path)
    files, labels, classes = list_pictures(root)
    mapped = len(files) * 3 * image_size ** 2 > memory_limit()
    packed = cache_folder() / f"folder-{listing_sum(files)}-{image_size}{'' if mapped else '.npz'}"
    if mapped:
        return _map_folder(root, tuple(files), tuple(labels), classes, image_size, packed)
    return _load_folder(root, tuple(files), tuple(labels), classes, image_size, packed)


def named_folder(kind: str, path: str) -> Path:
    """The folder of folder:PATH or packed:PATH. `InputError` for an empty path and for what is no folder."""
    found = project_root() / Path(path).expanduser()
    if not path.strip():
        raise InputError(f"{kind}: names no folder: write its path behind the colon.")
    if not found.is_dir():
        raise InputError(f"{kind}:{path} is not a folder: there is none at {found}.")
    return found


@lru_cache(maxsize=2)
def _load_folder(root: Path, files: tuple, labels: tuple, classes: tuple, image_size: int, packed: Path) -> Raw:
    raw = unpack(packed)
    if raw:
        return _said("folder", raw, "packed earlier")
    arrays = read_pictures(files, image_size, root), np.array(labels, dtype=np.int64)
    raw = Raw(*arrays, None, None, classes, f"{root.name} (folder)", checksum(arrays))
    pack(raw, packed)
    return _said("folder", raw, f"{len(files):,} images")


@lru_cache(maxsize=2)
def _map_folder(root: Path, files: tuple, labels: tuple, classes: tuple, image_size: int, packed: Path) -> Raw:
    """The same for a folder that memory does not hold: decoded in blocks, once, by the first process that needs it."""
    from filelock import FileLock
    blocks = ((read_pictures(files[i:i + BLOCK], image_size, root), np.array(labels[i:i + BLOCK], dtype=np.int64))
              for i in range(0, len(files), BLOCK))
    try:
        packed.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(packed.with_name(f"{packed.name}.lock")):
            earlier = _packed_earlier(packed)
            if earlier:
                return _said("folder", earlier, "mapped, packed earlier")
            write_pack(packed, blocks, classes, f"{root.name} (folder)")
    except OSError as error:
        raise InputError(f"{packed.parent} cannot be written ({error.strerror or error}), and memory does not hold folder "
                         f"{root.name}: set MAE_CACHE_DIR to another folder, or MAE_MEMORY to more GB.") from None
    return _said("folder", open_pack(packed), f"{len(files):,} images, mapped")


def _packed_earlier(packed: Path) -> Raw | None:
    """What this process's predecessors packed; what they left half done or damaged is removed, since nobody else can know of
    it. The caller holds the lock."""
    for left in packed.parent.glob(f".{packed.name}.*"):            # a process that was killed could not remove it
        shutil.rmtree(left)
    if not packed.is_dir():
        return None
    try:
        return open_pack(packed)
    except InputError as error:
        print(f"{error} That is done now.", flush=True)
        shutil.rmtree(packed)
        return None


def load_packed(path: str) -> Raw:
    """A set that `write_pack` wrote. A relative path starts at the project root."""
    folder = named_folder("packed", path)
    return _load_packed(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _load_packed(folder: Path, changed: int) -> Raw:
    return open_pack(folder)


LOADERS = {"mnist": load_mnist, **{name: partial(load_published, name) for name in KNOWN}, "shapes10": load_shapes}
