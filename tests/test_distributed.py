"""Several processes: real ones, two on the CPU with gloo, beside one that does the same alone."""
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mae_helpers import ClassifyConfig, InputError, PretrainConfig, classify, pretrain, train
from mae_helpers.__main__ import main
from mae_helpers.augment import augment
from mae_helpers.config import project_root
from mae_helpers.distributed import ALONE, BatchNorm, Group, Place, ProcessLost, WholeBatchDraws, find_place, first_host
from mae_helpers.masking import make_mask, random_mask
from mae_helpers.runs import load_run

LAUNCHED = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host",
            "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "0"}
TINY = dict(patch_size=2, image_size=8, embed_dim=16, depth=2, num_heads=2, epochs=2, batch_size=64, precision="fp32",
            device="cpu", compile="off")
PRETRAIN = dict(TINY, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, snapshot_epochs=(99,))
# What is computed by two processes, and by one: everything that draws, looks at the whole batch, or keeps a state.
JOBS = {
    "pretrain": PRETRAIN, "crops": dict(PRETRAIN, augment="resized_crop_flip", accumulate=2, mask_strategy="block"),
    "terms": dict(PRETRAIN, variant="cross_decoder", uniformity_weight=0.1, laplacian_weight=0.1, optimizer="muon"),
    "bf16": dict(PRETRAIN, precision="bf16", epochs=1),
    "finetune": dict(TINY, protocol="finetune", drop_path=0.5, erase_prob=0.5), "probe": dict(TINY, protocol="probe"),
    "knn": dict(TINY, protocol="knn", epochs=1)}


class Stop(Exception):
    pass


def stopping_after(epoch):
    """In place of `train.save_checkpoint`: training breaks off after a checkpoint."""
    original = train.save_checkpoint

    def save(run, number, *rest):
        original(run, number, *rest)
        if number == epoch:
            raise Stop
    return save


def run_job(name, root, dataset):
    values = dict(JOBS[name], dataset=dataset)
    if "protocol" in values:
        return classify(ClassifyConfig(**values, pretrained="pretrain"), root, name)
    return pretrain(PretrainConfig(**values), root, name)


# One of the two processes of `together`: what the tests below look at, in one go, because starting takes longest.
WORK = """
import json, os, signal, sys
from pathlib import Path
import pytest, torch
from mae_helpers import InputError, PretrainConfig, distributed, pretrain, train
from test_distributed import JOBS, PRETRAIN, run_job

root, dataset, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
PRETRAIN["dataset"] = dataset
out = {"names": [run_job(name, root, dataset).name for name in JOBS]}
out["again"] = run_job("pretrain", root, dataset).name

seen = []                           # which images a process gets: each is its own number
def step(images, labels, generator, progress):
    seen.append(labels.tolist())
    return model(images.float()).mean(), {}
model = torch.nn.Flatten(), torch.nn.Linear(4, 1)
model = torch.nn.Sequential(*model)
config = PretrainConfig(**{**PRETRAIN, "epochs": 1, "batch_size": 10, "accumulate": 2})
run = type("Run", (), {"path": root / f"seen", "write_metrics": lambda self, rows: None})()
(root / "seen" / "checkpoint").mkdir(parents=True, exist_ok=True)
train.fit(model, step, torch.zeros(60, 1, 2, 2, dtype=torch.uint8), torch.arange(60), config, run, lambda *a: {})
out["seen"] = seen
out["weights"] = [float(v.double().sum()) for v in model.state_dict().values()]

try:
    pretrain(PretrainConfig(**{**PRETRAIN, "batch_size": 33}), root, "odd")
except InputError as error:
    out["odd"] = str(error)
try:
    distributed.join().from_first(lambda: (_ for _ in ()).throw(InputError("only in the first")))
except InputError as error:
    out["first"] = str(error)
try:
    with distributed.join().together():
        if rank == 1:
            raise InputError("only in the second")
except InputError as error:
    out["second"] = str(error)

pretrain(PretrainConfig(**{**PRETRAIN, "epochs": 4, "seed": 1}), root, "resumed")       # the test has done two epochs of it
broken = lambda pred, target, mask: ((pred - target) ** 2).mean() * (float("nan") if rank == 1 else 1)
try:
    pretrain(PretrainConfig(**PRETRAIN), root, "broken", loss_fn=broken)
except train.TrainingStopped as error:
    out["broken"] = str(error)

(root / f"rank{rank}.json").write_text(json.dumps(out))
steps, original = [], train.update
def update(*arguments):
    steps.append(1)
    if rank == 1 and len(steps) == 8:                       # in the second of four epochs
        os.kill(os.getpid(), signal.SIGKILL)
    original(*arguments)
train.update = update
try:
    pretrain(PretrainConfig(**{**PRETRAIN, "epochs": 4, "seed": 2}), root, "killed")
except distributed.ProcessLost as error:
    (root / "lost.json").write_text(json.dumps([str(error), len(steps)]))
"""


