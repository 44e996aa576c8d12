"""The one training loop, for pretraining and for classification.

All randomness of an epoch comes from the seed and the number of the epoch, so a resumed run goes on exactly as an
uninterrupted one, and looking at a model (evaluating, plotting, logging) never changes what it learns next.
"""
from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import os
import pickle
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .config import InputError, JobConfig
from .distributed import join
from .muon import Muon
from .packs import written
from .runs import Run, write_weights

# CUDA's matrix products read it once, when first used; `deterministic` needs it later.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# step(images uint8, labels, generator, progress) -> (loss, {name: scalar}): one forward pass of a batch, when a share
# `progress` of the training, 0 to 1, is done
Step = Callable[[torch.Tensor, torch.Tensor, torch.Generator, float], tuple[torch.Tensor, dict]]


class TrainingStopped(RuntimeError):
    """The loss or a weight is not a finite number any more. The last good checkpoint is on disk."""

    _render_traceback_ = InputError._render_traceback_


def tell(text: str) -> None:
    """Print at once: a log that is piped somewhere should not lag minutes behind."""
    print(text, flush=True)


def fit(model: nn.Module, step: Step, images: torch.Tensor, labels: torch.Tensor, config: JobConfig, run: Run,
        evaluate: Callable[[nn.Module, int], dict], after_epoch: Callable[[nn.Module, int], None] | None = None,
        say: Callable[[str], None] = tell, on_epoch: Callable[[list[dict]], None] | None = None) -> nn.Module:
    """Train `model` for `config.epochs` and return the model to evaluate (the running mean of the weights, if any).

    images uint8 [N, C, H, W] and labels [N] lie on the model's device. After each epoch `evaluate(model, epoch)`
    gives what goes into metrics.csv beside the training loss, a checkpoint is written, `after_epoch` may draw, and
    `on_epoch` gets the rows of metrics.csv so far. Continues from the run's checkpoint when there is one. Raises
    `TrainingStopped` at the first loss that is not finite, `InputError` for a checkpoint that cannot be used. Of several
    processes (distributed.py) each calls this with the same model, images and labels and computes its share of every
    batch; rank 0 evaluates and writes.
    """
    device, group = labels.device, join()
    batch, effective = batch_sizes(config, len(images))
    steps = len(images) // effective                    # the rest of an epoch's random order is left out
    precision = choose_precision(config.precision, device, config.deterministic)
    optimizers = make_optimizers(model, config, effective, precision)
    peaks = [each["lr"] for each in groups_of(optimizers)]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    group.start_alike(model)
    decay = getattr(config, "ema_decay", 0)
    mean_model = RunningMean(model, decay) if decay else None
    use_compile(model, config.compile, device, config.epochs * steps, say)
    state = dict(model=model, scaler=scaler, **{type(each).__name__: each for each in optimizers},
                 **({"mean_model": mean_model} if mean_model else {}))
    first, rows = load_checkpoint(run, state, precision, say)
    shown = mean_model.module if mean_model else model
    progress = Progress(config.epochs, first, steps, say, group.first)
    board = tensorboard(run, first) if group.first else None

    for epoch in range(first + 1, config.epochs + 1):
        model.train()
        generator, started = epoch_generator(config.seed, epoch, device), time.perf_counter()
        order = torch.randperm(len(images), generator=generator, device=device)
        order = order.to(getattr(images, "stored_on", device))      # of mapped images a GPU gets batches only
        losses, sums = torch.zeros(steps, device=device), {}
        with own_random_state(config.seed, epoch, device), kept_memory(device):
            for i in range(steps):
                done, total = (epoch - 1) * steps + i, config.epochs * steps
                factor = schedule(done, total, config.warmup_epochs * steps)
                for each, peak in zip(groups_of(optimizers), peaks):
                    each["lr"] = peak * factor
                parts = order[i * effective:(i + 1) * effective].split(batch)
                for part in parts:
                    share = len(part) / effective       # the mean over all parts is the loss of the large batch
                    part = group.share(part)            # and over the processes, each with its share of a part
                    with autocast(precision, device), group.draws(len(part)):
                        loss, counts = step(images[part], labels[part], generator, done / total)
                    scaler.scale(loss * share).backward()
                    losses[i] += loss.detach() * share
                    for name, value in counts.items():
                        sums[name] = sums.get(name, 0) + value.detach() * share / steps
                group.average([losses[i:i + 1], *(p.grad for p in model.parameters() if p.grad is not None)])
                if device.type == "cpu":                # elsewhere looking would wait for the device at every step
                    stop_unless_finite(losses[i:i + 1], epoch, i + 1, steps, run)
                update(model, optimizers, scaler, config.clip_grad)
                if mean_model:
                    mean_model.update_parameters(model)
                progress.step(epoch, i)
        stop_unless_finite(losses, epoch, 1, steps, run)
        stop_unless_weights_finite(model, epoch, run)       # the last step may have ruined them without a loss to show it
        group.average(sums.values())
        if not group.first:
            continue                                    # what follows is computed, written and told once
        row = {"epoch": epoch, "lr": max(g["lr"] for g in groups_of(optimizers)), "train_loss": float(losses.mean()),
               **{k: float(v) for k, v in sums.items()}, "train_seconds": time.perf_counter() - started}
        if epoch % config.eval_every == 0 or epoch == config.epochs:
            with evaluating(shown), kept_memory(device):        # in fp32, however it was trained
                row.update(evaluate(shown, epoch))
        rows.append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()})
        run.write_metrics(rows)
        if after_epoch:                                 # before the checkpoint: what is stopped here is done again
            with evaluating(shown):
                after_epoch(shown, epoch)
        save_checkpoint(run, epoch, rows, precision, state, shown)
        for name, value in rows[-1].items():
            if board and name != "epoch" and value is not None:
                board.add_scalar(name, value, epoch)
        progress.epoch(rows[-1])
        if on_epoch:
            on_epoch(rows)
    if board:
        board.close()
    if group.first:
        write_weights(run.path / "model.safetensors", shown.state_dict())
    return shown


