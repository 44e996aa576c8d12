"""The tests of the tests: each typical mistake is put into a copy of the package, and a named test file must notice."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mae_helpers

PACKAGE, TESTS = Path(mae_helpers.__file__).parent, Path(__file__).parent

# What goes wrong: module, text that stands there exactly once, what it becomes; test file, and which of its tests (-k)
FAULTS = {
    "loss over all patches": (
        "losses", "weight = mask.unsqueeze(-1).to(pred.dtype)",
        "weight = torch.ones_like(mask).unsqueeze(-1).to(pred.dtype)", "test_losses", "equals"),
    "padding counts in the loss": (
        "losses", "weight * real if real is not None else weight.expand_as(pred)", "weight.expand_as(pred)",
        "test_losses", "equals"),
    "padding forgotten by the model": (
        "model", "self.target(tokens).float(), mask, self._padding())", "self.target(tokens).float(), mask)",
        "test_model", "scored"),
    "one mean for the whole image": (
        "losses", "mean, std = patch_statistics(tokens, real)",
        "mean, std = (s.mean(dim=1, keepdim=True) for s in patch_statistics(tokens, real))", "test_losses", "numpy"),
    "true statistics given away": (
        "model", "if not use_true_statistics:", "if False:", "test_model", "statistics"),
    "hidden and visible swapped": (
        "masking", "rank >= scores.shape[1] - count", "rank < count", "test_masking", "noise"),
    "sorted once": (
        "masking", "argsort(dim=1, stable=True).argsort(dim=1) ", "argsort(dim=1, stable=True) ", "test_masking",
        "highest or noise"),
    "not put back in order": (
        "masking", "order[:, -hidden:], order.argsort(dim=1)", "order[:, -hidden:], order", "test_masking", "split"),
    "encoder sees the hidden patches": (
        "model", "visible, _, restore = split(mask, hidden)",
        "_, visible, restore = split(mask, mask.shape[1] - hidden)", "test_model", "never_seen"),
    "positions after hiding": (
        "model", "take(tokens, visible), take(positions.expand(len(tokens), -1, -1), visible)",
        "take(tokens, visible), positions[:, :visible.shape[1]]", "test_model", "encode_is or place"),
    "patches one off": (
        "patches", 'return rearrange(images, "b c (h p)', 'return rearrange(images.roll(1, -1), "b c (h p)',
        "test_patches", "patchify or pixels"),
    "patches column by column": (
        "patches", "-> b (h w) (p q c)", "-> b (w h) (p q c)", "test_patches", "patchify or pixels"),
}

# An installed package can shadow the copy, so the tests refuse to start with any other.
CONFTEST = """
from pathlib import Path

import mae_helpers

assert Path(mae_helpers.__file__).parent == Path(__file__).parent / "mae_helpers"
"""

# Runs pytest in each folder, in a process of its own that starts from one in which the large libraries are already
# imported: with 13 fresh interpreters this test would take as long as all others together.
RUNNER = """
import json, os, sys
import einops, hypothesis, numpy, pytest, safetensors.torch, torch, tqdm

for folder in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.stdout = sys.stderr = open("said.txt", "w")
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", open("chosen.txt").read()])
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def prepare(folder, files, chosen):
    """A copy of the package in `folder`, with the test files and the choice of their tests; the copy's path."""
    shutil.copytree(PACKAGE, folder / "mae_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    for file in files:
        shutil.copy(TESTS / f"{file}.py", folder)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "chosen.txt").write_text(chosen)
    return folder / "mae_helpers"


def break_text(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} times: {old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has imported torch")
def test_every_fault_is_noticed(tmp_path):
    folders = {name: tmp_path / name.replace(" ", "-") for name in ("no fault", *FAULTS)}
    for name, (module, old, new, file, chosen) in FAULTS.items():
        break_text(prepare(folders[name], [file], chosen) / f"{module}.py", old, new)
    # The same tests pass against an unchanged copy, so it is the fault that each of them notices.
    files, chosen = zip(*(fault[3:] for fault in FAULTS.values()))
    prepare(folders["no fault"], set(files), " or ".join(set(chosen)))

    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUNNER, *folders.values()], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=True, timeout=300)
    statuses = dict(zip(folders, map(int, done.stdout.split()), strict=True))
    for name, status in statuses.items():
        expected = 0 if name == "no fault" else 1       # 1: tests failed; anything else means that they did not run
        assert status == expected, f"{name}:\n{(folders[name] / 'said.txt').read_text()}"
