"""Where data sets come from: every layout on disk, downloads from a server on this machine, what is said of bad files."""
import contextlib
import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision import datasets

from mae_helpers import InputError, fetch, load_images, packs, readers, shapes, sources

REAL = os.environ.get("MAE_DATA_DIR")           # before the fixture below takes it away
NOWHERE = "http://127.0.0.1:9"                  # refuses every connection
TRAIN, TEST = shapes.draw(40, seed=7), shapes.draw(20, seed=8)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A project, a cache and a CIFAR-10 of the test's own; nothing is reached outside."""
    (tmp_path / "project" / "data").mkdir(parents=True)
    monkeypatch.setattr(sources, "project_root", lambda: tmp_path / "project")
    monkeypatch.setenv("MAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.delenv("MAE_DATA_DIR", raising=False)
    monkeypatch.delenv("MAE_OFFLINE", raising=False)
    for kind in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        monkeypatch.setattr(kind, "url", f"{NOWHERE}/{kind.filename}")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{NOWHERE}/"])
    moments = tuple(np.concatenate(packs.statistics(TRAIN[0])))
    small(monkeypatch, "cifar10", counts=(40, 20), moments=moments)
    again()


def small(monkeypatch, name, **changes):
    monkeypatch.setitem(sources.KNOWN, name, sources.KNOWN[name]._replace(**changes))


def again():
    """Forget what this process has loaded, as a new process would."""
    sources._load_published.cache_clear()
    sources._load_folder.cache_clear()


def encode(pixels, kind="PNG", **how):
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(content, kind, **how)
    return content.getvalue()


def parquet(images, labels, kind="PNG", image="img", label="label"):
    rows = [{"bytes": p if isinstance(p, bytes) else encode(p, kind), "path": None} for p in images]
    content = io.BytesIO()
    pq.write_table(pa.table({image: rows, label: labels}), content)
    return content.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_hub(folder, train=TRAIN, test=TEST, **how):
    for part, arrays in (("train", train), ("test", test)):
        write(folder / f"{part}-00000-of-00001.parquet", parquet(*arrays, **how))
    return folder


def md5(content):
    return hashlib.md5(content).hexdigest()


def cifar_layout(monkeypatch, train=TRAIN, test=TEST):
    """The files of cifar-10-batches-py, five batches and one, whose sums torchvision then expects."""
    files = {f"data_batch_{i + 1}": tuple(a[i * 8:(i + 1) * 8] for a in train) for i in range(5)} | {"test_batch": test}
    files = {name: pickle.dumps({"data": images.reshape(-1, 3072), "labels": labels.tolist()})
             for name, (images, labels) in files.items()}
    files["batches.meta"] = pickle.dumps({"label_names": list(sources.KNOWN["cifar10"].classes)})
    sums = [[name, md5(content)] for name, content in files.items()]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:6])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums[6][1]})
    return files


def write_cifar_layout(root, monkeypatch):
    for name, content in cifar_layout(monkeypatch).items():
        write(root / "cifar-10-batches-py" / name, content)
    return root


def refuses(words, action, *arguments):
    """The call fails with one sentence that has the words in it, and nothing half-written is left."""
    with pytest.raises(InputError, match=words) as error:
        action(*arguments)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence and ". " not in sentence, sentence
    assert error.value.__context__ is None or error.value.__suppress_context__
    return sentence


def is_the_set(raw):
    return all(np.array_equal(a, b) for a, b in zip((raw.train_images, raw.train_labels, raw.test_images, raw.test_labels),
                                                    TRAIN + TEST))


# Files on disk

def test_parquet_below_the_data_root(tmp_path, monkeypatch, capsys):
    write_hub(tmp_path / "big" / "cifar10")
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "big"))
    raw = sources.load_raw("cifar10")
    assert is_the_set(raw) and raw.source == "CIFAR-10 (original)" and raw.classes[3] == "cat"
    assert capsys.readouterr().out == "cifar10: CIFAR-10 (original), parquet files in MAE_DATA_DIR\n"


@pytest.mark.parametrize("below", ["cifar10", "cifar10/plain_text", "any name"])
def test_the_data_root_may_be_the_folder_of_the_files(tmp_path, monkeypatch, below):
    write_hub(tmp_path / below)
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / below if " " in below else tmp_path / "cifar10"))
    assert is_the_set(sources.load_raw("cifar10"))


def test_a_folder_named_after_another_set_is_left_alone(tmp_path, monkeypatch):
    write_hub(tmp_path / "cifar100")
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "cifar100"))
    refuses("cannot be downloaded", sources.load_raw, "cifar10")


def test_column_names_of_the_hub(tmp_path, monkeypatch):
    small(monkeypatch, "cifar100", counts=(40, 20), classes=tuple("abcdefghij"))
    write_hub(tmp_path / "project" / "data" / "cifar100", image="image", label="fine_label")
    raw = sources.load_raw("cifar100")
    assert is_the_set(raw) and raw.source == "CIFAR-100 (altered copy)"