def batch_sizes(config: JobConfig, images: int) -> tuple[int, int]:
    """Images of one forward pass and of one step, over all processes; no more than there are."""
    batch = min(config.batch_size, images)
    return batch, min(batch * config.accumulate, images)


def smallest_pass(config: JobConfig, images: int) -> int:
    """Images of the smallest forward pass, over all processes: the last one of a step may have fewer."""
    batch, effective = batch_sizes(config, images)
    return effective % batch or batch


# Optimizer and schedule

def make_optimizers(model: nn.Module, config: JobConfig, effective_batch: int,
                    precision: str = "fp32") -> list[torch.optim.Optimizer]:
    """AdamW with the learning rate base_lr × effective batch / 256, and no weight decay for biases, norms and tokens.

    With `layer_decay` < 1 every block learns slower than the one after it, the patch embedding slowest (MAE appendix
    A.1, after BEiT). Only parameters that require a gradient take part. With `optimizer` "muon" the matrices of the
    blocks get a second optimizer, which makes all directions of an update equally long (Jordan et al. 2024), with
    updates as large as AdamW's, so that a learning rate means the same (muon.py); in bf16 where that is the `precision`.
    """
    depth = len(getattr(model, "blocks", []))
    decay = getattr(config, "layer_decay", None) or 1.0
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = depth_of(name, depth) if decay < 1 else depth + 1
            weight_decay = config.weight_decay if parameter.ndim >= 2 and "token" not in name else 0.0
            muon = config.optimizer == "muon" and parameter.ndim == 2 and "blocks." in name
            group = groups.setdefault((muon, layer, weight_decay), {
                "params": [], "weight_decay": weight_decay,
                "lr": config.base_lr * effective_batch / 256 * decay ** (depth + 1 - layer)})
            group["params"].append(parameter)
    device = next(model.parameters()).device.type
    rest, matrices = ([group for key, group in groups.items() if key[0] == muon] for muon in (False, True))
    adamw = torch.optim.AdamW(rest, betas=(0.9, config.beta2), fused=device in ("cpu", "cuda"))
    return [adamw, Muon(matrices, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)] if matrices else [adamw]


