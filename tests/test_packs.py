"""Sets that memory does not hold: written in blocks, mapped, and the same to everything that uses them."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mae_helpers import ClassifyConfig, InputError, PretrainConfig, classify, load_images, pretrain, sources
from mae_helpers.config import project_root
from mae_helpers.data import Mapped, Resized
from mae_helpers.packs import MappedImages, checksum, memory_limit, open_pack, statistics, write_pack

SHAPE = (300, 3, 8, 8)
IMAGES = np.random.RandomState(0).randint(0, 256, SHAPE).astype(np.uint8)
LABELS = np.arange(300) % 3


def blocks(count=100):
    return ((IMAGES[i:i + count], LABELS[i:i + count]) for i in range(0, len(IMAGES), count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packs") / "noise"
    write_pack(path, blocks(), ("a", "b", "c"), "noise (drawn)")
    return path


@pytest.fixture
def mapped(monkeypatch):
    monkeypatch.setenv("MAE_MEMORY", "0")


# The folder

def test_what_was_packed_is_found_again(folder):
    raw = open_pack(folder)
    assert isinstance(raw.train_images, MappedImages) and raw.train_images.shape == SHAPE
    assert np.array_equal(raw.train_images.read(np.arange(300)), IMAGES) and np.array_equal(raw.train_labels, LABELS)
    assert raw.classes == ("a", "b", "c") and raw.source == "noise (drawn)" and raw.checksum == checksum([IMAGES, LABELS])
    assert sorted(p.name for p in folder.parent.iterdir()) == ["noise"]         # nothing unfinished is left


@pytest.mark.parametrize("damage, sentence", [
    (lambda f: (f / "about.json").unlink(), "noise is not a packed set: it has no about.json."),
    (lambda f: (f / "images.bin").unlink(), "noise is not a packed set: it has no images.bin."),
    (lambda f: (f / "images.bin").write_bytes(b"short"), r"noise is damaged \(ValueError\): pack the set again."),
    (lambda f: (f / "labels.npy").write_bytes(b""), r"noise is damaged \(EOFError\): pack the set again."),
    (lambda f: (f / "about.json").write_text("{}"), r"noise is damaged \(KeyError\): pack the set again."),
    (lambda f: (f / "about.json").write_text(json.dumps({**json.loads((f / "about.json").read_text()), "version": 0})),
     "noise is damaged or of another version: pack the set again.")])
def test_a_damaged_folder_is_one_sentence(tmp_path, damage, sentence):
    write_pack(tmp_path / "noise", blocks(), (), "noise")
    damage(tmp_path / "noise")
    with pytest.raises(InputError, match=sentence):
        load_images(f"packed:{tmp_path / 'noise'}")


def test_what_cannot_be_packed_is_one_sentence_and_leaves_nothing(tmp_path):
    odd = iter([(IMAGES[:2], LABELS[:2]), (IMAGES[:2, :1], LABELS[:2])])
    with pytest.raises(InputError, match=r"a block of x is uint8 \[2, 1, 8, 8\] with labels \[2\]: every block must be "
                                         r"uint8 \[n, 3, 8, 8\], channels first and square, with labels \[n\]."):
        write_pack(tmp_path / "x", odd, (), "x")
    with pytest.raises(InputError, match="x would be empty"):
        write_pack(tmp_path / "x", iter(()), (), "x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="x exists: remove it"):
        write_pack(tmp_path / "x", blocks(), (), "x")
    with pytest.raises(InputError, match="packed:/nowhere is not a folder."):
        load_images("packed:/nowhere")


@pytest.mark.parametrize("images, labels", [
    (IMAGES[:4], np.eye(4, dtype=np.int64)), (IMAGES[:4], np.zeros((4, 1), np.int64)), (IMAGES[:4, 0], LABELS[:4]),
    (IMAGES[:4].transpose(0, 2, 3, 1), LABELS[:4]), (IMAGES[:4, :, :4], LABELS[:4]), (IMAGES[:4] / 255, LABELS[:4])],
    ids=["one-hot", "a column", "grey", "channels last", "not square", "floats"])
def test_blocks_of_other_shapes_are_refused_before_anybody_uses_them(tmp_path, images, labels):
    with pytest.raises(InputError, match="a block of x is .*must be uint8"):
        write_pack(tmp_path / "x", iter([(images, labels)]), (), "x")


def test_an_empty_block_is_skipped_and_a_folder_may_be_a_string(tmp_path):
    write_pack(str(tmp_path / "x"), iter([(IMAGES[:4], LABELS[:4]), (IMAGES[:0], LABELS[:0])]), ("a", "b", "c"), "x")
    assert len(open_pack(tmp_path / "x").train_labels) == 4


def test_what_a_reader_cannot_open_is_not_blamed_on_the_folder_that_is_written(tmp_path):
    def pictures():
        yield IMAGES[:2], LABELS[:2]
        yield np.asarray(Image.open(tmp_path / "missing.png"))[None], LABELS[:1]
    with pytest.raises(InputError, match="a block of x cannot be read: .*missing.png"):
        write_pack(tmp_path / "x", pictures(), (), "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels, classes, sentence", [
    ([0, 1, 2, 0], ("a", "b"), "the label of image 2 is 2, and there are 2 classes"),
    ([0, 1, -1, 0], ("a", "b"), "the label of image 2 is -1, and there are 2 classes"),
    ([0, 1], ("a", "b"), "has 2 images: train, val and test need at least one each")])
def test_packed_labels_that_cannot_be_are_one_sentence(tmp_path, labels, classes, sentence):
    write_pack(tmp_path / "x", iter([(IMAGES[:len(labels)], np.array(labels))]), classes, "x")
    with pytest.raises(InputError, match=sentence):
        load_images(f"packed:{tmp_path / 'x'}")


def test_a_set_whose_test_part_lacks_classes_says_so(tmp_path, capsys):
    labels = np.arange(80) % 20
    write_pack(tmp_path / "x", iter([(IMAGES[:80], labels)]), tuple(f"class {i:02}" for i in range(20)), "many classes")
    test = load_images(f"packed:{tmp_path / 'x'}", "test")
    assert len(test.labels.unique()) == 8
    assert ("many classes: of its 20 classes test has no image of 12, val has no image of 13. More images of each class "
            "would mend that.") in capsys.readouterr().out


def test_a_rare_class_is_in_every_part_in_its_share(tmp_path):
    images, labels = np.zeros((230, 1, 4, 4), np.uint8), np.repeat([0, 1, 2], [100, 100, 30])
    write_pack(tmp_path / "x", iter([(images, labels)]), ("cat", "dog", "fox"), "x")
    parts = {part: load_images(f"packed:{tmp_path / 'x'}", part).labels.bincount().tolist()
             for part in ("train", "val", "test")}
    assert parts == {"train": [81, 82, 24], "val": [9, 8, 3], "test": [10, 10, 3]}


def test_an_empty_channel_is_no_division_by_zero():
    images = IMAGES.copy()
    images[:, 1] = 7
    mean, std = statistics(images)
    assert std[1] == 1.0 and mean[1] == pytest.approx(7 / 255, abs=1e-6) and 0 < std[0] < 1


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_any_channels_train_and_are_drawn(tmp_path, channels):
    images = np.random.RandomState(0).randint(0, 256, (64, channels, 8, 8), dtype=np.uint8)
    write_pack(tmp_path / "x", iter([(images, np.zeros(64, dtype=np.int64))]), (), "x")
    config = PretrainConfig(dataset=f"packed:{tmp_path / 'x'}", patch_size=2, embed_dim=16, depth=1, num_heads=2, epochs=1,
                            batch_size=32, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, device="cpu")
    run = pretrain(config, tmp_path / "runs", say=lambda text: None)
    assert run.finished and list((run.path / "figures").glob("*.png"))


def test_an_augmentation_that_the_channels_rule_out_is_refused_before_anything_is_written(tmp_path):
    images = np.zeros((64, 4, 8, 8), np.uint8)
    write_pack(tmp_path / "x", iter([(images, np.arange(64) % 2)]), ("a", "b"), "x")
    sizes = dict(dataset=f"packed:{tmp_path / 'x'}", augment="rand_augment", patch_size=2, embed_dim=16, depth=1,
                 num_heads=2, device="cpu")
    for job, config in ((pretrain, PretrainConfig(**sizes)), (classify, ClassifyConfig(**sizes, protocol="scratch"))):
        with pytest.raises(InputError, match="must have 1 or 3 channels, not 4"):
            job(config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan"])
def test_a_wrong_limit_is_one_sentence(monkeypatch, value):
    monkeypatch.setenv("MAE_MEMORY", value)
    with pytest.raises(InputError, match=f"MAE_MEMORY is '{value}': it must be a number at least 0"):
        memory_limit()


# Mapped images are used like those in memory

def test_a_small_set_is_read_and_a_large_one_mapped_with_the_same_content(folder, monkeypatch):
    read = load_images(f"packed:{folder}")
    monkeypatch.setenv("MAE_MEMORY", "0.00001")                             # 10 kB: the validation images fit
    far, near = load_images(f"packed:{folder}"), load_images(f"packed:{folder}", "val")
    assert isinstance(read.images, torch.Tensor) and isinstance(far.images, Mapped) and isinstance(near.images, torch.Tensor)
    assert torch.equal(far.images[:], read.images) and torch.equal(far.labels, read.labels)
    assert (far.mean, far.std) == (read.mean, read.std) == statistics(read.images.numpy())
    assert far.checksum == read.checksum and (len(far), far.image_size, far.in_chans) == (len(read), 8, 3)


def test_indexing_gives_what_a_tensor_gives(folder, mapped):
    images = load_images(f"packed:{folder}").images
    plain, index = images[:], torch.tensor([5, 3, 3, 200])
    assert torch.equal(images[index], plain[index]) and torch.equal(images[7], plain[7])
    assert torch.equal(images[index.view(2, 2)], plain[index.view(2, 2)]) and torch.equal(images[:5], plain[:5])
    assert torch.equal(torch.cat(list(images.split(64))), plain) and images.shape == plain.shape
    assert len(load_images(f"packed:{folder}").subset(slice(5, 9))) == 4
    assert torch.equal(images.select(index)[:], plain[index]) and images.to("cpu")[index].dtype == torch.uint8
    small, same = Resized(images, 4), Resized(plain, 4)
    assert torch.equal(small[index], same[index]) and torch.equal(small.select(index)[:2], same.select(index)[:2])
    assert small.stored_on == small.device == torch.device("cpu")


def test_a_part_of_a_mapped_set_stays_mapped_unless_it_is_small(folder, monkeypatch):
    monkeypatch.setenv("MAE_MEMORY", "0.00001")
    train = load_images(f"packed:{folder}")
    assert isinstance(train.subset(torch.arange(8)).images, torch.Tensor)
    assert isinstance(train.subset(torch.arange(200)).images, Mapped)
    assert isinstance(load_images(f"packed:{folder}", limit=200).images, Mapped)


def test_training_does_not_see_the_difference(folder, tmp_path, monkeypatch):
    sizes = dict(dataset=f"packed:{folder}", patch_size=2, embed_dim=16, depth=1, num_heads=2, epochs=1, batch_size=32,
                 precision="fp32", device="cpu", compile="off")
    config = PretrainConfig(**sizes, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, image_size=6)
    found = []
    for limit in ("1", "0.00001"):
        monkeypatch.setenv("MAE_MEMORY", limit)
        run = pretrain(config, tmp_path / limit, "first", say=lambda text: None)
        later = ClassifyConfig(**sizes, protocol="probe", image_size=6, pretrained=run.path)
        tuned = classify(later, tmp_path / limit, "second", say=lambda text: None)
        assert run.fingerprint["data"] == checksum([IMAGES, LABELS])
        found.append([*run.weights().values(), *tuned.weights().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_large_folder_of_pictures_is_packed_once_and_mapped(tmp_path, monkeypatch, capsys):
    for number in range(30):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number].transpose(1, 2, 0)).save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
    name = f"folder:{tmp_path / 'pictures'}"
    read = load_images(name, image_size=8)
    monkeypatch.setenv("MAE_MEMORY", "0")
    monkeypatch.setattr(sources, "BLOCK", 7)
    far = load_images(name, image_size=8)
    assert isinstance(far.images, Mapped) and torch.equal(far.images[:], read.images) and far.checksum == read.checksum
    sources._map_folder.cache_clear()
    load_images(name, image_size=8)
    out = capsys.readouterr().out
    assert "pictures (folder), 30 images, mapped\n" in out and "pictures (folder), mapped, packed earlier\n" in out

    packed = next(p for p in sources.cache_folder().iterdir() if p.is_dir())
    (packed / "images.bin").write_bytes(b"short")                   # damaged, and another start was killed while it packed
    left = packed.with_name(f".{packed.name}.1234")
    left.mkdir()
    sources._map_folder.cache_clear()
    assert torch.equal(load_images(name, image_size=8).images[:], read.images) and not left.exists()
    out = capsys.readouterr().out
    assert "is damaged (ValueError): pack the set again. That is done now.\n" in out and "30 images, mapped\n" in out

    sources._map_folder.cache_clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file cannot be written .*memory does not hold folder pictures: set MAE_CACHE_DIR"):
        load_images(name, image_size=8)


MEASURE = """
import os, sys
from pathlib import Path
import numpy as np
from mae_helpers.packs import open_pack