def test_files_in_parts_are_joined_in_order(tmp_path):
    folder = write_hub(tmp_path / "project" / "data" / "cifar10")
    (folder / "train-00000-of-00001.parquet").unlink()
    for i in range(2):
        write(folder / f"train-0000{i}-of-00002.parquet", parquet(*(a[i * 20:(i + 1) * 20] for a in TRAIN)))
    assert is_the_set(sources.load_raw("cifar10"))


def test_the_name_comes_from_the_bytes(tmp_path):
    """One JPEG among the images, or other pixels, and it is not the original."""
    folder = tmp_path / "project" / "data" / "cifar10"
    mixed = [encode(pixels, "JPEG" if i == 17 else "PNG") for i, pixels in enumerate(TRAIN[0])]
    write_hub(folder, train=(mixed, TRAIN[1]))
    assert load_images("cifar10").source == "CIFAR-10 (JPEG copy)"
    again()
    write_hub(folder, train=(TRAIN[0] // 2, TRAIN[1]))
    assert load_images("cifar10").source == "CIFAR-10 (altered copy)"


def test_torchvisions_layout(tmp_path, monkeypatch, capsys):
    write_cifar_layout(tmp_path / "project" / "data", monkeypatch)
    raw = sources.load_raw("cifar10")
    assert is_the_set(raw) and raw.source == "CIFAR-10 (original)"
    assert "cifar-10-batches-py in data/" in capsys.readouterr().out


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion_files():
    grey = [np.ascontiguousarray(images[:, 0, 2:30, 2:30]) for images in (TRAIN[0], TEST[0])]
    arrays = grey[0], TRAIN[1].astype(np.uint8), grey[1], TEST[1].astype(np.uint8)
    return {name.removesuffix(".gz"): idx(a) for (name, _), a in zip(datasets.FashionMNIST.resources, arrays)}


def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    small(monkeypatch, "fashion-mnist", counts=(40, 20))
    for name, content in fashion_files().items():
        write(tmp_path / "project" / "data" / "FashionMNIST" / "raw" / name, content)
    raw = sources.load_raw("fashion-mnist")
    assert raw.train_images.shape == (40, 1, 28, 28) and np.array_equal(raw.test_images[:, 0], TEST[0][:, 0, 2:30, 2:30])
    assert np.array_equal(raw.train_labels, TRAIN[1]) and raw.classes[9] == "Ankle boot"


@pytest.mark.parametrize("damage", ["swapped", "other sides", "larger"])
def test_files_of_fashion_mnist_that_do_not_fit_together_are_one_sentence(tmp_path, monkeypatch, damage):
    small(monkeypatch, "fashion-mnist", counts=(40, 20))
    files = fashion_files()
    if damage == "swapped":
        files["train-images-idx3-ubyte"], files["t10k-images-idx3-ubyte"] = (
            files["t10k-images-idx3-ubyte"], files["train-images-idx3-ubyte"])
    else:
        side = 30 if damage == "other sides" else 56
        files["t10k-images-idx3-ubyte"] = idx(np.zeros((20, side, side), dtype=np.uint8))
    for name, content in files.items():
        write(tmp_path / "project" / "data" / "FashionMNIST" / "raw" / name, content)
    refuses("FashionMNIST/raw in data/ is damaged or incomplete: its images are", sources.load_raw, "fashion-mnist")


def test_a_table_of_results_beside_the_data_is_no_data_set(tmp_path, monkeypatch):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "project" / "data" / "cifar10" / "results.parquet")
    (tmp_path / "mine").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine" / "results.parquet")
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "mine"))
    assert is_the_set(sources.load_raw("cifar10"))


def test_the_same_pixels_have_the_same_checksum_however_they_are_stored(tmp_path, monkeypatch):
    data = tmp_path / "project" / "data"
    write_hub(data / "cifar10")
    first = sources.load_raw("cifar10").checksum
    again()
    write_cifar_layout(data, monkeypatch)
    assert sources.load_raw("cifar10").checksum == first


def test_the_data_root_comes_first_and_in_it_torchvisions_layout(tmp_path, monkeypatch, capsys):
    write_cifar_layout(tmp_path / "project" / "data", monkeypatch)
    write_hub(tmp_path / "big" / "cifar10")
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "big"))
    sources.load_raw("cifar10")
    write_cifar_layout(tmp_path / "big", monkeypatch)
    again()
    sources.load_raw("cifar10")
    lines = capsys.readouterr().out.splitlines()
    assert ["parquet" in lines[0], "cifar-10-batches-py in MAE_DATA_DIR" in lines[1]] == [True, True]


def test_a_jpeg_copy_of_the_original(tmp_path, monkeypatch):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    original = sources.load_raw("cifar10")
    readers.write_jpeg_copy(original, tmp_path / "copy" / "cifar10")
    row = pq.read_table(tmp_path / "copy" / "cifar10" / "test-00000-of-00001.parquet")["img"][0].as_py()
    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(row["bytes"]))) == 2          # 4:2:0
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "copy"))
    copy = sources.load_raw("cifar10")
    error = abs(copy.train_images.astype(int) - original.train_images).mean()
    assert copy.source == "CIFAR-10 (JPEG copy)" and np.array_equal(copy.train_labels, TRAIN[1]) and 1 < error < 30


