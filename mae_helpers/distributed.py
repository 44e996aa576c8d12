"""Several processes that train one model together (data parallelism), on one machine or on many.

A launcher starts the processes and tells each in its environment who it is: torchrun, srun, `accelerate launch`, or inside
a notebook `accelerate.notebook_launcher`. Every process holds the whole model and takes its share of every batch; the
gradients are averaged over the processes, so that all take the same step, the one that a single process would take.
(Where images are padded, hidden patches differ in how many pixels count, and a mean of the processes' means is that of the
whole batch only nearly: by 0.006 % for two processes, images of 28 pixels and patches of 5.)
The process of rank 0 alone evaluates, prints and writes.
"""
from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.overrides import TorchFunctionMode

from .config import InputError

TIMEOUT = 1800          # seconds that a process waits for the others, unless MAE_TIMEOUT says how many
ALONE = {"RANK": "0", "WORLD_SIZE": "1"}        # the environment of a process that trains alone, whatever started it


class ProcessLost(RuntimeError):
    """Another process of this training has ended, or does not answer. What was saved is as it was. `told`: another process
    that has noticed it prints it."""

    told = False
    _render_traceback_ = InputError._render_traceback_


# Who takes part

class Place(NamedTuple):
    """What a launcher tells a process: its number among all and among those on its machine, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = ""
    port: int = 0


def find_place(environment: dict[str, str]) -> Place:
    """The place of this process, from the variables of torchrun (RANK, WORLD_SIZE, …) or, without them, of srun.

    Without either, and with one process, nobody has to be met. Raises `InputError` for variables that are missing or
    cannot be.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
            if name not in environment:
                raise InputError(f"{other} is set and {name} is not: a launcher such as torchrun sets both.")
        size = _number(environment, "WORLD_SIZE", 1)
        rank = _number(environment, "RANK", 0, size - 1)
        if size == 1:
            return Place()
        local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, size, default=size)
        local_rank = _number(environment, "LOCAL_RANK", 0, local_size - 1, default=rank % local_size)
        address = environment.get("MASTER_ADDR")
        if not address:
            raise InputError("MASTER_ADDR is not set: it must name the machine of the process with RANK 0.")
        return Place(rank, size, local_rank, local_size, address, _number(environment, "MASTER_PORT", 1, 65_535))
    # srun sets these for what it starts. A batch script has SLURM_NTASKS, too, but is alone.
    size = _number(environment, "SLURM_STEP_NUM_TASKS", 1, default=1)
    if size == 1:
        return Place()
    rank = _number(environment, "SLURM_PROCID", 0, size - 1)
    here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))       # "4(x2)": 4 on each of two machines
    local_size = int(here[0]) if here else size
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    if not address:
        raise InputError("SLURM_STEP_NODELIST is not set: srun sets it; else MASTER_ADDR must name the first machine.")
    # All tasks of a step have to guess the same port, and other steps on the machine another one.
    step = _number(environment, "SLURM_JOB_ID", 0, default=0) * 7 + _number(environment, "SLURM_STEP_ID", 0, default=0)
    port = _number(environment, "MASTER_PORT", 1, 65_535, default=20_000 + step % 20_000)
    return Place(rank, size, _number(environment, "SLURM_LOCALID", 0), local_size, address, port)