def numbers(name, start):
    lines = (line.split() for line in Path("/proc/self", name).read_text().splitlines() if line.startswith(start))
    return {words[0]: int(words[1]) for words in lines}
images, draw = open_pack(Path(sys.argv[1])).train_images, np.random.RandomState(0)
with open(Path(sys.argv[1], "images.bin"), "rb") as file:       # what was just written is to come from the disk again
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
before, most = numbers("status", "Rss"), {}
first = numbers("io", "read_bytes")["read_bytes:"]
images.read(draw.randint(0, len(images), 100))
first = numbers("io", "read_bytes")["read_bytes:"] - first
for _ in range(60):
    images.read(draw.randint(0, len(images), 100))
    most = {key: max(most.get(key, 0), value - before[key]) for key, value in numbers("status", "Rss").items()}
print(first / 1e6, sum(most.values()) / 1e3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_mapped_set_reads_and_holds_little_more_than_is_asked_for(tmp_path):
    """100 of 4,000 images, 3 MB of 120, come without what lies around them. When all were touched again and again, what
    is resident has grown by less than half of them."""
    block = np.zeros((500, 3, 100, 100), np.uint8)
    write_pack(tmp_path / "large", ((block, np.zeros(500)) for _ in range(8)), (), "zeros")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "large"], capture_output=True, text=True, check=True,
                          cwd=project_root())
    read, held = map(float, done.stdout.split())
    assert read < 6 and held < 60, done.stdout