def environment(rank, port, **more):
    return {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1", "MAE_TIMEOUT": "120",
            "PYTHONPATH": os.pathsep.join([str(project_root()), str(Path(__file__).parent)]), **more}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(words, port, **more):
    """Two processes with the variables that a launcher sets."""
    return [subprocess.Popen([sys.executable, *map(str, words), *([str(rank)] if words[0] == "-c" else [])],
                             cwd=project_root(), env=environment(rank, port, **more), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A data set of 400 small pictures in two classes: scoring the digits would take longer than all else here."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.RandomState(0)
    for number in range(400):
        pixels = draw.randint(0, 256, (8, 8, 3)).astype(np.uint8) // (1 + number % 2)
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def launched(tmp_path_factory, pictures):
    """Two processes that have started to work in a folder: (folder, processes)."""
    root = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_checkpoint", stopping_after(2))
        with pytest.raises(Stop):
            pretrain(PretrainConfig(**{**PRETRAIN, "dataset": pictures, "epochs": 4, "seed": 1}), root, "resumed")
    processes = start(["-c", WORK, root, pictures], free_port())
    yield root, processes
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pictures, launched):
    """The folder of what one process has done, while two others, which have no part in it, do the same."""
    root = tmp_path_factory.mktemp("one")
    for name in JOBS:
        run_job(name, root, pictures)
    return root


@pytest.fixture(scope="module")
def together(launched, alone):
    """What the two processes have left and said: (folder, [what each noted], [what each printed])."""
    root, processes = launched
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL], said
    return root, [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)], said


# Two processes

