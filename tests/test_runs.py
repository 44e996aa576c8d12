"""Run directories: found again, continued, never silently replaced, never half-written."""
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest
import torch

from mae_helpers import InputError, MaskedAutoencoder, PretrainConfig, find_run, load_run, pretrain, runs
from mae_helpers.runs import (
    Run,
    code_fingerprint,
    open_run,
    part_fingerprint,
    read_json,
    read_weights,
    runs_root,
    write_atomic,
    write_weights,
)
from mae_helpers.tables import compare

SAME = {"code": "a", "data": "b"}


def finish(run):
    run.finish({"job": "pretrain", "seconds": 1.0, "value": float("nan")}, {"created": "today"})
    return run


def test_the_same_job_finds_the_same_folder(tmp_path, tiny):
    assert open_run(tiny, SAME, tmp_path).path == open_run(tiny, SAME, tmp_path).path


@pytest.mark.parametrize("change", [dict(seed=1), dict(epochs=3), dict(mask_ratio=0.5), dict(base_lr=2e-3)])
def test_another_configuration_is_another_folder(tmp_path, tiny, change):
    assert open_run(tiny, SAME, tmp_path).path != open_run(tiny.replace(**change), SAME, tmp_path).path


def test_changed_code_or_data_is_another_folder(tmp_path, tiny):
    changes = {}, {"code": "x"}, {"data": "x"}
    assert len({open_run(tiny, {**SAME, **change}, tmp_path).path for change in changes}) == 3


def test_the_device_is_not_part_of_what_a_run_is(tmp_path, tiny):
    assert open_run(tiny, SAME, tmp_path).path == open_run(tiny.replace(device="auto", compile="on"), SAME, tmp_path).path


def test_a_name_with_another_configuration_is_an_error_that_names_the_difference(tmp_path, tiny):
    open_run(tiny, SAME, tmp_path, "mine")
    with pytest.raises(InputError, match="mine exists with another configuration: epochs is 2 there and 5 here"):
        open_run(tiny.replace(epochs=5), SAME, tmp_path, "mine")


def test_a_name_with_changed_code_gets_a_new_name(tmp_path, tiny):
    first = open_run(tiny, SAME, tmp_path, "mine")
    second = open_run(tiny, {**SAME, "code": "x"}, tmp_path, "mine")
    assert second.path != first.path and second.name.startswith("mine-")


