"""Runs and packed data of the tests, and of the notebooks that are tested, go to folders of their own, never to the
reader's runs/ or cache."""
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from mae_helpers import ClassifyConfig, PretrainConfig, pretrain
from mae_helpers.config import project_root


def pytest_configure(config):
    torch.set_num_threads(1)                    # two test processes on two cores: more threads would only wait for
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # each other, here and in the kernels of notebooks
    os.environ["MAE_OFFLINE"] = "1"                     # no test, and no notebook in a test, fetches a data set
    os.environ["MAE_BUDGET"] = "quick"                  # also where there is a GPU
    if not hasattr(config, "workerinput"):              # workers inherit it from the process that starts them
        os.environ["MAE_RUNS_DIR"] = tempfile.mkdtemp(prefix="mae-runs-")
        os.environ["MAE_CACHE_DIR"] = tempfile.mkdtemp(prefix="mae-cache-")


TINY = dict(limit=512, patch_size=7, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
            decoder_num_heads=2, epochs=2, batch_size=128, precision="fp32", device="cpu", compile="off")


@pytest.fixture
def tiny() -> PretrainConfig:
    """A pretraining that takes a second."""
    return PretrainConfig(**TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished tiny pretraining run, made once; tests only read it."""
    return pretrain(PretrainConfig(**TINY), root=tmp_path_factory.mktemp("runs"), say=lambda text: None)


@pytest.fixture
def tiny_classify():
    """Makes a classification config that fits the tiny run and takes a second."""
    def make(protocol="finetune", **changes):
        usual = dict(protocol=protocol, limit=512, epochs=2, batch_size=128, precision="fp32", device="cpu", compile="off")
        if protocol == "scratch":
            usual.update(patch_size=7, embed_dim=16, depth=1, num_heads=2)
        return ClassifyConfig(**{**usual, **changes})
    return make


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site. Sphinx is told to stop at a warning, as make site does."""
    home = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", "docs", "-d", home / "doctrees", ".", home / "html"]
    done = subprocess.run(words, cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return home / "html"
