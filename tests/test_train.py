"""The training loop: schedule, optimizer, accumulation, resume, and that looking changes nothing."""
import importlib
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mae_helpers import InputError, MaskedAutoencoder, PretrainConfig, ViTClassifier, classify, load_images, pretrain, train
from mae_helpers.muon import Muon
from mae_helpers.pretrain import build
from mae_helpers.runs import Run
from mae_helpers.train import (
    RunningMean,
    TrainingStopped,
    choose_device,
    choose_precision,
    clock,
    depth_of,
    epoch_generator,
    evaluating,
    groups_of,
    make_optimizers,
    own_random_state,
    schedule,
    update,
)
from mae_helpers.variants import VARIANTS, CrossDecoderMAE

CPU = torch.device("cpu")


def weights_of(run):
    return torch.cat([v.flatten() for v in run.weights().values()])


def run_quietly(config, folder, **more):
    return pretrain(config, root=folder, say=lambda text: None, **more)


# Schedule and optimizer

def test_the_schedule_rises_in_a_line_peaks_once_and_falls_to_zero():
    rates = [schedule(i, 100, 10) for i in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert max(rates) == rates[10] == 1 and rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert schedule(55, 100, 10) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_clamped_so_that_the_peak_is_reached():
    rates = [schedule(i, 100, 2_000) for i in range(100)]
    assert max(rates) == pytest.approx(1) and rates[-1] < 0.01


def test_no_warm_up_starts_at_the_peak():
    assert schedule(0, 10, 0) == 1


def test_the_learning_rate_follows_the_effective_batch():
    model, config = nn.Linear(4, 4), PretrainConfig(base_lr=1e-3)
    assert groups_of(make_optimizers(model, config, 512))[0]["lr"] == pytest.approx(2e-3)


def test_weight_decay_spares_biases_norms_and_tokens(tiny):
    model = build(tiny, load_images("mnist", "val", 10))
    spared = {id(p) for g in groups_of(make_optimizers(model, tiny, 256)) if g["weight_decay"] == 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = "bias" in name or "norm" in name or "token" in name
        assert (id(parameter) in spared) == expected, name


def test_layer_decay_slows_early_blocks(tiny_classify):
    model = ViTClassifier(28, 7, 1, 10, embed_dim=16, depth=3, num_heads=2)
    config = tiny_classify(pretrained="x", layer_decay=0.5, base_lr=1.0).resolved()
    rate = {id(p): g["lr"] for g in groups_of(make_optimizers(model, config, 256)) for p in g["params"]}
    found = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert [found[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert found["patch_embed.proj.weight"] == found["cls_token"] == 0.0625
    assert found["head.weight"] == found["norm.weight"] == 1.0
    assert [depth_of(n, 3) for n in ("pos_embed", "blocks.2.norm1.bias", "head.bias")] == [0, 3, 4]


def test_frozen_parameters_stay_out_of_the_optimizer(tiny):
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert sum(len(g["params"]) for g in groups_of(make_optimizers(model, tiny, 256))) == 2


def test_muon_gets_the_matrices_of_the_blocks_and_nothing_else(tiny):
    model = build(tiny, load_images("mnist", "val", 10))
    adamw, muon = make_optimizers(model, tiny.replace(optimizer="muon"), 256)
    theirs = {id(p) for group in muon.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in theirs) == ("blocks." in name and parameter.ndim == 2), name
    others = sum(len(group["params"]) for group in adamw.param_groups)
    assert len(theirs) + others == sum(p.requires_grad for p in model.parameters())
    assert {g["lr"] for g in groups_of([adamw, muon])} == {tiny.base_lr}


def test_muon_makes_all_directions_of_an_update_equally_long_and_as_large_as_adamw_s(tiny):
    model = build(tiny.replace(embed_dim=64, num_heads=4), load_images("mnist", "val", 10))
    weight = model.blocks[0].attn.proj.weight
    before = weight.detach().clone()
    weight.grad = torch.randn(64, 4) @ torch.randn(4, 64) + 0.1 * torch.randn(64, 64)     # four strong directions
    asked = torch.linalg.svdvals(weight.grad)
    update(model, make_optimizers(model, tiny.replace(optimizer="muon", weight_decay=0.0, base_lr=1e-2), 256),
           torch.amp.GradScaler("cpu", enabled=False), clip_grad=0)
    lengths = torch.linalg.svdvals(before - weight.detach())
    assert asked[0] / asked[32] > 50 and lengths[0] / lengths[32] < 3
    assert (before - weight.detach()).pow(2).mean().sqrt() == pytest.approx(0.2e-2, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_steps_as_pytorch_s_own_does_matrix_by_matrix(dtype):
    shapes, rates = [(8, 8), (24, 8), (8, 24), (24, 8)], [0.1, 0.02, 0.02, 0.02]
    ours, theirs = ([nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(i)))
                     for i, shape in enumerate(shapes)] for _ in range(2))
    groups = [[{"params": [each], "lr": rate, "weight_decay": 0.5} for each, rate in zip(side, rates)]
              for side in (ours, theirs)]
    optimizers = Muon(groups[0], dtype=dtype), torch.optim.Muon(groups[1], adjust_lr_fn="match_rms_adamw")
    for step in range(3):                                       # momentum only shows from the second step on
        for i, (mine, other) in enumerate(zip(ours, theirs)):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(10 * step + i))
            other.grad = mine.grad.clone()
        before = [mine.detach().clone() for mine in ours]
        for optimizer in optimizers:
            optimizer.step()
        for old, mine, other in zip(before, ours, theirs):      # the other one multiplies in bf16: three digits
            assert torch.dist(mine, other) < 0.02 * torch.dist(mine, old), step


def test_muon_multiplies_in_the_precision_of_training_and_keeps_its_memory_in_fp32(tiny):
    model = build(tiny, load_images("mnist", "val", 1))
    for precision, dtype in {"bf16": torch.bfloat16, "fp16": torch.float32, "fp32": torch.float32}.items():
        muon = make_optimizers(model, tiny.replace(optimizer="muon"), 256, precision)[1]
        assert muon.dtype == dtype
    before = muon.state_dict()
    muon = make_optimizers(model, tiny.replace(optimizer="muon"), 256, "bf16")[1]
    for matrix in groups_of([muon])[0]["params"]:
        matrix.grad = torch.ones_like(matrix)
    muon.step()
    assert {state["momentum_buffer"].dtype for state in muon.state.values()} == {torch.float32}
    muon.load_state_dict(before)                                # a checkpoint does not bring its machine's precision
    assert muon.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_muon_refuses_what_is_no_matrix(shape):
    with pytest.raises(InputError, match=r"a parameter of shape \[.*\]: it takes matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(shape))])


def test_muon_leaves_a_matrix_without_a_gradient_alone():
    still, moving = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moving.grad = torch.eye(4)
    Muon([{"params": [still, moving]}], lr=0.1, weight_decay=0.5).step()
    assert (still == 1).all() and not (moving == 1).all()


def test_clipping_shortens_the_gradient_and_keeps_its_direction():
    model = nn.Linear(3, 1, bias=False)
    model.weight.grad = torch.tensor([[30.0, 40.0, 0.0]])
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(lambda *a: seen.append(model.weight.grad.clone()))
    update(model, [optimizer], torch.amp.GradScaler("cpu", enabled=False), clip_grad=1.0)
    assert torch.allclose(seen[0], torch.tensor([[0.6, 0.8, 0.0]]), atol=1e-5)
    assert model.weight.grad is None


def test_the_mean_of_the_weights_has_a_short_memory_at_first():
    model = nn.Linear(1, 1, bias=False)
    mean = RunningMean(model, 0.99)
    for value in range(200):
        nn.init.constant_(model.weight, float(value))
        mean.update_parameters(model)
    assert 100 < mean.module.weight.item() < 199


def test_the_mean_of_the_weights_is_that_of_pytorch():
    from torch.optim.swa_utils import AveragedModel
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))       # with statistics, which are not averaged
    theirs = AveragedModel(model, avg_fn=lambda mean, new, count: torch.lerp(
        mean, new, 1 - min(0.9, (1 + float(count)) / (10 + float(count)))))
    mean = RunningMean(model, 0.9)
    for _ in range(100):                                            # long enough for the memory to reach its length
        model(torch.randn(8, 3))
        for weight in model.parameters():
            nn.init.normal_(weight)
        theirs.update_parameters(model), mean.update_parameters(model)
    ours = mean.state_dict()
    assert list(ours) == list(theirs.state_dict()), "a checkpoint of the other could not be continued"
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours[name], value, atol=1e-6), name


