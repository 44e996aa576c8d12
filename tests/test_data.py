"""The embedded MNIST, its splits and subsets, and what is said when its file is damaged."""
import hashlib
import random
import struct

import numpy as np
import pytest
import torch

from mae_helpers import ImageSet, InputError, load_images, sources
from mae_helpers.data import balanced_order, balanced_subset


def md5(images):
    return hashlib.md5(images.contiguous().numpy()).hexdigest()


def pictures(images):
    """Each image as bytes: sets and counts of images."""
    return [bytes(image) for image in images.flatten(1).numpy()]


@pytest.fixture(scope="module")
def train():
    return load_images("mnist", "train")


@pytest.fixture(scope="module")
def val():
    return load_images("mnist", "val")


# Splits

def test_sizes_and_types(train, val):
    test = load_images("mnist", "test")
    assert [len(s) for s in (train, val, test)] == [55_000, 5_000, 10_000]
    for part, name in ((train, "train"), (val, "val"), (test, "test")):
        assert part.images.dtype == torch.uint8 and list(part.images.shape[1:]) == [1, 28, 28]
        assert part.labels.dtype == torch.int64 and set(part.labels.tolist()) == set(range(10))
        assert (part.image_size, part.in_chans, part.name, part.split) == (28, 1, "mnist", name)
        assert part.classes == tuple("0123456789") and part.source == "MNIST (original)"
        assert (part.mean, part.std, part.checksum) == (train.mean, train.std, train.checksum)


def test_train_and_val_share_nothing_and_are_the_official_part(train, val):
    official = sources.load_mnist()
    ours = [*zip(pictures(train.images), train.labels.tolist()), *zip(pictures(val.images), val.labels.tolist())]
    theirs = zip(pictures(torch.from_numpy(official.train_images)), official.train_labels.tolist())
    assert sorted(ours) == sorted(theirs)
    assert len(set(ours)) == 60_000                     # no image occurs twice, so none can be in both


def test_val_is_balanced(val):
    assert val.labels.bincount().tolist() == [500] * 10


def test_the_split_is_the_same_every_time(val):
    """Also on another computer and with another version of NumPy: results are compared over years."""
    assert md5(val.images) == md5(load_images("mnist", "val").images) == "42c6d19d3d81c72ee2ad0ab1c6b4147b"


def test_loading_leaves_the_global_streams_alone():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    load_images("mnist", "train", 10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_changing_a_set_in_place_does_not_change_the_next_one(split):
    first = load_images("mnist", split)
    pixel, label = first.images[0, 0, 0, 0].item(), first.labels[0].item()
    try:
        first.images[0, 0, 0, 0], first.labels[0] = pixel + 7, (label + 1) % 10
        again = load_images("mnist", split)
        assert (again.images[0, 0, 0, 0].item(), again.labels[0].item()) == (pixel, label)
    finally:                                            # the other tests read the same memory when this one fails
        first.images[0, 0, 0, 0], first.labels[0] = pixel, label


@pytest.mark.parametrize("dataset, split, words", [
    ("mnits", "train", "dataset is 'mnits': .*Did you mean 'mnist'"),
    ("mnist", "vall", "split is 'vall': .*train, val, test.*Did you mean 'val'"),
    ("mnist", "zzz", "split is 'zzz': it must be one of train, val, test.$")])
def test_unknown_names(dataset, split, words):
    with pytest.raises(InputError, match=words):
        load_images(dataset, split)


# Limits

@pytest.mark.parametrize("limit", [1, 10, 37, 1_000])
def test_a_limit_is_balanced(train, limit):
    counts = balanced_subset(train, limit).labels.bincount(minlength=10)
    assert counts.sum() == limit and counts.max() - counts.min() <= 1


def test_a_smaller_limit_is_a_part_of_a_larger_one(train):
    small, middle, large = (set(pictures(balanced_subset(train, limit).images)) for limit in (7, 100, 1_000))
    assert small < middle < large


def test_load_images_takes_the_limit(train):
    limited = load_images("mnist", "train", 100)
    assert torch.equal(limited.images, balanced_subset(train, 100).images)
    assert (limited.mean, limited.std) == (train.mean, train.std)       # of the whole split
    assert len(load_images("mnist", "train", 55_000)) == 55_000


@pytest.mark.parametrize("split, limit, words", [
    ("train", 0, "limit is 0: .*at least 1"), ("train", -5, "limit is -5: .*at least 1"),
    ("train", 2.5, "limit is 2.5: .*a whole number"), ("train", True, "limit is True: .*a whole number"),
    ("train", 55_001, "limit is 55001: .*55000"), ("test", 10_001, "limit is 10001: .*10000")])
def test_a_bad_limit_is_one_sentence(split, limit, words):
    with pytest.raises(InputError, match=words):
        load_images("mnist", split, limit)


def test_balanced_order_deals_the_classes_out_in_turn():
    labels = np.array([2, 2, 2, 2, 0, 0, 0, 1])
    order = balanced_order(labels)
    assert sorted(order) == list(range(8))
    assert labels[order].tolist() == [0, 1, 2, 0, 2, 0, 2, 2]


# Scales

def test_mean_and_deviation(train):
    """The well-known 0.1307 and 0.3081 are those of all 60,000 images."""
    pixels = train.images / 255
    assert train.mean[0] == pytest.approx(0.1307, abs=5e-4) and train.std[0] == pytest.approx(0.3081, abs=5e-4)
    assert train.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-5)
    assert train.std[0] == pytest.approx(pixels.std().item(), abs=1e-5)