def groups_of(optimizers: list[torch.optim.Optimizer]) -> list[dict]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def depth_of(name: str, depth: int) -> int:
    """How deep a weight lies: 0 for the embedding and class token, 1 … depth for the blocks, depth + 1 after them."""
    if name.startswith(("patch_embed", "cls_token", "pos_embed")):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1


def schedule(step: int, total: int, warmup: float) -> float:
    """The factor of the learning rate at a step: a straight rise over `warmup` steps, at most half of the run, then
    half a cosine down to zero at the end (MAE appendix A)."""
    warmup = min(warmup, total / 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def update(model: nn.Module, optimizers: list[torch.optim.Optimizer], scaler: torch.amp.GradScaler,
           clip_grad: float) -> None:
    """One optimizer step with the gradient shortened to `clip_grad` (0: left as it is).

    In fp16 the gradient was scaled, and is unscaled before its length means anything. Where it overflowed no optimizer
    moves, not even one whose own share of it is finite: clipping has spread the overflow to all.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    length = torch.zeros(())
    if clip_grad or scaler.is_enabled():
        length = nn.utils.clip_grad_norm_(model.parameters(), clip_grad or math.inf)
    if not scaler.is_enabled() or length.isfinite():
        for optimizer in optimizers:
            scaler.step(optimizer)
    scaler.update()
    model.zero_grad(set_to_none=True)


class RunningMean(nn.Module):
    """A running mean of the weights of a model, `module`; its memory starts short, so early weights are soon forgotten.

    The count stays on the CPU. PyTorch's AveragedModel computes the same but sends its count to a GPU with every step,
    and waits for that.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Mix in the weights of now; what else the model keeps, such as a BatchNorm's statistics, is taken as it is."""
        count = int(self.n_averaged)
        new = 1 - min(self.decay, (1 + count) / (10 + count)) if count else 1
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), new)
        for mine, theirs in zip(self.module.buffers(), model.buffers()):
            mine.copy_(theirs)
        self.n_averaged += 1


# Where and how to compute

def choose_device(wanted: str = "auto") -> torch.device:
    """The named device, or the best there is. Raises `InputError` for one that this machine does not have."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name in there if there[name])
    if not there[wanted]:
        raise InputError(f"device is {wanted!r}: this machine has {', '.join(n for n in there if there[n])}.")
    return torch.device(wanted)


_bf16_pays: bool | None = None


def choose_precision(wanted: str, device: torch.device, deterministic: bool = False) -> str:
    """fp32, bf16 or fp16. "auto": on CUDA bf16 where the hardware has it and fp16 where it only emulates it, on a CPU
    bf16 where a matrix product shows that it is faster, else fp32; the clock decides nothing when all is to be
    `deterministic`. Raises `InputError` for fp16 off CUDA."""
    if wanted == "fp16" and device.type != "cuda":
        raise InputError(f"precision is 'fp16': on {device.type} use bf16 or fp32 (fp16 needs a CUDA GPU).")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if deterministic or device.type != "cpu":
        return "fp32"
    return "bf16" if join().from_first(bf16_pays) else "fp32"       # clocks may disagree, the processes may not


def bf16_pays() -> bool:
    """Whether this processor multiplies matrices faster in bf16; measured once."""
    global _bf16_pays
    if _bf16_pays is None:
        # in turns, and the best of each: a moment in which another job has the processor must not decide
        turns = [(matmul_seconds(torch.bfloat16), matmul_seconds(torch.float32)) for _ in range(8)]
        bf16, fp32 = map(min, zip(*turns))
        _bf16_pays = bf16 * 1.3 < fp32
    return _bf16_pays


def matmul_seconds(dtype: torch.dtype) -> float:
    """One product of the size a small transformer needs. Without bf16 instructions it takes several times as long in bf16
    as in fp32, with them half as long or less."""
    a, b = torch.ones(4096, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
    started = time.perf_counter()
    a @ b
    return time.perf_counter() - started


def autocast(precision: str, device: torch.device):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def use_compile(model: nn.Module, wanted: str, device: torch.device, steps: int, say: Callable[[str], None]) -> None:
    """Compile the stacks of transformer blocks in place, encoder and decoder each as a whole. "auto" does so only for long
    runs on CUDA. Two CPU cores made bf16 steps of ViT-Tiny/4 1.08 times as fast by it after 40 s of compiling (Zen 5,
    2026-11-30), so an "on" pays for runs of a quarter of an hour and more. In fp32 on such a processor it does not pay: what
    it makes of `model.linear` is slower than the plain one."""
    if wanted == "off" or (wanted == "auto" and (device.type != "cuda" or steps < 5_000)):
        return
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        say("torch.compile is off: it needs a C++ compiler and none was found.")
        return
    if device.type == "cuda" and not has_triton():
        say("torch.compile is off: it needs Triton, which is not installed.")
        return
    for name, stack in model.named_modules():
        if name.endswith("blocks"):
            # one by one where the stack is not called itself, because a block takes more than the one before it gives
            for part in [stack] if isinstance(stack, nn.Sequential) else stack:
                part.compile()


def has_triton() -> bool:
    from torch.utils._triton import has_triton as found
    return found()


# What Linux's C library may be told about memory, with its own names and numbers (man 3 mallopt)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


@contextlib.contextmanager
def kept_memory(device: torch.device):
    """Inside, a process keeps the memory that a training step or a batch frees, because the next one needs as much.

    Linux's C library (glibc) would hand it back, and the system clears every page of it again: a tenth of an eager step
    of ViT-Tiny/4 on two CPU cores, a fifth of the time for features in batches of 500. Afterwards what is free is handed
    back. Elsewhere nothing happens; a GPU's memory is kept by PyTorch.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)                         # nothing from maps of its own, which are always handed back
    libc.mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)         # and nothing back from the heap
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65_536)                # glibc's own, and the two sizes it ends at by itself after
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)        # large blocks were freed
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