# Precision and device

@pytest.mark.parametrize("cuda, mps, best", [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"),
                                             (False, False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device() == torch.device(best)


def test_precision_and_device_sentences():
    with pytest.raises(InputError, match="precision is 'fp16': on cpu use bf16 or fp32"):
        choose_precision("fp16", CPU)
    assert choose_precision("fp32", CPU) == "fp32"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device is 'cuda': this machine has"):
            choose_device("cuda")


@pytest.mark.parametrize("bf16_seconds, expected", [(1.0, "fp32"), (0.5, "bf16"), (0.9, "fp32")])
def test_a_cpu_takes_bf16_only_where_it_is_clearly_faster(monkeypatch, bf16_seconds, expected):
    monkeypatch.setattr(train, "_bf16_pays", None)
    monkeypatch.setattr(train, "matmul_seconds", lambda dtype: bf16_seconds if dtype is torch.bfloat16 else 1.0)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize("has_bf16, expected", [(True, "bf16"), (False, "fp16")])
def test_a_gpu_that_only_emulates_bf16_takes_fp16(monkeypatch, has_bf16, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **k: asked.append(k) or has_bf16)
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert asked == [{"including_emulation": False}]


def test_bf16_trains(tmp_path, tiny):
    run = run_quietly(tiny.replace(precision="bf16"), tmp_path)
    assert run.provenance["precision"] == "bf16" and run.metrics[1]["val_loss"] < run.metrics[0]["val_loss"]


compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="no C++ compiler here")


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@compiler
@pytest.mark.parametrize("variant", VARIANTS.values())
def test_compiled_blocks_compute_the_same(variant):
    torch._dynamo.reset()                           # what other tests compiled is not taken again
    before = graphs()
    plain, compiled = (variant(8, 4, 1, 16, 2, 2, 16, 2, 2) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    train.use_compile(compiled, "on", CPU, 1, print)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, 1, 8, 8)
    a, b = (m(images, mask_ratio=0.5, generator=torch.Generator().manual_seed(0)).loss for m in (plain, compiled))
    assert torch.allclose(a, b, atol=1e-5) and graphs() > before


def test_every_block_is_compiled_the_decoder_s_too(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(train.shutil, "which", lambda name: "/usr/bin/c++")
    for model, parts in ((MaskedAutoencoder(8, 4, 1, 16, 2, 2, 16, 3, 2), lambda m: [m.blocks, m.decoder_blocks]),
                         (CrossDecoderMAE(8, 4, 1, 16, 2, 2, 16, 3, 2), lambda m: [m.blocks, *m.decoder_blocks]),
                         (ViTClassifier(8, 4, 1, 10, 16, 2, 2), lambda m: [m.blocks])):
        train.use_compile(model, "on", CPU, 1, print)
        assert compiled == parts(model)
        compiled.clear()


@pytest.mark.parametrize("device, steps, count", [("cuda", 5_000, 2), ("cuda", 4_999, 0), ("cpu", 10 ** 6, 0)])
def test_auto_compiles_long_runs_on_cuda_only(monkeypatch, device, steps, count):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(train, "has_triton", lambda: True)
    train.use_compile(MaskedAutoencoder(8, 4, 1, 16, 1, 2, 16, 1, 2), "auto", torch.device(device), steps, print)
    assert len(compiled) == count


@compiler
def test_evaluation_does_not_compile_again():
    torch._dynamo.reset()
    model, images, before = MaskedAutoencoder(8, 4, 1, 16, 1, 2, 16, 1, 2), torch.randn(3, 1, 8, 8), graphs()
    train.use_compile(model, "on", CPU, 1, print)
    with evaluating(model):
        model(images, 0.5)
    assert graphs() == before
    model(images, 0.5)
    assert graphs() == before + 2


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(train.platform.libc_ver()[0] != "glibc", reason="only this C library is told to keep memory")
@pytest.mark.skipif(HUGE.exists() and "[always]" in HUGE.read_text(), reason="this system clears pages of other sizes")
def test_memory_of_a_step_stays_for_the_next_one_and_is_handed_back_in_the_end():
    import resource

    def cleared():
        """Pages that the system had to clear for a block of 64 MiB."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(64 << 18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with train.kept_memory(CPU):
        inside, kept = min(cleared() for _ in range(4)), resident()
    assert kept - resident() > 60 << 20
    pages = (64 << 20) // resource.getpagesize()
    assert inside < pages / 100 and cleared() > pages / 2


def test_compile_without_a_compiler_says_why(monkeypatch):
    monkeypatch.setattr(train.shutil, "which", lambda name: None)
    said = []
    train.use_compile(nn.Linear(1, 1), "on", CPU, 1, said.append)
    assert said == ["torch.compile is off: it needs a C++ compiler and none was found."]


# Randomness

def test_epochs_and_seeds_have_streams_of_their_own():
    draws = {tuple(torch.rand(3, generator=epoch_generator(s, e, CPU)).tolist()) for s in range(3) for e in range(1, 4)}
    assert len(draws) == 9


def test_the_callers_random_state_is_left_alone(tmp_path, tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_quietly(tiny, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    with own_random_state(0, 1, CPU):
        torch.rand(1)
    assert torch.equal(before, torch.get_rng_state())


def test_two_runs_of_one_configuration_are_bit_equal(tmp_path, tiny):
    a, b = run_quietly(tiny, tmp_path / "a"), run_quietly(tiny, tmp_path / "b")
    assert torch.equal(weights_of(a), weights_of(b))
    assert not torch.equal(weights_of(a), weights_of(run_quietly(tiny.replace(seed=1), tmp_path / "a")))


def test_the_deterministic_mode_repeats_bit_for_bit(tmp_path, tiny, tiny_run, tiny_classify, monkeypatch):
    monkeypatch.setattr(train, "matmul_seconds", lambda dtype: 1 / 0)           # no clock decides the precision
    asked = []

    def watched(pred, target, mask):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return ((pred - target) ** 2)[mask].mean()
    config = tiny.replace(deterministic=True, precision="auto", augment="rand_augment", variant="cross_decoder", epochs=1)
    a, b = (run_quietly(config, tmp_path / name, loss_fn=watched) for name in "ab")
    assert torch.equal(weights_of(a), weights_of(b)) and all(asked) and a.provenance["precision"] == "fp32"
    assert a.metrics[0]["train_loss"] == b.metrics[0]["train_loss"] and not torch.are_deterministic_algorithms_enabled()
    later = tiny_classify(pretrained=tiny_run.path, deterministic=True, erase_prob=0.5, mix_prob=0.5, epochs=1)
    a, b = (classify(later, tmp_path / name, say=lambda text: None) for name in "ab")
    assert torch.equal(weights_of(a), weights_of(b)) and not torch.are_deterministic_algorithms_enabled()
    assert later.identity() == later.replace(deterministic=False).identity()    # another way to the same run


def test_looking_does_not_change_training(tmp_path, tiny):
    seldom = run_quietly(tiny.replace(epochs=3, snapshot_epochs=(3,)), tmp_path)
    often = run_quietly(tiny.replace(epochs=3, snapshot_epochs=(1, 2, 3)), tmp_path)
    assert seldom.path != often.path and torch.equal(weights_of(seldom), weights_of(often))
    assert [r["train_loss"] for r in seldom.metrics] == [r["train_loss"] for r in often.metrics]


def test_looking_less_often_changes_only_what_is_known(tmp_path, tiny):
    often = run_quietly(tiny.replace(epochs=5), tmp_path / "a")
    seldom = run_quietly(tiny.replace(epochs=5, eval_every=2), tmp_path / "b")
    assert torch.equal(weights_of(often), weights_of(seldom)) and often.name == seldom.name
    looked = [row["val_loss"] is not None for row in seldom.metrics]
    assert looked == [False, True, False, True, True]           # the last epoch always
    assert [row["train_loss"] for row in often.metrics] == [row["train_loss"] for row in seldom.metrics]
    assert seldom.results["psnr_db"] == often.results["psnr_db"]
    assert (seldom.path / "checkpoint" / "best.safetensors").exists()


def test_an_epoch_without_a_look_is_never_called_the_best(tmp_path):
    """It has weights of its own, and the losses known are of earlier ones."""
    run, best = SimpleNamespace(path=tmp_path), tmp_path / "checkpoint" / "best.safetensors"
    best.parent.mkdir()
    train.save_checkpoint(run, 2, [{"val_loss": 1.0}, {"val_loss": None}], "fp32", {}, nn.Linear(1, 1))
    assert not best.exists()
    train.save_checkpoint(run, 3, [{"val_loss": 1.0}, {"val_loss": None}, {"val_loss": 0.5}], "fp32", {}, nn.Linear(1, 1))
    assert best.exists()


def test_the_best_weights_are_there_before_the_checkpoint_says_so(tmp_path, monkeypatch):
    """What is stopped between the two is done again; the other way round, a better epoch's weights would be missing."""
    run = SimpleNamespace(path=tmp_path)
    (tmp_path / "checkpoint").mkdir()

    def stopping(*arguments):
        raise Stop
    monkeypatch.setattr(train, "write_weights", stopping)
    with pytest.raises(Stop):
        train.save_checkpoint(run, 1, [{"val_loss": 1.0}], "fp32", {}, nn.Linear(1, 1))
    assert not (tmp_path / "checkpoint" / "last.pt").exists()


def test_the_estimate_leaves_the_first_steps_out(monkeypatch):
    """They allocate memory, and with torch.compile they take most of a minute."""
    clock_hand, told = [0.0], []
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock_hand[0])
    progress = train.Progress(epochs=3, done=1, steps=100, say=told.append)
    for index in range(20):
        clock_hand[0] += 10 if index == 0 else 0.5
        progress.step(2, index)
    assert told[1:] == ["about 1:40 min for 2 epochs of 100 steps on this machine"]


def test_evaluating_restores_the_mode():
    model = nn.Dropout().train()
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training and torch.is_grad_enabled()


# Accumulation, resume, stopping

def test_accumulated_batches_equal_the_large_batch(tmp_path, tiny):
    large = run_quietly(tiny.replace(batch_size=256), tmp_path)
    small = run_quietly(tiny.replace(batch_size=64, accumulate=4), tmp_path)
    assert large.path != small.path
    assert torch.allclose(weights_of(large), weights_of(small), atol=2e-5)
    assert [r["train_loss"] for r in large.metrics] == pytest.approx([r["train_loss"] for r in small.metrics], abs=1e-5)


class Stop(Exception):
    pass


def stop_after(epoch, monkeypatch):
    """Let training break off right after an epoch's checkpoint was written."""
    original = train.save_checkpoint

    def saving(run, number, *rest):
        original(run, number, *rest)
        if number == epoch:
            raise Stop
    monkeypatch.setattr(train, "save_checkpoint", saving)
    return original


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, tiny, monkeypatch, optimizer):
    config, said = tiny.replace(epochs=4, optimizer=optimizer), []
    whole = run_quietly(config, tmp_path / "whole")
    original = stop_after(2, monkeypatch)
    with pytest.raises(Stop):
        run_quietly(config, tmp_path / "parts")
    monkeypatch.setattr(train, "save_checkpoint", original)
    part = next((tmp_path / "parts").iterdir())
    assert not Run(part).finished
    resumed = pretrain(config, root=tmp_path / "parts", say=said.append)
    assert resumed.path == part and "resuming after epoch 2 of 4" in said
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert [r["val_loss"] for r in whole.metrics] == [r["val_loss"] for r in resumed.metrics]


def test_a_resumed_classifier_equals_an_uninterrupted_one(tmp_path, tiny_run, tiny_classify, monkeypatch):
    """Its running mean, the random numbers of drop-path and what it said of the watched images go on, too."""
    config = tiny_classify("finetune", pretrained=tiny_run.path, epochs=4, drop_path=0.3)
    whole = classify(config, tmp_path / "whole", say=lambda text: None)
    original = stop_after(2, monkeypatch)
    with pytest.raises(Stop):
        classify(config, tmp_path / "parts", say=lambda text: None)
    monkeypatch.setattr(train, "save_checkpoint", original)
    resumed = classify(config, tmp_path / "parts", say=lambda text: None)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert resumed.results["watched"] == whole.results["watched"] and list(whole.results["watched"]) == ["1", "2", "4"]


def test_a_run_that_was_stopped_while_it_drew_has_all_its_pictures(tmp_path, tiny, monkeypatch):
    module = importlib.import_module("mae_helpers.pretrain")
    drawn = module.reconstruction_figure

    def stopping(*arguments):
        raise Stop
    monkeypatch.setattr(module, "reconstruction_figure", stopping)
    with pytest.raises(Stop):
        run_quietly(tiny, tmp_path)
    monkeypatch.setattr(module, "reconstruction_figure", drawn)
    run = run_quietly(tiny, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and [row["epoch"] for row in run.metrics] == [1, 2]
    names = [f"reconstruction_{epoch:04d}.png" for epoch in run.config.snapshots()]
    assert sorted(path.name for path in (run.path / "figures").iterdir()) == sorted(names) and names[0].endswith("0001.png")


def test_seconds_are_those_of_the_epochs_that_count(tmp_path, tiny, monkeypatch):
    """An epoch whose checkpoint was lost is done again, so what it took the first time does not count."""
    path = interrupted(tiny, tmp_path, monkeypatch)
    run = Run(path.parent.parent)
    assert train.seconds_before(run) == run.metrics[0]["train_seconds"] > 0
    run.write_metrics([{**run.metrics[0], "train_seconds": 1e6}])
    path.unlink()
    assert train.seconds_before(run) == 0 and run_quietly(tiny, tmp_path).results["seconds"] < 1e6


def interrupted(config, folder, monkeypatch):
    original = stop_after(1, monkeypatch)
    with pytest.raises(Stop):
        run_quietly(config, folder)
    monkeypatch.setattr(train, "save_checkpoint", original)
    return next(folder.iterdir()) / "checkpoint" / "last.pt"


@pytest.mark.parametrize("damage", [lambda raw: raw[:1000], lambda raw: b"hello", lambda raw: b""])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, tiny, monkeypatch, damage):
    path = interrupted(tiny, tmp_path, monkeypatch)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        run_quietly(tiny, tmp_path)


def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path, tiny, monkeypatch):
    path = interrupted(tiny, tmp_path / "a", monkeypatch)
    other = interrupted(tiny.replace(embed_dim=24), tmp_path / "b", monkeypatch)
    path.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="belongs to another configuration"):
        run_quietly(tiny, tmp_path / "a")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, tiny):
    calls = []

    def breaks_in_epoch_2(pred, target, mask):
        calls.append(1)
        loss = ((pred - target) ** 2)[mask].mean()
        return loss * (math.nan if len(calls) == 6 else 1.0)        # 4 steps an epoch: the second step of epoch 2
    with pytest.raises(TrainingStopped, match="nan at step 2 of 4 in epoch 2: the last good checkpoint is kept"):
        run_quietly(tiny, tmp_path, loss_fn=breaks_in_epoch_2)
    run = Run(next(tmp_path.iterdir()))
    assert not run.finished and len(run.metrics) == 1
    saved = torch.load(run.path / "checkpoint" / "last.pt", weights_only=True)
    assert saved["epoch"] == 1 and all(torch.isfinite(v).all() for v in saved["model"].values())


