"""The notebooks with other parameters, through papermill. (nbval runs them as they are: see the Makefile.)"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
OTHER = {"patch_size": 14, "mask_ratio": 0.5, "epochs": 1, "limit": 2000, "seed": 3}


def papermill(name, folder, runs, **parameters):
    """Run a notebook from another folder; (exit status, output notebook's text, log)."""
    out = folder / f"{name}.ipynb"
    given = [word for k, v in {**parameters, "root": str(runs)}.items() for word in ("-p", k, str(v))]
    words = [sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{name}.ipynb"), str(out), "--no-progress-bar",
             "--log-output", *given]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, out.read_text() if out.exists() else "", done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder in which notebook 04 has trained with other parameters."""
    folder = tmp_path_factory.mktemp("papermill")
    status, _, log = papermill("04_pretraining", folder, folder / "runs", **OTHER)
    assert status == 0, log[-3000:]
    return folder / "runs"


def test_04_trains_what_the_parameters_say(runs):
    config = json.loads(next(runs.glob("pretrain-*/config.json")).read_text())["config"]
    assert {k: config[k] for k in OTHER} == OTHER


@pytest.mark.parametrize("name", ["01_patch_embedding", "02_random_masking", "03_mae_model"])
def test_01_to_03_work_with_padded_patches_and_another_ratio(tmp_path, name):
    other = {"patch_size": 5, "seed": 3} | ({} if name.startswith("01") else {"mask_ratio": 0.5})
    out, words = tmp_path / "out.ipynb", [w for k, v in other.items() for w in ("-p", k, str(v))]
    done = subprocess.run([sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{name}.ipynb"), str(out),
                           "--no-progress-bar", *words], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "patches of 5×5 pixels" in out.read_text() and not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize("name", ["05_reconstruction", "06_mnist_classification"])
def test_05_and_06_find_the_run_of_04(runs, tmp_path, name):
    status, text, log = papermill(name, tmp_path, runs, **OTHER)
    assert status == 0, log[-3000:]
    assert "found in your runs" in text and next(runs.glob("pretrain-*")).name in text


@pytest.mark.parametrize("name", sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")))
def test_a_wrong_value_is_one_sentence_and_trains_nothing(tmp_path, name):
    status, _, log = papermill(name, tmp_path, tmp_path / "runs", patch_size=-1)
    assert status != 0 and "InputError: patch_size is -1: it must be a whole number at least 1." in log
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")))
def test_a_name_nobody_knows_is_one_sentence(tmp_path, name):
    status, _, log = papermill(name, tmp_path, tmp_path / "runs", patchsize=7)
    assert status != 0 and "Did you mean 'patch_size'?" in log
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["05_reconstruction", "06_mnist_classification"])
def test_without_a_run_the_remedy_is_named(tmp_path, name):
    status, _, log = papermill(name, tmp_path, tmp_path / "runs", patch_size=14, seed=99)
    assert status != 0 and "run 04_pretraining with the same ones first" in log