def first_host(nodes: str) -> str:
    """The first machine of SLURM's list: "gpu[07-09,12],login" → "gpu07"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]         # up to the first comma outside brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _number(environment: dict[str, str], name: str, low: int, high: int | None = None, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise InputError(f"{name} is not set: a launcher such as torchrun or srun sets it.")
    if not re.fullmatch(r"\d+", text) or int(text) < low or (high is not None and int(text) > high):
        limit = f" from {low} to {high}" if high is not None else f" at least {low}"
        raise InputError(f"{name} is {text!r}: it must be a whole number{limit}.")
    return int(text)


_group: Group | None = None


def join() -> Group:
    """The group of processes that this one belongs to; a group of one where no launcher says otherwise.

    Waits until all are there. Called again it gives the same group. Raises `InputError` for an environment that cannot
    be, and when the processes do not find each other.
    """
    global _group
    if _group is not None:
        return _group
    place, wait = find_place(os.environ), _number(os.environ, "MAE_TIMEOUT", 1, default=TIMEOUT)
    if place.size == 1:
        return Group()
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.size), MASTER_ADDR=place.address,
                      MASTER_PORT=str(place.port))          # what srun's own variables do not tell PyTorch
    if "OMP_NUM_THREADS" not in os.environ:                 # or each process would start a thread on every core
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // place.local_size))
    if not dist.is_initialized():
        try:        # gloo carries what the processes tell each other even where NCCL carries the gradients
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                    timeout=timedelta(seconds=wait))
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"process {place.rank} of {place.size} did not find the others at {place.address}:{place.port} "
                             f"({type(error).__name__}): are all {place.size} running, and is the port free?") from None
        atexit.register(_leave)
    _group = Group(place)
    return _group


def _leave() -> None:
    with contextlib.suppress(Exception):        # the others may be gone
        dist.destroy_process_group()


# What they do together

class Group:
    """The processes that train together, or a single one, for which every method does next to nothing."""

    def __init__(self, place: Place = Place()):     # noqa: B008 - a tuple, which nobody can change
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.gpu: str | None = None             # of the machine's GPUs the one that this process computes on

    @property
    def first(self) -> bool:
        """Whether this is the process that evaluates, prints and writes."""
        return self.rank == 0

    @property
    def words(self) -> str:
        return f", {self.size} processes" if self.size > 1 else ""

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: each on a machine has a GPU of its own. `InputError` where there are too few."""
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise InputError(f"device is {device.type!r}: several processes compute on CUDA GPUs or with device 'cpu'.")
        there, index = torch.cuda.device_count(), self.local_rank
        if there == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):       # a launcher that shows each process its own GPU only
            index = 0
        if index >= there:
            raise InputError(f"LOCAL_RANK is {index}: this machine has {there} GPUs, one for each process.")
        torch.cuda.set_device(index)
        self.gpu = f"{socket.gethostname()} {torch.cuda.get_device_properties(index).uuid}"
        return torch.device("cuda", index)

    def says(self, say: Callable[[str], None]) -> Callable[[str], None]:
        return say if self.first else lambda text: None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong in one process goes wrong in all: the first `InputError` of any of them is raised in each, and one
        where two have the same GPU. They wait for each other at the end, and only rank 0 prints."""
        problem = None
        with contextlib.ExitStack() as stack:
            if not self.first:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            try:
                yield
            except InputError as error:
                if self.size == 1:
                    raise
                problem = str(error)
        if self.size > 1:
            found = [(None, None)] * self.size
            with self._listening():
                dist.all_gather_object(found, (problem, self.gpu))
            for problem, _ in found:
                if problem:
                    raise InputError(problem)
            gpus = [gpu for _, gpu in found if gpu]
            if len(set(gpus)) < len(gpus):
                raise InputError("two processes compute on the same GPU: start one for each GPU (--nproc_per_node), or let "
                                 "CUDA_VISIBLE_DEVICES show more of them.")

    def from_first(self, function: Callable):
        """What `function` gives in rank 0, for all; the others do not call it. An `InputError` is raised in each."""
        if self.size == 1:
            return function()
        found = [None, None]
        if self.first:
            try:
                found[0] = function()
            except InputError as error:
                found[1] = str(error)
        with self._listening():
            dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise InputError(found[1])
        return found[0]

    def start_alike(self, model: nn.Module) -> None:
        """Give all processes the weights of rank 0: a learner's own model may have been made without a seed."""
        if self.size > 1:
            with self._listening():
                for value in model.state_dict().values():
                    dist.broadcast(value, src=0)

    def check_batches(self, *sizes: int) -> None:
        """Raises `InputError` unless batches of these sizes can be shared out evenly."""
        for count in sizes:
            if count % self.size:
                raise InputError(f"a batch has {count} images and there are {self.size} processes: batch_size, which counts "
                                 f"the images of all processes, must be a multiple of {self.size}, and so must a last batch "
                                 "that is smaller.")

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of what all know: rows [B, …] → [B / size, …]."""
        count = len(batch) // self.size
        return batch[self.rank * count:(self.rank + 1) * count]

    def draws(self, count: int) -> contextlib.AbstractContextManager:
        """Inside, random numbers for a share of `count` images are those that the whole batch would get in one process."""
        return contextlib.nullcontext() if self.size == 1 else WholeBatchDraws(count, self)

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their mean over the processes.

        PyTorch's DistributedDataParallel averages gradients while the backward pass still runs, which hides the time that
        it takes. One reduction after it is enough for models of this size, needs no rule for accumulated batches or for
        weights without a gradient, lets a step call any part of the model, and carries the loss along, so that all
        processes see the same one. Every process gets the same bits: an overflow in one is an overflow in all.
        """
        if self.size == 1:
            return
        tensors = list(tensors)
        if not tensors:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with self._listening():
            dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.detach().copy_(mean.view_as(tensor))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The shares [B / size, D] of all processes as the whole batch [B, D].

        For a loss of the whole batch: the gradient reaches the own rows, and `size` times as long, because `average`
        divides the sum over the processes by their number.
        """
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with self._listening():
            dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows + (self.size - 1) * (rows - rows.detach())      # its value is `rows`
        return torch.cat(parts)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Around nothing but what is exchanged, so that an error there means that somebody does not answer. (On a GPU it may
        also come from what was computed before, so its words are told, too.)"""
        try:
            yield
        except RuntimeError as error:
            raise _lost(str(error).strip().partition("\n")[0]) from None