# Randomness

@contextlib.contextmanager
def deterministic(wanted: bool):
    """Inside, PyTorch takes algorithms that give the same bits every time, and refuses what has none. That is already so on
    a CPU, with the same number of threads; a GPU adds in an order that varies where this is not asked for."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def epoch_generator(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """The stream from which an epoch takes the order of the images, the augmentation and the masks."""
    return torch.Generator(device).manual_seed(seed * 100_003 + epoch)


@contextlib.contextmanager
def own_random_state(seed: int, epoch: int, device: torch.device):
    """Layers that draw from PyTorch's global stream (drop-path) draw from one of this epoch's own; the caller's global
    stream is put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 100_003 + epoch)
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode without gradients, and back to what it was. What is compiled is computed the plain way here: other
    batches and another precision would be compiled anew."""
    was_training = model.training
    compiling = "torch._dynamo" in sys.modules          # importing it takes a second, and before that nothing is compiled
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext():
            yield
    finally:
        model.train(was_training)


# Checkpoints

def save_checkpoint(run: Run, epoch: int, rows: list[dict], precision: str, state: dict, shown: nn.Module) -> None:
    """All that resuming needs, replaced in one move; and the weights with the lowest validation loss so far."""
    latest = rows[-1].get("val_loss")
    if latest is not None and latest == min(row["val_loss"] for row in rows if row.get("val_loss") is not None):
        write_weights(run.path / "checkpoint" / "best.safetensors", shown.state_dict())
    with written(run.path / "checkpoint" / "last.pt") as file:      # last: what is stopped before it is done again
        torch.save({"epoch": epoch, "rows": rows, "precision": precision,
                    **{k: v.state_dict() for k, v in state.items()}}, file)


def seconds_before(run: Run) -> float:
    """Seconds that the epochs of the run's checkpoint took, without their evaluations; 0 without one."""
    saved = read_checkpoint(run.path / "checkpoint" / "last.pt")
    return sum(row["train_seconds"] for row in saved["rows"]) if saved else 0.0