def test_an_unwritable_directory_is_one_sentence(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        open_run(tiny, SAME, tmp_path / "file")


def test_finishing_writes_the_results_last_and_as_plain_json(tmp_path, tiny):
    run = open_run(tiny, SAME, tmp_path)
    (run.path / "checkpoint" / "last.pt").write_bytes(b"x")
    assert not run.finished
    finish(run)
    assert run.finished and not (run.path / "checkpoint" / "last.pt").exists()
    assert json.loads((run.path / "results.json").read_text())["value"] is None


def test_metrics_round_trip(tmp_path, tiny):
    run = open_run(tiny, SAME, tmp_path)
    rows = [{"epoch": 1, "loss": 0.5, "psnr_db": None}, {"epoch": 2, "loss": 1e-05, "psnr_db": 12.0}]
    run.write_metrics(rows)
    assert run.metrics == rows
    assert isinstance(run.metrics[0]["epoch"], int) and isinstance(run.metrics[1]["psnr_db"], float)


def test_find_run_wants_a_finished_run_with_weights_and_prefers_the_newest(tmp_path, tiny):
    assert find_run(tiny, tmp_path) is None
    first, second = (finish(open_run(tiny, {**SAME, "code": code}, tmp_path)) for code in "xy")
    assert find_run(tiny, tmp_path) is None
    for age, run in ((1_000, first), (0, second)):
        write_weights(run.path / "model.safetensors", {"w": torch.zeros(1)})
        stamp = (run.path / "results.json").stat().st_mtime - age
        os.utime(run.path / "results.json", (stamp, stamp))
    assert find_run(tiny, tmp_path).path == second.path
    assert find_run(tiny.replace(seed=9), tmp_path) is None


def test_load_run_names_the_nearest(tmp_path, tiny):
    open_run(tiny, SAME, tmp_path, "my-first-run")
    assert load_run("my-first-run", tmp_path).name == "my-first-run"
    with pytest.raises(InputError, match="Did you mean 'my-first-run'"):
        load_run("my-frist-run", tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        Run(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="not the configuration of a run"):
        Run(tmp_path).config  # noqa: B018
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Run(tmp_path).config  # noqa: B018


def test_relative_roots_count_from_the_project_not_from_the_current_folder(tmp_path, monkeypatch):
    before = runs_root("elsewhere")
    monkeypatch.chdir(tmp_path)
    assert runs_root("elsewhere") == before and before.is_absolute()
    monkeypatch.setenv("MAE_RUNS_DIR", str(tmp_path / "r"))
    assert runs_root("runs") == tmp_path / "r" and runs_root("elsewhere") == before


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file.json"
    write_atomic(target, b"old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, b"new and half")
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("damage", [lambda raw: raw[:len(raw) // 2], lambda raw: b"not a checkpoint", lambda raw: b""])
def test_damaged_weights_are_one_sentence(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    write_weights(path, {"w": torch.arange(1000.0)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        read_weights(path)


def test_half_precision_weights_come_back_as_float32(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": torch.ones(3).half(), "n": torch.tensor([1])})
    found = read_weights(tmp_path / "w.safetensors")
    assert found["w"].dtype == torch.float32 and found["n"].dtype == torch.int64


def test_missing_results_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="has not finished"):
        read_json(tmp_path / "results.json")


def test_the_code_fingerprint_sees_code_and_not_words(tmp_path, monkeypatch):
    import mae_helpers.runs as runs
    module = tmp_path / "some.py"
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))

    def of(text):
        module.write_text(text)
        return code_fingerprint("some")
    original = of('"""Doc."""\ndef f(x):\n    """Says."""\n    return x + 1\n')
    assert of('"""Other."""\n\n\ndef f(x):\n    """More."""\n    return x + 1     # why\n') == original
    assert of('"""Doc."""\ndef f(x):\n    """Says."""\n    return x + 2\n') != original


def test_the_code_fingerprint_is_the_one_of_every_python(tmp_path, monkeypatch):
    """Python 3.10 to 3.13 gave this value, by hand: 3.12 knows a field more, 3.13 leaves empty ones out. Each Python that
    runs this test checks its own."""
    import mae_helpers.runs as runs
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    (tmp_path / "some.py").write_text("class A:\n    def f(self, x: int = 1, *more) -> int:\n        return [x, None][0]\n")
    assert code_fingerprint("some") == "8615ce46921bba67"


class Corner:
    """A mask function that keeps a setting."""

    def __init__(self, size):
        self.size = size

    def __call__(self, batch, patches, ratio, generator):
        return torch.arange(patches).lt(self.size).expand(batch, -1)


class Other(Corner):
    def __call__(self, batch, patches, ratio, generator):
        return torch.arange(patches).ge(self.size).expand(batch, -1)


def test_part_fingerprints_see_what_a_part_does():
    def only(x, *, k=1):
        return x + k

    def another(x, *, k=2):
        return x + k

    def inner(x):
        return [(lambda y: y * 2)(each) for each in x]

    def inner_three(x):
        return [(lambda y: y * 3)(each) for each in x]
    parts = [only, another, inner, inner_three, Corner(1), Corner(2), Other(1)]
    assert len({part_fingerprint(part) for part in parts}) == len(parts)
    assert part_fingerprint(Corner(1)) == part_fingerprint(Corner(1))
    sizes = dict(image_size=28, patch_size=7, in_chans=1, embed_dim=12, depth=1, decoder_embed_dim=12, decoder_depth=1,
                 decoder_num_heads=1)

    def model(**more):
        torch.manual_seed(0)
        return MaskedAutoencoder(**{**sizes, "num_heads": 1, **more})
    models = [model(), model(norm_pix_loss=True), model(num_heads=2)]
    assert len({part_fingerprint(each) for each in models}) == 3
    assert part_fingerprint(models[0].eval()) == part_fingerprint(model())


def numbers(**changed):
    """A thousand numbers, of which the repr shows the first and the last three."""
    return torch.zeros(1000).index_fill_(0, torch.tensor(500), changed.get("middle", 0))


def weighted(weight):
    def loss(pred, target, mask):
        return weight * (pred - target).abs().mean()
    return loss


def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def changed(*inputs):
            return factor * function(*inputs)
        return changed
    return decorate


def with_default(value):
    def mask(batch, patches, ratio, generator, kept=value):
        return kept
    return mask


def decorated(by, sign):
    def plus(x):
        return x + 1

    def minus(x):
        return x - 1
    return by(plus if sign > 0 else minus)


class Shared(Corner):
    ratio = 0.5

    @property
    def double(self):
        return 2 * self.size


class OtherShared(Corner):
    ratio = 0.75

    @property
    def double(self):
        return 2 * self.size


class OtherProperty(Corner):
    ratio = 0.5

    @property
    def double(self):
        return 3 * self.size


def renamed(cls):
    return type("Same", (cls,), {"__module__": "same"})(1)


def dice(seed):
    return torch.Generator().manual_seed(seed)


# For each way in which a part can keep a value: what makes the part of one, and values that must not be taken for another.
WAYS = {
    "no_grad": (lambda sign: decorated(torch.no_grad(), sign), (1, -1)),
    "cached": (lambda sign: decorated(functools.cache, sign), (1, -1)),
    "decorator": (lambda factor: scaled(factor)(with_default(0)), (1, 2)),
    "closure": (weighted, (0.1, 0.2)),
    "tensor around": (lambda middle: weighted(numbers(middle=middle)), (0, 1)),
    "array around": (lambda middle: weighted(numbers(middle=middle).numpy()), (0, 1)),
    "list around": (weighted, ([1, [2]], [1, [3]])),
    "function around": (lambda weight: weighted(weighted(weight)), (0.1, 0.2)),
    "generator around": (lambda seed: weighted(dice(seed)), (0, 1)),
    "method": (lambda size: Corner(size).__call__, (1, 2)),
    "default": (with_default, (1, 2)),
    "tensor default": (lambda middle: with_default(numbers(middle=middle)), (0, 1)),
    "function default": (lambda weight: with_default(weighted(weight)), (0.1, 0.2)),
    "object default": (lambda size: with_default(Corner(size)), (1, 2)),
    "partial": (lambda middle: functools.partial(with_default(0), kept=numbers(middle=middle)), (0, 1)),
    "tensor of an object": (lambda middle: Corner(numbers(middle=middle)), (0, 1)),
    "class variable": (lambda cls: renamed(cls), (Shared, OtherShared)),
    "property": (lambda cls: renamed(cls), (Shared, OtherProperty)),
    "class": (lambda cls: cls, (Corner, Other)),
    "written in C": (lambda function: function, (torch.mean, torch.sum)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_part_is_known_by_the_values_that_it_keeps_and_by_no_address(way):
    made, (one, another) = WAYS[way]
    first, again = made(one), made(one)                     # both alive, or they could have one address
    assert part_fingerprint(first) == part_fingerprint(again) != part_fingerprint(made(another))


def test_a_part_that_refers_to_itself_has_a_fingerprint():
    def factorial(n):
        return n * factorial(n - 1) if n else 1
    loop = Corner(1)
    loop.itself, loop.inside = loop, [factorial]
    loop.inside.append(loop.inside)
    assert part_fingerprint(factorial) == part_fingerprint(factorial) and len(part_fingerprint(loop)) == 16


def test_the_fingerprint_of_a_plain_function_stays():
    """Of the code only what is the same in every Python would do, so this builds it as it was built from the start."""
    def plain(x, k=1, *, names=("a", "b")):
        return x * k
    code = plain.__code__
    told = b"((1,), {'names': ('a', 'b')})" + code.co_code + repr(code.co_names).encode() + \
        b"".join(repr(constant).encode() for constant in code.co_consts)
    assert part_fingerprint(plain) == hashlib.sha256(told).hexdigest()[:16]


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_start_that_was_killed_at_once_does_not_block_its_run(tmp_path, tiny, name):
    path = open_run(tiny, SAME, tmp_path, name).path
    (path / "config.json").unlink()
    again = open_run(tiny, SAME, tmp_path, name)
    assert again.path == path and again.config == tiny.resolved()


def test_a_run_of_another_version_is_passed_over(tmp_path, tiny_run, monkeypatch):
    shutil.copytree(tiny_run.path, tmp_path / "good")
    shutil.copytree(tiny_run.path, tmp_path / "newer")
    saved = json.loads((tmp_path / "newer/config.json").read_text())
    (tmp_path / "newer/config.json").write_text(json.dumps({**saved, "config": {**saved["config"], "removed_knob": 1}}))
    assert find_run(tiny_run.config, tmp_path).name == "good"


@pytest.mark.parametrize("saved", [{}, {"fingerprint": {}}, {"config": {}}, {"config": [], "fingerprint": {}},
                                   {"config": {}, "fingerprint": "x"}, {"job": ["pretrain"]}])
def test_a_folder_of_another_program_is_passed_over(tmp_path, tiny_run, saved):
    shutil.copytree(tiny_run.path, tmp_path / "good")
    shutil.copytree(tiny_run.path, tmp_path / "foreign")
    (tmp_path / "foreign/config.json").write_text(json.dumps({"job": "pretrain", **saved}))
    assert find_run(tiny_run.config, tmp_path).name == "good"
    with pytest.raises(InputError, match="foreign.config.json is not the configuration of a run"):
        compare("good", "foreign", tmp_path)
    with pytest.raises(InputError, match="config.json is not the configuration of a run"):
        Run(tmp_path / "foreign").own_parts  # noqa: B018


def test_a_run_in_the_home_folder_is_found(tiny_run, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_run.path.parent))
    assert load_run(f"~/{tiny_run.name}").path == tiny_run.path


def test_part_fingerprints_tell_functions_and_starting_weights_apart():
    def one(x, k=1):
        return x + k

    def two(x, k=2):
        return x + k

    def three(x, k=1):
        return x - k
    prints = [part_fingerprint(f) for f in (one, two, three, functools.partial(one, k=5))]
    assert len(set(prints)) == 4 and part_fingerprint(one) == prints[0]
    layer = torch.nn.Linear(2, 2)
    before = part_fingerprint(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert part_fingerprint(layer) != before


def test_a_finished_run_is_reused_and_says_so(tiny_run):
    said, stamp = [], (tiny_run.path / "model.safetensors").stat().st_mtime_ns
    again = pretrain(tiny_run.config, root=tiny_run.path.parent, say=said.append)
    assert again.path == tiny_run.path and said == [f"found the finished run {tiny_run.name}"]
    assert (tiny_run.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_on_epoch_gets_the_rows_so_far_and_all_at_once_of_a_finished_run(tiny, tmp_path):
    seen = []
    for _ in range(2):
        run = pretrain(tiny.replace(epochs=2), tmp_path, on_epoch=lambda rows: seen.append(len(rows)))
    assert seen == [1, 2, 2] and len(run.metrics) == 2


def test_provenance_and_results_say_where_a_number_comes_from(tiny_run):
    prov, results = tiny_run.provenance, tiny_run.results
    assert {"python", "torch", "device", "data_checksum", "data_source", "fingerprint", "commit", "seconds"} <= set(prov)
    wanted = {"job", "protocol", "dataset", "data_source", "preset", "patch_size", "mask_ratio", "mask_ratio_true",
              "pretrained_run", "pretrain_epochs", "labels_seen", "label_fraction", "epochs", "batch_size", "seed",
              "parameters", "seconds", "device", "python", "torch", "train_loss", "val_loss", "psnr_db"}
    assert wanted <= set(results)
    assert results["data_source"] == "MNIST (original)" and results["mask_ratio_true"] == 0.75
    text = "".join(p.read_text() for p in tiny_run.path.glob("*.json"))
    assert str(tiny_run.path.parent) not in text, "a run must not carry this machine's folders"


def test_the_curves_of_a_run_are_there_for_tensorboard(tiny_run):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = module.EventAccumulator(str(tiny_run.path / "tensorboard")).Reload()
    points = board.Scalars("val_loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx([row["val_loss"] for row in tiny_run.metrics], rel=1e-5)


def test_the_commit_is_that_of_the_checkout_and_says_when_files_differ(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)
    (tmp_path / "part.py").write_text("1")
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "part.py"))
    git("init", "-q"), git("add", "part.py"), git("commit", "-qm", "one")
    commit = runs._commit()
    assert re.fullmatch("[0-9a-f]{12}", commit)
    (tmp_path / "part.py").write_text("2")
    assert runs._commit() == commit + "+"


def test_the_files_of_a_run(tiny_run):
    names = {str(p.relative_to(tiny_run.path)) for p in tiny_run.path.rglob("*") if p.is_file()}
    assert {"config.json", "metrics.csv", "results.json", "provenance.json", "model.safetensors",
            "checkpoint/best.safetensors", "checkpoint/epoch_1.safetensors", "checkpoint/epoch_2.safetensors",
            "figures/reconstruction_0001.png", "figures/reconstruction_0002.png"} <= names
    assert not [n for n in names if n.startswith(".") or "tmp" in n or n.endswith("last.pt")]
    assert tiny_run.kept() == ["last", "best", "1", "2"]
    with pytest.raises(InputError, match="has no weights '7': it has last, best, 1, 2"):
        tiny_run.weights("7")
    assert isinstance(tiny_run.config, PretrainConfig)