def test_normalised_images_have_mean_0_and_deviation_1(train):
    normal = train.normalize(train.subset(slice(20_000)).images)
    assert normal.mean().abs() < 0.01 and (normal.std() - 1).abs() < 0.01


@pytest.fixture
def colours():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.arange(4), tuple("abcd"), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4), "made", "train", "", "")


def test_each_channel_has_its_own_scale(colours):
    found = colours.normalize(colours.images)
    for c in range(3):
        torch.testing.assert_close(found[:, c], (colours.images[:, c] / 255 - colours.mean[c]) / colours.std[c])
    assert torch.equal(found, colours.normalize(colours.images / 255))


def test_denormalize_is_the_way_back(colours):
    torch.testing.assert_close(colours.denormalize(colours.normalize(colours.images)), colours.images / 255)
    ends = colours.denormalize(torch.tensor([-100.0, 100.0]).view(2, 1, 1, 1).expand(2, 3, 5, 5))
    assert not ends[0].any() and bool((ends[1] == 1).all())


# Damaged files

def idx_md5(array):
    """The check sum of the IDX file that holds the array: magic number, sizes, bytes."""
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return hashlib.md5(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()).hexdigest()


@pytest.fixture
def small(monkeypatch):
    """Four small arrays that pass for the originals, so that damaging them takes no time."""
    draw = np.random.RandomState(0)
    arrays = {f"{kind}_{part}": draw.randint(0, 10, (20, 28, 28) if kind == "x" else 20).astype(np.uint8)
              for part in ("train", "test") for kind in "xy"}
    monkeypatch.setattr(sources, "MNIST_MD5", {name: idx_md5(array) for name, array in arrays.items()})
    return arrays


def one_pixel(array):
    array = array.copy()
    array[3, 14, 15] ^= 1
    return array


def test_an_undamaged_file_is_read(tmp_path, small):
    np.savez(tmp_path / "mnist.npz", **small)
    raw = sources.load_mnist(tmp_path / "mnist.npz")
    assert np.array_equal(raw.test_images[:, 0], small["x_test"]) and np.array_equal(raw.train_labels, small["y_train"])


@pytest.mark.parametrize("name, damage, words", [
    ("x_test", lambda a: None, "KeyError"), ("x_test", one_pixel, "x_test"), ("x_train", one_pixel, "x_train"),
    ("y_train", lambda a: a[::-1], "y_train"), ("y_test", lambda a: a[:-1], "y_test"),
    ("x_test", lambda a: a.reshape(20, 784), "x_test"), ("x_test", lambda a: a.astype(np.int16) + 256, "x_test"),
    ("y_test", lambda a: a.astype(object), "ValueError")],
    ids=["missing", "pixel", "other-pixel", "order", "length", "shape", "type", "pickled"])
def test_a_damaged_array_is_one_sentence(tmp_path, small, name, damage, words):
    small[name] = damage(small[name])
    np.savez(tmp_path / "mnist.npz", **{key: value for key, value in small.items() if value is not None})
    refuses(tmp_path / "mnist.npz", "mnist.npz is damaged", words)


def test_a_truncated_file_is_one_sentence(tmp_path):
    content = sources.embedded_mnist().read_bytes()
    (tmp_path / "mnist.npz").write_bytes(content[:len(content) // 2])
    refuses(tmp_path / "mnist.npz", "mnist.npz is damaged")


def test_a_changed_byte_is_one_sentence(tmp_path):
    content = bytearray(sources.embedded_mnist().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "mnist.npz").write_bytes(content)
    refuses(tmp_path / "mnist.npz", "mnist.npz is damaged")


def test_a_missing_file_is_one_sentence(tmp_path):
    refuses(tmp_path / "mnist.npz", f"mnist.npz is not in {tmp_path}")


def refuses(path, *words):
    with pytest.raises(InputError) as error:
        sources.load_mnist(path)
    sentence = str(error.value)
    assert all(word in sentence for word in (*words, "git checkout data/mnist.npz")) and "\n" not in sentence
    assert error.value.__context__ is None or error.value.__suppress_context__      # no second traceback above it