@pytest.mark.parametrize("name", JOBS)
def test_two_processes_equal_one_with_the_same_batch(together, alone, name):
    two, one = load_run(name, together[0]), load_run(name, alone)
    assert two.results["batch_size"] == one.results["batch_size"] and two.config == one.config
    coarse = 20 if name == "bf16" else 1            # it rounds sums of gradients, and shares are other sums
    for a, b in zip(two.metrics, one.metrics, strict=True):
        assert {k: v for k, v in a.items() if k != "train_seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "train_seconds"}, rel=1e-3 * coarse, abs=1e-4 * coarse)
    assert two.results.get("test_accuracy") == pytest.approx(one.results.get("test_accuracy"), abs=0.05)
    if name == "knn":
        return
    weights, same = two.weights(), one.weights()
    assert all(torch.allclose(weights[key], same[key], atol=2e-4 * coarse) for key in same)
    assert two.provenance["processes"] == 2 and one.provenance["processes"] == 1


def test_every_image_is_seen_once_in_an_epoch(together):
    """By one process or the other, in the global batches and the order of a single process."""
    first, second = (note["seen"] for note in together[1])
    assert [len(part) for part in first + second] == [5] * 12
    assert sorted(sum(first + second, [])) == list(range(60))
    order = torch.randperm(60, generator=train.epoch_generator(0, 1, torch.device("cpu"))).tolist()
    assert [a + b for a, b in zip(first, second)] == [order[i:i + 10] for i in range(0, 60, 10)]


def test_both_processes_have_the_same_weights(together):
    assert together[1][0]["weights"] == together[1][1]["weights"]


def test_both_processes_get_the_run_and_only_the_first_speaks(together):
    root, notes, said = together
    assert notes[0]["names"] == notes[1]["names"] == list(JOBS) and notes[0]["again"] == notes[1]["again"] == "pretrain"
    assert "pretrain on cpu in fp32, 2 processes" in said[0][0] and "found the finished run pretrain" in said[0][0]
    assert "resuming after epoch 2 of 4" in said[0][0]
    assert said[1][0] == "" and said[0][1] == said[1][1] == ""


def test_a_batch_that_cannot_be_shared_is_one_sentence_before_anything_is_written(together):
    root, notes, _ = together
    assert notes[0]["odd"] == notes[1]["odd"] and not (root / "odd").exists()
    assert notes[0]["odd"].startswith("a batch has 33 images and there are 2 processes: batch_size, which counts")


def test_what_goes_wrong_in_one_process_is_told_to_all(together):
    for note in together[1]:
        assert (note["first"], note["second"]) == ("only in the first", "only in the second")
        assert "the loss is nan at step 1" in note["broken"]        # it was finite in the first


def test_a_run_of_one_process_is_resumed_by_two(together, pictures, tmp_path):
    config = PretrainConfig(**{**PRETRAIN, "dataset": pictures, "epochs": 4, "seed": 1})
    whole = pretrain(config, tmp_path, say=lambda text: None)
    resumed = load_run("resumed", together[0])
    assert [r["val_loss"] for r in resumed.metrics] == pytest.approx([r["val_loss"] for r in whole.metrics], abs=1e-4)


def test_a_killed_process_ends_the_other_and_one_goes_on(together, pictures, tmp_path):
    root = together[0]
    said, steps = json.loads((root / "lost.json").read_text())
    assert said.startswith("a process of this training has ended or does not answer") and "\n" not in said
    assert steps in (7, 8)
    config, said = PretrainConfig(**{**PRETRAIN, "dataset": pictures, "epochs": 4, "seed": 2}), []
    resumed = pretrain(config, root, "killed", say=said.append)
    assert "resuming after epoch 1 of 4" in said
    whole = pretrain(config, tmp_path, say=lambda text: None)
    assert [r["val_loss"] for r in resumed.metrics] == pytest.approx([r["val_loss"] for r in whole.metrics], abs=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_ends_when_a_process_is_killed_and_the_checkpoint_is_whole(pictures, tmp_path):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in {
        **PRETRAIN, "snapshot_epochs": 9_999, "dataset": pictures, "epochs": 9_999, "eval_every": 9_999}.items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mae_helpers"]
    process = subprocess.Popen([*launcher, "pretrain", *words, "--root", tmp_path, "--name", "killed"], cwd=project_root(),
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "killed" / "metrics.csv").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        second = next(pid for pid in workers if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(int(second), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert err.count("error: a process of this training has ended") == 1 and "Signal 9 (SIGKILL)" in err
    assert out.count("2 processes") == 1
    assert train.read_checkpoint(tmp_path / "killed" / "checkpoint" / "last.pt")["epoch"] >= 1


def test_accelerate_s_notebook_launcher_trains_with_two_processes(pictures, tmp_path):
    code = f"""
from accelerate import notebook_launcher
from mae_helpers import PretrainConfig, pretrain

def work():
    return pretrain(PretrainConfig(**{dict(PRETRAIN, dataset=pictures)!r}), {str(tmp_path)!r}, "launched").name

notebook_launcher(work, num_processes=2, use_port="{free_port()}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root(), env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1 and load_run("launched", tmp_path).provenance["processes"] == 2


# Who takes part

def test_the_place_comes_from_torchrun_or_srun():
    assert find_place({}) == find_place({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Place()      # a batch script is alone
    assert find_place(LAUNCHED) == Place(1, 4, 1, 2, "host", 29_500)
    assert find_place({**SRUN, **ALONE}) == Place()         # a worker of a sweep that srun started with others
    assert find_place(SRUN) == Place(5, 8, 1, 4, "gpu07", 20_861)
    assert find_place({**SRUN, "MASTER_ADDR": "other", "MASTER_PORT": "5"})[-2:] == ("other", 5)
    assert find_place({**SRUN, **LAUNCHED}) == find_place(LAUNCHED)


@pytest.mark.parametrize("nodes, first", [("gpu[07-09,12],login", "gpu07"), ("a1,b2", "a1"), ("n[3]", "n3"), ("", ""),
                                          ("rack1-n[001-004]-ib", "rack1-n001-ib"), ("rack[1-2]node[3-4],b", "rack1node3")])
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("changes, sentence", [
    ({"RANK": None}, "WORLD_SIZE is set and RANK is not: a launcher such as torchrun sets both."),
    ({"WORLD_SIZE": None}, "RANK is set and WORLD_SIZE is not: a launcher such as torchrun sets both."),
    ({"RANK": "4"}, "RANK is '4': it must be a whole number from 0 to 3."),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': it must be a whole number at least 1."),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': it must be a whole number at least 1."),
    ({"LOCAL_RANK": "2"}, "LOCAL_RANK is '2': it must be a whole number from 0 to 1."),
    ({"MASTER_ADDR": None}, "MASTER_ADDR is not set: it must name the machine of the process with RANK 0."),
    ({"MASTER_PORT": None}, "MASTER_PORT is not set: a launcher such as torchrun or srun sets it."),
    ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http': it must be a whole number from 1 to 65535.")])
def test_a_wrong_environment_is_one_sentence(changes, sentence):
    given = {key: value for key, value in {**LAUNCHED, **changes}.items() if value is not None}
    with pytest.raises(InputError) as error:
        find_place(given)
    assert str(error.value) == sentence


def test_processes_that_do_not_find_each_other_are_told_so(monkeypatch, capsys):
    for name, value in {**LAUNCHED, "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                        "MAE_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: process 1 of 4 did not find the others at 127.0.0.1:") and err.count("\n") == 1


def test_one_gpu_for_each_process(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    group = Group(Place(1, 2, 1, 2))
    with pytest.raises(InputError, match="LOCAL_RANK is 1: this machine has 1 GPUs, one for each process."):
        group.device(torch.device("cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")             # each process is shown its own
    assert group.device(torch.device("cuda")) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert group.device(torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="device is 'mps': several processes compute on CUDA GPUs or with device 'cpu'"):
        group.device(torch.device("mps"))
    assert Group().device(torch.device("mps")) == torch.device("mps")


def test_a_gpu_that_two_processes_share_is_one_sentence(monkeypatch):
    """CUDA_VISIBLE_DEVICES=0 and two processes: NCCL would refuse it in words about a lost connection."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="GPU-0"))
    group, other = Group(Place(0, 2, 0, 2)), [None]

    def gathered(found, own):
        found[:] = [own, (None, other[0] or own[1])]
    monkeypatch.setattr("torch.distributed.all_gather_object", gathered)
    with pytest.raises(InputError, match="two processes compute on the same GPU: start one for each GPU"), group.together():
        group.device(torch.device("cuda"))
    other[0] = "another machine GPU-0"
    with group.together():
        group.device(torch.device("cuda"))


def test_an_error_while_exchanging_is_told_with_its_words():
    with pytest.raises(ProcessLost, match=r"goes on from there\. \(CUDA error: out of memory\)$"), Group()._listening():
        raise RuntimeError("CUDA error: out of memory\nCompile with ...")


def test_mixing_needs_two_images_in_each_process(monkeypatch, tmp_path, tiny_classify):
    monkeypatch.setattr(importlib.import_module("mae_helpers.classify"), "join", lambda: Group(Place(0, 2)))
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda found, own: found.__setitem__(0, own))
    with pytest.raises(InputError, match="one image for each process: mix_prob mixes two, so .* must be at least 4"):
        classify(tiny_classify("scratch", limit=34, batch_size=2, mix_prob=0.5), tmp_path)


def test_what_one_process_does_is_refused_to_several(monkeypatch, capsys):
    monkeypatch.setattr("mae_helpers.__main__.join", lambda: Group(Place(0, 2)))
    assert main(["report"]) == 2
    assert "report is done by one process, and a launcher started 2: it is for pretrain" in capsys.readouterr().err
    monkeypatch.setattr("mae_helpers.__main__.join", lambda: Group(Place(1, 2)))
    assert main(["report"]) == 2 and capsys.readouterr().err == ""         # the first one has said it


# Shares of a batch

@pytest.mark.parametrize("draw", [
    lambda count, g: random_mask(count, 16, 0.75, g), lambda count, g: make_mask("grid", count, 16, 0.75, g),
    lambda count, g: torch.randn((count, 3), generator=g),
    lambda count, g: augment("resized_crop_flip", torch.linspace(0, 1, 48).view(1, 3, 4, 4).expand(count, -1, -1, -1), g)])
def test_a_share_gets_the_random_numbers_of_its_place_in_the_batch(draw):
    generator = torch.Generator().manual_seed(0)
    whole, after = draw(12, generator), torch.rand(1, generator=generator)
    parts = []
    for rank in range(3):
        generator.manual_seed(0)
        with WholeBatchDraws(4, Group(Place(rank, 3))):
            parts.append(draw(4, generator))
        assert torch.equal(torch.rand(1, generator=generator), after)       # all streams stay together
    assert torch.equal(torch.cat(parts), whole)


def test_shares_are_even_and_complete():
    groups = [Group(Place(rank, 4)) for rank in range(4)]
    assert torch.equal(torch.cat([group.share(torch.arange(12)) for group in groups]), torch.arange(12))
    groups[0].check_batches(8, 4)
    with pytest.raises(InputError, match="a batch has 6 images and there are 4 processes"):
        groups[0].check_batches(8, 6)


def test_alone_nothing_is_exchanged():
    group, values = Group(), torch.ones(3)
    group.average([values])
    assert group.first and group.gather(values) is values and group.from_first(lambda: 5) == 5 and group.words == ""
    with group.together(), group.draws(3):
        assert torch.equal(values, torch.ones(3))
    plain, ours = torch.nn.BatchNorm1d(4, affine=False), BatchNorm(4, affine=False)
    rows = torch.randn(8, 4)
    assert torch.equal(plain(rows), ours(rows)) and list(plain.state_dict()) == list(ours.state_dict())