def heed_the_launcher(group: Group) -> None:
    """torchrun ends all processes with SIGTERM when it sees that one has ended. Let them say what that means, and not just
    die. For programs only: a notebook's kernel has its own way with signals."""
    if group.size > 1:
        signal.signal(signal.SIGTERM, _end)


def _end(*arguments) -> None:
    raise _lost()


def _lost(words: str = "") -> ProcessLost:
    if signal.getsignal(signal.SIGTERM) is _end:    # noticed already: the launcher need not say it, too
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lost = ProcessLost("a process of this training has ended or does not answer, so all stop; what was saved is intact, and "
                       f"the same command, with any number of processes, goes on from there.{words and f' ({words})'}")
    lost.told = not _first_to_tell()
    return lost


def _first_to_tell() -> bool:
    """Whether no other process has told yet what all notice at about the same time. Where that cannot be found out,
    because the process that counted is the one that is gone, better twice than never."""
    try:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(where, timeout=1).close()      # asking a store that is gone would print its C++ stack
        return dist.distributed_c10d._get_default_store().add("mae_helpers/told", 1) == 1
    except Exception:
        return True


class WholeBatchDraws(TorchFunctionMode):
    """Where a process draws random numbers for each image of its share, draw them for the whole batch and take its own.

    All processes draw from equal streams, so masks, augmentation and drop-path are those of a single process, whatever
    the number of processes, and the code that draws knows nothing of them. (Not where images are drawn together: which
    changes `rand_augment` takes and whom `mix` pairs depends on the share.) The price are numbers that are thrown away:
    for masks 4 bytes a patch and image of the whole batch, for `erase_prob` as much as the batch itself as floats.
    """

    def __init__(self, count: int, group: Group):
        super().__init__()
        self.count, self.group = count, group

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in (torch.rand, torch.randn) and arguments:
            shape = arguments[0] if len(arguments) == 1 and not isinstance(arguments[0], int) else arguments
            if len(shape) and shape[0] == self.count:
                return self.group.share(function(self.count * self.group.size, *shape[1:], **options))
        return function(*arguments, **options)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of features [B, D] by the statistics of the whole batch, not of one process's share.

    For features that need no gradient, as those of a frozen encoder. (PyTorch's SyncBatchNorm works on GPUs only.)
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        return join().share(super().forward(join().gather(features)))