@pytest.mark.skipif(not REAL, reason="MAE_DATA_DIR names no folder with the real CIFAR-10")
def test_the_real_cifar10(monkeypatch):
    monkeypatch.undo()
    train = load_images("cifar10")
    assert list(train.images.shape) == [45_000, 3, 32, 32] and train.source.startswith("CIFAR-10 (")
    assert train.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert train.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)


# Wrong files

@pytest.mark.parametrize("value", ["relative/folder", "/no/such/folder"])
def test_a_data_root_that_is_no_folder(monkeypatch, value):
    monkeypatch.setenv("MAE_DATA_DIR", value)
    refuses(f"MAE_DATA_DIR is '{value}': it must be the absolute path of a folder that exists", load_images, "cifar10")
    assert len(load_images("shapes10", "test")) == 2_000          # which needs no folder


def broken_row(images):
    rows = [encode(pixels) for pixels in images]
    return [*rows[:11], b"\x89PNG no more", *rows[12:]]


@pytest.mark.parametrize("damage, words", [
    (lambda: parquet(*TRAIN, image="picture"), "train-.*has the columns picture, label: it must have img or image"),
    (lambda: parquet(*TRAIN, label="target"), "has the columns img, target: it must have .* label"),
    (lambda: parquet(broken_row(TRAIN[0]), TRAIN[1]), "row 11 of train-.*does not hold an image of 32 × 32 pixels"),
    (lambda: parquet([p[:, :16] if i == 5 else p for i, p in enumerate(TRAIN[0])], TRAIN[1]), "row 5 of train-.*32 × 32"),
    (lambda: parquet(*shapes.draw(30, seed=1)), r"hold 30 \+ 20 images, which are not CIFAR-10's 40 \+ 20 in 10"),
    (lambda: parquet(TRAIN[0], np.append(TRAIN[1][:-1], (TRAIN[1][-1] + 1) % 10)), "10 equal classes"),
    (lambda: parquet(TRAIN[0], TRAIN[1] % 9), "10 equal classes"),
    (lambda: parquet(TRAIN[0], TRAIN[1] - 1), "10 equal classes"),
    (lambda: parquet(*TRAIN)[:-200], "train-.* is damaged"),
    (lambda: b"", "train-.* is damaged")],
    ids=["image-column", "label-column", "undecodable", "size", "count", "unbalanced", "classes", "labels", "cut", "empty"])
def test_a_bad_parquet_file_is_one_sentence(tmp_path, damage, words):
    folder = write_hub(tmp_path / "project" / "data" / "cifar10")
    write(folder / "train-00000-of-00001.parquet", damage())
    refuses(words, load_images, "cifar10")
    assert not list(tmp_path.glob("cache/*"))


def test_a_missing_part_is_one_sentence(tmp_path):
    folder = write_hub(tmp_path / "project" / "data" / "cifar10")
    (folder / "test-00000-of-00001.parquet").unlink()
    refuses(r"hold 40 \+ 0 images", load_images, "cifar10")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9] + b"\0" + content[-8:], None], ids=["byte", "missing"])
def test_a_damaged_layout_is_one_sentence(tmp_path, monkeypatch, name, damage):
    path = write_cifar_layout(tmp_path, monkeypatch) / "cifar-10-batches-py" / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path))
    refuses("cifar-10-batches-py in MAE_DATA_DIR is damaged or incomplete", load_images, "cifar10")


# Packed copies

@pytest.fixture
def packed(tmp_path, capsys):
    """The one packed file, after a first load from parquet files."""
    write_hub(tmp_path / "project" / "data" / "cifar10")
    sources.load_raw("cifar10")
    again()
    capsys.readouterr()
    [path] = (tmp_path / "cache").iterdir()
    return path


def test_the_second_start_reads_the_packed_copy(packed, monkeypatch, capsys):
    monkeypatch.setattr(sources, "read", None)
    raw = sources.load_raw("cifar10")
    assert is_the_set(raw) and raw.source == "CIFAR-10 (original)" and raw.classes == sources.KNOWN["cifar10"].classes
    assert capsys.readouterr().out == "cifar10: CIFAR-10 (original), packed from parquet files in data/\n"
    assert sources.load_raw("cifar10") is raw and capsys.readouterr().out == ""