def test_weights_that_are_not_finite_are_never_the_last_good_checkpoint(tmp_path, tiny, monkeypatch):
    calls = []

    def ruin(model, *rest):                             # as a gradient that overflows where the loss does not
        calls.append(1)
        update(model, *rest)
        if len(calls) == 8:                             # the last step of epoch 2
            next(model.parameters()).data[0, 0] = math.inf
    monkeypatch.setattr(importlib.import_module("mae_helpers.train"), "update", ruin)
    with pytest.raises(TrainingStopped, match="after the last step of epoch 2: the last good checkpoint is kept"):
        run_quietly(tiny, tmp_path)
    saved = torch.load(next(tmp_path.glob("*/checkpoint/last.pt")), weights_only=True)
    assert saved["epoch"] == 1 and all(torch.isfinite(v).all() for v in saved["model"].values())


@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_overflow_in_fp16_stops_all_optimizers_for_a_step(tiny, clip_grad, bad):
    model = build(tiny, load_images("mnist", "val", 10))
    optimizers, scaler = make_optimizers(model, tiny.replace(optimizer="muon"), 256), torch.amp.GradScaler("cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.scale(torch.ones(()))                        # which makes the scale
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.blocks[0].mlp.fc1.weight.grad[0, 0] = bad     # Muon's; AdamW's own gradients are finite
    update(model, optimizers, scaler, clip_grad)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()) and scaler.get_scale() == 2 ** 15
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    update(model, optimizers, scaler, clip_grad)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_run_goes_on_in_another_precision_and_says_so(tmp_path, tiny, monkeypatch):
    interrupted(tiny, tmp_path, monkeypatch)
    said, module = [], importlib.import_module("mae_helpers.train")
    monkeypatch.setattr(module, "choose_precision", lambda *rest: "fp16")
    monkeypatch.setattr(module, "autocast", lambda *rest: torch.autocast("cpu", enabled=False))
    run = pretrain(tiny, root=tmp_path, say=said.append)
    assert "going on in fp16; the epochs before were trained in fp32" in said and len(run.metrics) == 2


def test_fewer_images_than_a_batch_still_train(tmp_path, tiny):
    assert len(run_quietly(tiny.replace(limit=50, batch_size=256), tmp_path).metrics) == 2


def test_progress_tells_one_line_an_epoch_and_nothing_else(tmp_path, tiny):
    said = []
    pretrain(tiny, root=tmp_path, say=said.append)
    lines = [line for line in said if line.startswith("epoch")]
    assert len(lines) == 2 and "val loss" in lines[0] and "PSNR" in lines[0] and "left" in lines[0]
    assert clock(59.6) == "1:00 min" and clock(12) == "12 s"
