"""Pictures of one's own, shown to finished runs."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mae_helpers import InputError, classify, load_images
from mae_helpers.__main__ import main
from mae_helpers.predict import as_the_model_sees, autoencoder_of, filled_in, probabilities
from mae_helpers.runs import all_runs, recorded_root


def recorded(**facts):
    """A run recorded with its weights."""
    return next(run for run in all_runs(recorded_root()) if "last" in run.kept()
                and all(run.results.get(k) == v for k, v in facts.items()))


@pytest.fixture(scope="module")
def tuned():
    return recorded(protocol="finetune", dataset="mnist", patch_size=7, label_fraction=1.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Test digits as files: as they are, enlarged and in dark ink on white paper in colour, with a margin."""
    folder, test = tmp_path_factory.mktemp("digits"), load_images("mnist", "test", 20)
    for i, (image, label) in enumerate(zip(test.images[:, 0].numpy(), test.labels.tolist())):
        Image.fromarray(image).save(folder / f"{label}_{i}_plain.png")
        paper = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC).convert("RGB")
        wide = Image.new("RGB", (400, 280), "white")
        wide.paste(paper, (60, 0))
        wide.save(folder / f"{label}_{i}_photo.jpg")
    return folder


@pytest.mark.parametrize("kind", ["plain.png", "photo.jpg"])
def test_digits_from_files_are_recognised(tuned, digits, kind):
    files = sorted(digits.glob(f"*_{kind}"))
    right = sum(next(iter(probabilities(tuned, as_the_model_sees(file, tuned)))) == file.name[0] for file in files)
    assert len(files) == 20 and right >= 19


def test_a_plain_file_is_seen_as_it_is(tuned, digits):
    test = load_images("mnist", "test", 20)
    seen = as_the_model_sees(next(digits.glob("*_3_plain.png")), tuned)
    assert torch.equal(seen.images[0], test.images[3])


def test_probabilities_are_sorted_and_sum_to_one(tuned, digits):
    found = probabilities(tuned, as_the_model_sees(next(digits.glob("*.jpg")), tuned))
    assert sum(found.values()) == pytest.approx(1) and list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == set("0123456789")


def test_the_autoencoder_of_a_run(tuned):
    source = autoencoder_of(tuned)
    assert source.name == tuned.results["pretrained_run"] and autoencoder_of(source).path == source.path
    scratch = next(run for run in all_runs(recorded_root()) if run.results["protocol"] == "scratch")
    assert autoencoder_of(scratch) is None


def test_filling_in_describes_itself(tuned, digits):
    figure = filled_in(autoencoder_of(tuned), as_the_model_sees(next(digits.glob("*.png")), tuned))
    assert "original, masked, reconstruction, pasted" in figure.alt


def test_the_command(tuned, digits, tmp_path, capsys):
    file = next(digits.glob("7_*_plain.png"))
    assert main(["predict", tuned.name, str(file), "--out", str(tmp_path / "a" / "out.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("  7") and "out.png" in printed
    assert np.asarray(Image.open(tmp_path / "a" / "out.png")).std() > 10


def test_the_command_finds_a_place_for_the_picture(tuned, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_RUNS_DIR", str(tmp_path))
    assert main(["predict", tuned.name, str(next(digits.glob("7_*_plain.png")))]) == 0
    assert [path.parent.name for path in tmp_path.rglob("*.png")] == ["predict"]


def test_a_moved_classifier_shows_its_encoder_what_that_takes(tiny_run, tiny_classify, digits, tmp_path, capsys):
    moved = classify(tiny_classify("finetune", pretrained=str(tiny_run.path), dataset="shapes10", limit=64, epochs=1),
                     root=tmp_path, say=lambda text: None)
    out = tmp_path / "out.png"
    assert main(["predict", str(moved.path), str(next(digits.glob("7_*_plain.png"))), "--out", str(out),
                 "--root", str(tiny_run.path.parent)]) == 0
    assert out.exists() and "masked and filled in" in capsys.readouterr().out


@pytest.mark.parametrize("content, words", [(None, "is not a file"), (b"no picture", "cannot be read as an image")])
def test_a_file_that_is_no_picture_is_one_sentence(tuned, tmp_path, content, words):
    if content:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=words):
        as_the_model_sees(tmp_path / "x.png", tuned)


def test_images_that_no_picture_can_be_are_one_sentence(tuned, digits, monkeypatch):
    two = load_images("mnist", "val", 1)
    two = replace(two, images=two.images.expand(-1, 2, -1, -1), mean=two.mean * 2, std=two.std * 2)
    monkeypatch.setattr("mae_helpers.predict.load_images", lambda *args: two)
    with pytest.raises(InputError, match="learned from images of 2 channels: a picture has one, grey, or three"):
        as_the_model_sees(next(digits.glob("*.png")), tuned)


def test_a_run_that_is_not_there_is_one_sentence(digits, capsys):
    assert main(["predict", "finetune-mnst", str(next(digits.glob("*.png")))]) == 2
    assert capsys.readouterr().err.startswith("error: run is 'finetune-mnst'")