def test_other_files_are_packed_anew(packed, tmp_path):
    write_hub(tmp_path / "project" / "data" / "cifar10", train=(TRAIN[0] // 2, TRAIN[1]))
    assert np.array_equal(sources.load_raw("cifar10").train_images, TRAIN[0] // 2)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def flip_a_pixel(path):
    content = bytearray(path.read_bytes())
    content[content.index(TRAIN[0].tobytes()[:64]) + 70] ^= 1
    path.write_bytes(content)


def older(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "version": packs.VERSION - 1, "train_images": arrays["train_images"] // 2})


@pytest.mark.parametrize("damage, words", [
    (flip_a_pixel, "damaged"), (lambda path: path.write_bytes(path.read_bytes()[:5_000]), "damaged"),
    (lambda path: path.write_bytes(b""), "damaged"), (older, "another version")], ids=["pixel", "cut", "empty", "version"])
def test_a_bad_packed_copy_is_said_and_replaced(packed, capsys, damage, words):
    damage(packed)
    assert is_the_set(sources.load_raw("cifar10"))
    said = capsys.readouterr().out.splitlines()
    assert words in said[0] and packed.name in said[0] and said[1].endswith("parquet files in data/")
    again()
    sources.load_raw("cifar10")
    assert capsys.readouterr().out.splitlines() == ["cifar10: CIFAR-10 (original), packed from parquet files in data/"]


def test_a_packed_copy_serves_when_its_files_are_gone(packed, tmp_path, capsys):
    for path in (tmp_path / "project" / "data" / "cifar10").iterdir():
        path.unlink()
    assert is_the_set(sources.load_raw("cifar10"))
    assert "packed earlier from files that are gone" in capsys.readouterr().out


@contextlib.contextmanager
def full_disk(room):
    """No file may grow beyond `room` bytes: the system itself refuses the rest, in the middle of writing."""
    resource = pytest.importorskip("resource", reason="only Unix can limit the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_packing(tmp_path, capsys):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    with full_disk(20_000):
        assert is_the_set(sources.load_raw("cifar10"))
    assert "cannot be written (File too large)" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_leaves_the_earlier_copy(packed, tmp_path, capsys):
    before = packed.read_bytes()
    with full_disk(20_000):
        packs.pack(sources.load_raw("cifar10"), packed)
    assert "cannot be written" in capsys.readouterr().out
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [before]


def test_a_cache_that_is_no_folder_costs_only_time(tmp_path, capsys):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    write(tmp_path / "cache", b"")
    assert is_the_set(sources.load_raw("cifar10")) and "cannot be written" in capsys.readouterr().out


def test_without_a_variable_the_platform_decides(monkeypatch):
    monkeypatch.delenv("MAE_CACHE_DIR")
    assert sources.cache_folder().is_absolute() and "mae_helpers" in sources.cache_folder().parts
    monkeypatch.setenv("MAE_CACHE_DIR", "~/kept")
    assert sources.cache_folder() == Path.home() / "kept"


# Downloads, from a server on this machine

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        answer = self.server.answers.get(self.path, 404)
        if isinstance(answer, list):                # one answer for each request, the last one for all that follow
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, int):
            return self.send_error(answer)
        answer(self) if callable(answer) else self.send(answer)

    def send(self, content, ranges=True, cut=None, **headers):
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") if ranges else None
        start = int(found[1]) if found else 0
        if found and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", len(content) - start)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[start:start + cut] if cut else content[start:])

    def log_message(self, *arguments):
        pass


def cut(content, after, **how):
    return lambda handler: handler.send(content, cut=after, **how)


@pytest.fixture
def server(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.seen, server.url = {}, [], f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.url}/cifar-10-python.tar.gz")
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{server.url}/fashion/"])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


HUB = "/datasets/uoft-cs/cifar10/resolve/main/plain_text/{}-00000-of-00001.parquet"
ARCHIVE = "/cifar-10-python.tar.gz"


@pytest.fixture
def hub(server):
    """The server as the Hub, with the small set in PNG."""
    server.answers |= {HUB.format("train"): parquet(*TRAIN), HUB.format("test"): parquet(*TEST)}
    return server


@pytest.fixture
def host(server, monkeypatch):
    """The server as CIFAR-10's own host."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in {**cifar_layout(monkeypatch), "readme.html": bytes(300_000)}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(content.getvalue()))
    server.answers[ARCHIVE] = content.getvalue()
    return server


def left(tmp_path):
    """All files of the cache but the empty one that is locked."""
    return sorted(p.relative_to(tmp_path / "cache").as_posix() for p in (tmp_path / "cache").rglob("*")
                  if p.is_file() and p.suffix != ".lock")


def test_a_download_from_the_hub(hub, tmp_path, capsys):
    raw = sources.load_raw("cifar10")
    assert is_the_set(raw) and raw.source == "CIFAR-10 (original)"
    assert capsys.readouterr().out == "cifar10: CIFAR-10 (original), parquet files in the downloads\n"
    packed, *files = left(tmp_path)
    assert packed.endswith(".npz") and files == [f"downloads/cifar10/{p}-00000-of-00001.parquet" for p in ("test", "train")]
    again()
    hub.answers.clear()
    assert is_the_set(sources.load_raw("cifar10"))


def test_a_download_from_its_own_host(host, tmp_path):
    raw = sources.load_raw("cifar10")                   # the Hub answers 404 here
    assert is_the_set(raw) and raw.source == "CIFAR-10 (original)"
    assert "downloads/cifar10/cifar-10-batches-py/data_batch_1" in left(tmp_path)
    assert not [name for name in left(tmp_path) if name.endswith((".gz", ".part"))]


def test_what_another_way_had_begun_is_removed(host, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "TRIES", 1)
    host.answers[HUB.format("train")] = cut(parquet(*TRAIN), 10_000)
    assert is_the_set(sources.load_raw("cifar10")) and not [name for name in left(tmp_path) if "_from_" in name]


def test_a_set_of_several_archives(server, monkeypatch, tmp_path):
    small(monkeypatch, "fashion-mnist", counts=(40, 20))
    files = {f"{name}.gz": gzip.compress(content) for name, content in fashion_files().items()}
    monkeypatch.setattr(datasets.FashionMNIST, "resources", [(name, md5(content)) for name, content in files.items()])
    server.answers |= {f"/fashion/{name}": content for name, content in files.items()}
    assert np.array_equal(sources.load_raw("fashion-mnist").train_labels, TRAIN[1])
    assert not [name for name in left(tmp_path) if name.endswith((".gz", ".part"))]


def test_what_is_on_disk_is_not_downloaded(hub, tmp_path):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    sources.load_raw("cifar10")
    assert hub.seen == []


def test_a_cut_download_goes_on_where_it_was_cut(hub):
    content = hub.answers[HUB.format("train")]
    hub.answers[HUB.format("train")] = [cut(content, 10_000), cut(content, 5_000), content]
    assert is_the_set(sources.load_raw("cifar10"))
    assert [where for path, where in hub.seen if "train" in path] == [None, "bytes=10000-", "bytes=15000-"]


def test_a_server_without_ranges_sends_all_again(hub):
    content = hub.answers[HUB.format("train")]
    hub.answers[HUB.format("train")] = [cut(content, 10_000), lambda handler: handler.send(content, ranges=False)]
    assert is_the_set(sources.load_raw("cifar10"))


def test_a_later_start_goes_on_with_a_cut_download(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "TRIES", 1)
    content = hub.answers[HUB.format("train")]
    hub.answers[HUB.format("train")] = [cut(content, 10_000), content]
    sentence = refuses("connection was cut.*after 10,000 bytes of train-", sources.load_raw, "cifar10")
    assert "goes on" in sentence and left(tmp_path) == ["downloads/cifar10_from_hub/train-00000-of-00001.parquet.part"]
    assert is_the_set(sources.load_raw("cifar10"))
    assert [where for path, where in hub.seen if "train" in path] == [None, "bytes=10000-"]


def test_a_part_that_does_not_fit_is_thrown_away(hub, tmp_path):
    write(tmp_path / "cache" / "downloads" / "cifar10_from_hub" / "train-00000-of-00001.parquet.part", b"x" * 10 ** 6)
    assert is_the_set(sources.load_raw("cifar10"))


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_one_sentence_with_the_remedies(server, status, tmp_path):
    server.answers |= {HUB.format(part): status for part in ("train", "test")} | {ARCHIVE: status}
    sentence = refuses(f"cifar10 is neither .* answered {status} .* answered {status}", load_images, "cifar10")
    assert all(word in sentence for word in ("MAE_DATA_DIR", "data/", "cifar10/*.parquet", "uoft-cs/cifar10",
                                             "cifar-10-batches-py", "shapes10"))
    assert left(tmp_path) == []


def test_without_a_network(tmp_path):
    refuses("cifar10 is neither .*no connection.*shapes10", load_images, "cifar10")
    refuses("stl10 is neither .*no connection.*stl10_binary.*shapes10", load_images, "stl10")
    assert left(tmp_path) == []


def test_silence_counts_as_a_cut(hub, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", (0.2, 0.2))
    quiet = threading.Event()
    hub.answers[HUB.format("train")] = lambda handler: quiet.wait(5)
    refuses("no answer in time", sources.load_raw, "cifar10")
    quiet.set()


def test_another_checksum_is_one_sentence(host, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(b"the original"))
    refuses("cifar-10-python.tar.gz from 127.* has another checksum", sources.load_raw, "cifar10")
    assert left(tmp_path) == []


def test_the_checksum_that_the_hub_announces_is_compared(hub, tmp_path):
    """It comes with the redirection to the storage, which knows nothing of it."""
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "/storage")
        handler.send_header("X-Linked-ETag", f'"{announced}"')
        handler.end_headers()

    content = hub.answers[HUB.format("train")]
    hub.answers |= {HUB.format("train"): redirect, "/storage": content}
    announced = hashlib.sha256(b"something else").hexdigest()
    refuses("train-.*has another checksum", sources.load_raw, "cifar10")
    assert left(tmp_path) == []
    announced = hashlib.sha256(content).hexdigest()
    assert is_the_set(sources.load_raw("cifar10"))


def test_a_download_with_other_images_is_refused_and_removed(hub, tmp_path):
    hub.answers[HUB.format("train")] = parquet(TRAIN[0][:30], TRAIN[1][:30])
    refuses(r"hold 30 \+ 20 images", sources.load_raw, "cifar10")
    assert left(tmp_path) == []


def test_a_disk_that_fills_during_a_download(hub, tmp_path):
    with full_disk(20_000):
        refuses("train-.*cannot be written", sources.load_raw, "cifar10")
    assert left(tmp_path) == ["downloads/cifar10_from_hub/train-00000-of-00001.parquet.part"]
    assert is_the_set(sources.load_raw("cifar10"))


def test_certificates_that_are_not_there_are_not_called_a_full_disk(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http:", "https:"))
    refuses(r"127.0.0.1:\d+: Could not find a suitable TLS CA certificate bundle", sources.load_raw, "cifar10")


def test_an_empty_endpoint_is_none(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert sources.hub_address(sources.KNOWN["cifar10"]).startswith("https://huggingface.co/datasets/")


def test_a_disk_that_fills_while_unpacking(host, tmp_path):
    with full_disk(200_000):                            # room for the archive, not for all that comes out of it
        refuses("downloads/cifar10 cannot be written: File too large", sources.load_raw, "cifar10")
    assert not (tmp_path / "cache" / "downloads" / "cifar10").exists()
    assert is_the_set(sources.load_raw("cifar10"))


# STL-10

@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """A folder with STL-10's binary files, small; returns the images as they should be read."""
    draw, images, sums = np.random.RandomState(0), {}, {}
    folder = tmp_path / "big" / "stl10_binary"
    for part, count in (("train", 50), ("test", 20), ("unlabeled", 30)):
        images[part] = draw.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        files = {f"{part}_X.bin": images[part].swapaxes(2, 3).tobytes()}           # column by column
        if part != "unlabeled":
            files[f"{part}_y.bin"] = (np.arange(count) % 10 + 1).astype(np.uint8).tobytes()
        sums |= {name: md5(write(folder / name, content).read_bytes()) for name, content in files.items()}
    folds = np.arange(20).reshape(10, 2)
    (folder / "fold_indices.txt").write_text("".join(" ".join(map(str, fold)) + " \n" for fold in folds))
    monkeypatch.setattr(datasets.STL10, "train_list", [[k, v] for k, v in sums.items() if "test" not in k])
    monkeypatch.setattr(datasets.STL10, "test_list", [[k, v] for k, v in sums.items() if "test" in k])
    monkeypatch.setenv("MAE_DATA_DIR", str(tmp_path / "big"))
    return images


def test_stl10(stl10):
    unlabeled, test = load_images("stl10", "unlabeled"), load_images("stl10", "test")
    assert np.array_equal(unlabeled.images, stl10["unlabeled"]) and np.array_equal(test.images, stl10["test"])
    assert test.labels.tolist() == [i % 10 for i in range(20)] and set(unlabeled.labels.tolist()) == {-1}
    assert len(load_images("stl10", "train")) == 45 and len(load_images("stl10", "val")) == 5
    assert unlabeled.source == "STL-10 (original)" and unlabeled.image_size == 96 and unlabeled.classes[9] == "truck"
    assert sources.stl10_folds().tolist() == [[2 * i, 2 * i + 1] for i in range(10)]


def test_unlabelled_images_stay_in_their_file(stl10, tmp_path):
    """They are read where they are used, and changing them changes no file."""
    unlabeled = load_images("stl10", "unlabeled")
    assert unlabeled.images.data_ptr() == sources.load_raw("stl10").unlabeled.ctypes.data
    unlabeled.images[0] = 0
    again()
    assert np.array_equal(load_images("stl10", "unlabeled").images, stl10["unlabeled"])


def test_stl10_at_224_is_resized_when_it_is_read(stl10):
    large = load_images("stl10", "unlabeled", image_size=224)
    assert large.image_size == 224 and list(large.images.shape) == [30, 3, 224, 224] and len(large) == 30
    assert large.images.stored.data_ptr() == sources.load_raw("stl10").unlabeled.ctypes.data
    batch = large.to("cpu").images[torch.tensor([4, 2])]
    assert batch.dtype == torch.uint8 and list(batch.shape) == [2, 3, 224, 224]
    assert torch.equal(large.images[2], batch[1]) and torch.equal(torch.cat([*large.images.split(7)])[4], batch[0])
    for side in (224, 48):                          # smaller, pixels are averaged and not left out
        picture = Image.fromarray(stl10["unlabeled"][4].transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
        found = load_images("stl10", "unlabeled", image_size=side).images[4].permute(1, 2, 0)
        assert abs(np.asarray(picture).astype(int) - found.numpy()).max() <= 1
    few = load_images("stl10", "train", 20, image_size=48)
    assert list(few.images.shape) == [20, 3, 48, 48] and few.labels.bincount().tolist() == [2] * 10


def test_stl10_without_its_largest_file(stl10, tmp_path):
    (tmp_path / "big" / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert len(load_images("stl10", "train")) == 45
    refuses("unlabeled_X.bin is missing", load_images, "stl10", "unlabeled")


@pytest.mark.parametrize("name", ["train_X.bin", "test_y.bin", "unlabeled_X.bin"])
def test_damaged_stl10_is_one_sentence(stl10, tmp_path, name):
    path = tmp_path / "big" / "stl10_binary" / name
    path.write_bytes(b"\7" + path.read_bytes()[1:])
    refuses(f"stl10_binary in MAE_DATA_DIR is damaged or incomplete: {name} is not the original", load_images, "stl10")
    path.unlink()
    if name != "unlabeled_X.bin":
        refuses(f"{name} is not the original", load_images, "stl10")


def test_the_sums_of_stl10_are_computed_once(stl10, monkeypatch):
    first = load_images("stl10").checksum
    again()
    monkeypatch.setattr(sources, "file_sum", None)
    assert load_images("stl10").checksum == first


def test_only_stl10_has_unlabelled_images():
    refuses("split is 'unlabeled': it must be one of train, val, test", load_images, "cifar10", "unlabeled")


# A folder of one's own images

@pytest.fixture
def album(tmp_path):
    """Two classes, 20 images of all sizes and kinds each."""
    for name, colour in (("cats", (200, 30, 30)), ("dogs", (30, 30, 200))):
        for i in range(20):
            path = tmp_path / "album" / name / f"{i}.{('png', 'jpg', 'webp', 'gif')[i % 4]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + 7 * i, 90 - i), colour).save(path)
    return tmp_path / "album"


def test_a_folder_of_classes(album, capsys):
    train, val, test = (load_images(f"folder:{album}", split) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [33, 3, 4] and train.classes == ("cats", "dogs")
    assert list(train.images.shape) == [33, 3, 32, 32] and train.source == "album (folder)"
    red = train.images[:, 0].float().mean((1, 2)) > 100
    assert torch.equal(red, train.labels == 0) and test.labels.bincount().tolist() == [2, 2]
    assert capsys.readouterr().out == "folder: album (folder), 40 images\n"
    assert list(load_images(f"folder:{album}", image_size=48).images.shape) == [33, 3, 48, 48]


def test_the_parts_of_a_folder_share_nothing(tmp_path):
    for i in range(30):
        write(tmp_path / "loose" / f"{i:02}.png", encode(np.full((3, 8, 8), 8 * i, dtype=np.uint8)))
    parts = [load_images(f"folder:{tmp_path / 'loose'}", split) for split in ("train", "val", "test")]
    levels = [part.images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(sum(levels, [])) == [8 * i for i in range(30)] and list(map(len, levels)) == [25, 2, 3]
    assert parts[0].classes == () and set(parts[0].labels.tolist()) == {-1}


def test_pictures_are_cropped_around_the_middle_and_upright(tmp_path):
    wide = np.zeros((3, 40, 120), dtype=np.uint8)
    wide[:, :, 40:80] = 255                             # only the middle is white
    turned = Image.Exif()
    turned[0x0112] = 6                                  # the camera was held upright
    half = np.zeros((3, 40, 40), dtype=np.uint8)
    half[:, :, :20] = 255                               # left in the file, above when looked at
    write(tmp_path / "some" / "a.png", encode(wide))
    write(tmp_path / "some" / "b.jpg", encode(half, "JPEG", exif=turned))
    write(tmp_path / "some" / "c.png", encode(wide[:1]))
    images = sources.load_folder(str(tmp_path / "some")).train_images
    assert images[0, :, 2:-2, 2:-2].min() == 255 and images[2, :, 2:-2, 2:-2].min() == 255
    assert images[1, :, :12].min() > 240 and images[1, :, 20:].max() < 15


def test_grey_of_16_bits_is_scaled_transparency_is_white_paper_and_numbers_without_a_range_are_refused(tmp_path):
    ramp = np.arange(40, dtype=np.uint16)[None].repeat(40, 0) * 1680
    drawing = np.zeros((40, 40, 4), dtype=np.uint8)
    drawing[:, :20, 3] = 255                            # black on the left, nothing on the right
    files = {"a.png": ramp, "b.png": drawing, "c.tiff": ramp.astype(np.float32)}
    for name, pixels in files.items():
        Image.fromarray(pixels).save(tmp_path / name)
    grey, black, _ = (tmp_path / name for name in files)
    assert np.abs(readers.fit_picture(grey, 40)[0] - ramp / 257).max() <= 0.5
    assert readers.fit_picture(black, 40)[:, :, :20].max() == 0 and readers.fit_picture(black, 40)[:, :, 20:].min() == 255
    refuses("c.tiff in folder .* cannot be read as an image .its pixels are 32-bit numbers", readers.read_pictures,
            [tmp_path / "c.tiff"], 40, tmp_path)


def test_hidden_folders_inside_a_class_are_not_read(album):
    copies = album / "cats" / ".ipynb_checkpoints"
    copies.mkdir()
    Image.new("RGB", (9, 9)).save(copies / "1-checkpoint.png")
    assert len(sources.load_raw(f"folder:{album}").train_labels) == 40


def test_a_relative_folder_starts_at_the_project(album, tmp_path):
    album.rename(tmp_path / "project" / "album")
    assert len(load_images("folder:album")) == 33


def test_a_folder_is_decoded_once_and_again_when_it_changes(album, monkeypatch):
    load_images(f"folder:{album}")
    again()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_pictures", None)
        assert load_images(f"folder:{album}").source == "album (folder)"
    Image.new("RGB", (9, 9)).save(album / "cats" / "new.png")
    assert len(sources.load_raw(f"folder:{album}").train_labels) == 41


@pytest.mark.parametrize("damage, words", [
    (lambda album: [p.unlink() for p in (album / "dogs").iterdir()], "album has a class without images: dogs"),
    (lambda album: (album / "dogs" / "3.gif").write_bytes(b"GIF89a?"), "dogs/3.gif in folder album cannot be read as an"),
    (lambda album: Image.new("L", (9, 9)).save(album / "odd.png"), "album has both sub-folders and loose images such as od"),
    (lambda album: album.rename(album.with_name("moved")), "folder:.*album is not a folder: there is none at /.*album"),
    (lambda album: [(album / part / "birds").mkdir(parents=True) for part in ("train", "val")] and [
        shutil.rmtree(album / part) for part in ("cats", "dogs")], "album is divided into train, val already: ")],
    ids=["empty-class", "undecodable", "mixed", "missing", "divided"])
def test_a_bad_folder_is_one_sentence(album, tmp_path, damage, words):
    damage(album)
    refuses(words, load_images, f"folder:{album}")
    assert not list(tmp_path.glob("cache/*"))


def test_a_folder_without_images(tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("no image")
    refuses("folder nothing has fewer than 3 images", load_images, f"folder:{tmp_path / 'nothing'}")


def test_a_path_has_to_be_named():
    refuses("folder: names no folder: write its path behind the colon.", load_images, "folder:")


def test_hidden_folders_are_no_classes(album):
    (album / ".ipynb_checkpoints").mkdir()
    assert load_images(f"folder:{album}").classes == ("cats", "dogs")


# Sizes and splits of any set

def test_a_published_set_has_a_balanced_tenth_for_validation(tmp_path):
    write_hub(tmp_path / "project" / "data" / "cifar10")
    train, val, test = (load_images("cifar10", split) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [36, 4, 20] and val.labels.bincount().max() == 1
    pictures = {bytes(image) for part in (train, val) for image in part.images.flatten(1).numpy()}
    assert pictures == {bytes(image) for image in TRAIN[0].reshape(40, -1)}


@pytest.mark.parametrize("size", [0, -1, 2.5, "64", True])
def test_a_bad_image_size_is_one_sentence(size):
    refuses("image_size is .*: it must be a whole number at least 4", load_images, "shapes10", "test", None, size)


# The drawn set

@pytest.fixture(scope="module")
def drawn():
    return [load_images("shapes10", split) for split in ("train", "val", "test")]


def test_the_drawn_set(drawn, capsys):
    train, val, test = drawn
    assert [len(part) for part in drawn] == [9_000, 1_000, 2_000] and train.source == "shapes10 (drawn)"
    assert train.name == "shapes10" and len(train.classes) == 10 and list(train.images.shape[1:]) == [3, 32, 32]
    assert [part.labels.bincount().tolist() for part in drawn] == [[900] * 10, [100] * 10, [200] * 10]
    assert len({bytes(image) for part in drawn for image in part.images.flatten(1).numpy()}) == 12_000


def test_the_drawn_set_is_the_same_everywhere(drawn):
    """Also on another computer and with another version of NumPy: results are compared over years."""
    assert md5(drawn[2].images.numpy().tobytes()) == "e1ce3bccb0561f6e6fbb378888e548a7"


def linear_accuracy(train, test, features):
    """Of the best linear map from features to classes."""
    known, new = (torch.cat([features(part.images.float() / 255), torch.ones(len(part), 1)], 1) for part in (train, test))
    weights = torch.linalg.lstsq(known, torch.eye(10)[train.labels], driver="gelsd").solution
    return ((new @ weights).argmax(1) == test.labels).float().mean().item()


def test_colours_alone_do_not_tell_the_drawn_classes_apart(drawn):
    def colours(images):                        # how often each of 64 colours occurs, and means and deviations
        bins = (images * 3.999).long()
        index = (bins[:, 0] * 16 + bins[:, 1] * 4 + bins[:, 2]).flatten(1)
        counts = torch.stack([row.bincount(minlength=64) for row in index]) / 1024
        return torch.cat([counts, images.mean((2, 3)), images.std((2, 3))], 1)

    train, _, test = drawn
    assert linear_accuracy(train.subset(slice(3_000)), test, colours) < 0.2
    assert linear_accuracy(train.subset(slice(3_000)), test, lambda images: images.flatten(1)[:, ::7]) < 0.2


def test_offline_nothing_is_asked_of_any_host(monkeypatch, hub):
    monkeypatch.setenv("MAE_OFFLINE", "1")
    refuses("MAE_OFFLINE forbids to download it", sources.load_raw, "cifar10")
    assert not hub.seen
    monkeypatch.setenv("MAE_OFFLINE", "0")
    assert len(sources.load_raw("cifar10").train_labels) and hub.seen