def load_checkpoint(run: Run, state: dict, precision: str, say: Callable[[str], None]) -> tuple[int, list[dict]]:
    """Put the run's last checkpoint into `state`; the epochs done and their metrics, (0, []) without one. It knows nothing
    of processes: rank 0 reads it for all, however many they are now. Another precision than before is told."""
    path = run.path / "checkpoint" / "last.pt"
    saved = join().from_first(lambda: read_checkpoint(path))
    if saved is None:
        return 0, []
    try:
        for name, part in state.items():
            if name != "scaler" or saved[name]:             # that of a run that was not in fp16 is empty
                part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError):
        raise InputError(f"{path} belongs to another configuration: its weights have other names or shapes.") from None
    if saved.get("precision", precision) != precision:
        say(f"going on in {precision}; the epochs before were trained in {saved['precision']}")
    return saved["epoch"], saved["rows"]


def read_checkpoint(path: Path) -> dict | None:
    """What `save_checkpoint` wrote; None where there is nothing. `InputError` for a damaged file."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        return {**saved, "epoch": saved["epoch"], "rows": saved["rows"]}
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, OSError):
        raise InputError(f"{path} cannot be read: it is truncated or not a checkpoint. Delete it to train this run "
                         "from the start.") from None


def stop_unless_finite(losses: torch.Tensor, epoch: int, step: int, steps: int, run: Run) -> None:
    """`step` is the number within the epoch of the first of `losses`."""
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        raise _stopped(f"the loss is {float(losses[bad[0]])} at step {step + bad[0]} of {steps} in epoch {epoch}", run)


def stop_unless_weights_finite(model: nn.Module, epoch: int, run: Run) -> None:
    if not torch.stack([p.detach().abs().max() for p in model.parameters()]).isfinite().all():
        raise _stopped(f"weights are not finite numbers after the last step of epoch {epoch}", run)


def _stopped(what: str, run: Run) -> TrainingStopped:
    kept = "the last good checkpoint is kept" if (run.path / "checkpoint" / "last.pt").exists() else \
        "there is no checkpoint yet"
    return TrainingStopped(f"{what}: {kept}. Try a smaller base_lr, a longer warm-up, clip_grad or precision='fp32'.")


# Telling

class Progress:
    """One line per epoch everywhere; in a terminal also a bar within the epoch, which would clutter a log file."""

    SLOW = 5            # steps that do not count in the estimate: the first ones allocate memory, and may compile

    def __init__(self, epochs: int, done: int, steps: int, say: Callable[[str], None], shown: bool = True):
        self.epochs, self.done, self.steps, self.say = epochs, done, steps, say
        self.started, self.estimated = time.perf_counter(), False
        self.bar = tqdm(total=steps, leave=False, unit="step", disable=not (shown and sys.stderr.isatty()))
        if done:
            say(f"resuming after epoch {done} of {epochs}")

    def step(self, epoch: int, index: int) -> None:
        self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
        self.bar.update()
        if index < self.SLOW:
            self.warm = time.perf_counter()
        elif not self.estimated and time.perf_counter() - self.warm > 2:
            self.estimated = True
            left = (time.perf_counter() - self.warm) / (index + 1 - self.SLOW) * self.steps * (self.epochs - self.done)
            self.say(f"about {clock(left)} for {self.epochs - self.done} epochs of {self.steps} steps on this machine")

    def epoch(self, row: dict) -> None:
        self.bar.reset()
        done = row["epoch"] - self.done
        left = (time.perf_counter() - self.started) / done * (self.epochs - row["epoch"])
        words = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy")
                 if row.get(name) is not None]
        words += [f"PSNR {row['psnr_db']:.2f} dB"] if row.get("psnr_db") is not None else []
        self.say(f"epoch {row['epoch']:>3}/{self.epochs}  {'  '.join(words)}  {row['train_seconds']:.1f} s  "
                 f"{clock(left)} left")
        if row["epoch"] == self.epochs:
            self.bar.close()


def clock(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds // 60}:{seconds % 60:02d} min" if seconds >= 60 else f"{seconds} s"


def tensorboard(run: Run, epochs_done: int):
    """A writer for the run's tensorboard/ folder, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run.path / "tensorboard"), purge_step=epochs_done + 1)
