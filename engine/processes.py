"""The processes of one job, as torchrun starts them: who has which share, and how they agree.

One process alone is a job of one: everything here works there too and costs nothing. Only torchrun's variables (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) decide. Values travel over gloo, gradients over NCCL where there are GPUs.

Letters: R processes, numbered by their rank 0..R-1.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils import UserError

Item = TypeVar("Item")


class Closable(Protocol):
    def close(self, *, keep: bool) -> None: ...


Store = TypeVar("Store", bound=Closable)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive tasks of one optimiser step, and the calls of the network that this process makes for its share of them."""

    tasks: range
    own_calls: list[range]


class Processes:
    """This process among the others of its job.

    timeout: seconds that a process waits for the others before it ends the run with a sentence that names them.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.timeout = datetime.timedelta(seconds=timeout)
        self.values: Any = None  # the group that values travel in
        if self.size > 1:
            self._connect()

    def _connect(self) -> None:
        if self.device.type == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"process {self.local_rank} of this machine wants a GPU of its own, the machine has "
                    f"{torch.cuda.device_count()}: lower torchrun's --nproc_per_node"
                )
            torch.cuda.set_device(self.device)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        try:
            store, _, _ = next(iter(dist.rendezvous("env://", timeout=self.timeout)))
            # After a restart torchrun may hand out the same store, with addresses of the processes that are gone.
            start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"start {start}", store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=self.timeout)
            self.values = dist.new_group(backend="gloo", timeout=self.timeout)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rank {self.rank} could not join the {self.size} processes of the job ({_first_line(error)}): see that "
                "every machine starts its part, and reaches torchrun's --rdzv-endpoint or --master_addr"
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this process writes the logs, checkpoints and results."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share: items rank, rank + R, rank + 2 R, ..."""
        return items[self.rank :: self.size]

    def shard(self, tasks: range, batch: int, call: int) -> Iterator[Batch]:
        """Batches of `batch` tasks, the last with what is left, and the calls of `call` tasks that this process makes."""
        for start in range(tasks.start, tasks.stop, batch):
            whole = range(start, min(start + batch, tasks.stop))
            calls = [whole[first : first + call] for first in range(0, len(whole), call)]
            yield Batch(whole, list(self.share(calls)))

    def in_order(self, shares: Sequence[Sequence[Item]]) -> list[Item]:
        """The items that `share` has given out, from the shares of all processes."""
        items = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            items[rank :: len(shares)] = share  # type: ignore[assignment]
        return items  # type: ignore[return-value]

    def barrier(self) -> None:
        """Waits until every process is here. Raises UserError that names those which are not."""
        if self.size == 1:
            return
        try:
            dist.monitored_barrier(self.values, timeout=self.timeout, wait_all_ranks=True)
        except RuntimeError as error:
            raise self._lost(error) from error

    @contextmanager
    def shared_store(self, open_store: Callable[[], Store], *, keep: bool = False) -> Iterator[Store]:
        """A store of rows that all processes read and write; the first makes its files and, unless `keep`, removes them.

        What ends it before its time - an error, a signal - leaves what was stored, for a later start to continue with.
        """
        if not self.is_first:
            self.barrier()  # the first makes its files
        store = open_store()
        if self.is_first:
            self.barrier()
        self.barrier()  # none writes before all have seen the same rows
        try:
            yield store
        except GeneratorExit:
            pass  # training ended before its tasks did
        except BaseException:
            store.close(keep=True)
            raise
        if not self.is_first:
            store.close(keep=True)
        self.barrier()  # nobody reads any more
        if self.is_first:
            store.close(keep=keep)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in the order of ranks, in every process. Raises UserError as `barrier` does."""
        if self.size == 1:
            return [value]
        self.barrier()
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.values)
        except RuntimeError as error:
            raise self._lost(error) from error
        return values

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces every gradient by its sum over the processes. One that no process has stays None.

        All of them travel in one piece, once per optimiser step, whatever number of tasks they were collected over. So
        a method's own `forward` may be anything, and names of weights stay as they are, which
        DistributedDataParallel would not allow.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self.device)
        self._add(present)
        wanted = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._add(flat)
        sums = flat.split([gradient.numel() for gradient in gradients])
        for parameter, gradient, total in zip(wanted, gradients, sums, strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient))

    def _add(self, tensor: Tensor) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise self._lost(error) from error

    def broadcast(self, module: nn.Module) -> None:
        """Gives every process the weights and buffers of the first."""
        if self.size > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def _lost(self, error: RuntimeError) -> UserError:
        named = re.search(r"[Rr]anks? ([\d, ]+) failed to pass", str(error))
        who = f"rank {named[1].strip(' ,')}" if named else "another rank"
        return UserError(
            f"{who} of {self.size} did not answer rank {self.rank} within {self.timeout.total_seconds():.0f} s or has "
            f"died ({_first_line(error)}): look at its own last lines; resume from the last checkpoint with -r"
        )

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


# ---------------------------------------------------------------------------------------------------------------------
# Batch norm


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes at once, on any device (torch's own SyncBatchNorm wants GPUs).

    Ioffe & Szegedy, ICML 2015, with mean and variance over the N * h * w values of a channel over all processes.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input if input.dtype == torch.float64 else input.float()
        count = _Sum.apply(values.new_tensor(values[:, 0].numel()))
        mean = _Sum.apply(values.sum(axes, keepdim=True)) / count
        centred = values - mean
        variance = _Sum.apply(centred.square().sum(axes, keepdim=True)) / count
        if self.track_running_stats:
            self._remember(mean.detach().flatten(), (variance * count / (count - 1)).detach().flatten())
        shape = [-1] + [1] * (input.ndim - 2)
        normalised = centred * (variance + self.eps).rsqrt() * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def synchronise_batch_norms(module: nn.Module) -> None:
    """Turns every batch norm in it into a SyncedBatchNorm, in place; weights and their names stay."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = SyncedBatchNorm


class RunningStatistics:
    """Running statistics of batch norms when a batch's tasks are shared out: as if one process had done all of them.

    From one forward pass to the next they follow r <- a r + c, where a is known and c is that pass's own. `collect` starts
    a pass at r = 0, which in training nothing reads, and so finds c; `merge` replays all passes in the order of the tasks.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            norm
            for norm in module.modules()
            if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats and norm.momentum is not None
            if not isinstance(norm, SyncedBatchNorm)  # which are equal everywhere
        ]
        self.passes: list[
            list[tuple[Tensor, Tensor, int]]
        ] = []  # of each pass, for each norm: mean's c, variance's c, calls

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Within it this process does one pass."""
        before = [self._values(norm) for norm in self.norms]
        for norm in self.norms:
            self._set(norm, (torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var), 0))  # type: ignore[arg-type]
        yield
        self.passes.append([self._values(norm) for norm in self.norms])
        for norm, values in zip(self.norms, before, strict=True):
            self._set(norm, values)

    @torch.no_grad()
    def merge(self, passes: Sequence[list[tuple[Tensor, Tensor, int]]]) -> None:
        """Adds the passes of all processes, in the order of their tasks."""
        for norms in passes:
            for norm, (mean, variance, calls) in zip(self.norms, norms, strict=True):
                assert norm.momentum is not None
                old_mean, old_variance, old_calls = self._values(norm)
                kept = (1 - norm.momentum) ** calls
                self._set(
                    norm,
                    (
                        old_mean * kept + mean.to(old_mean),
                        old_variance * kept + variance.to(old_mean),
                        old_calls + calls,
                    ),
                )

    @staticmethod
    def _values(norm: _BatchNorm) -> tuple[Tensor, Tensor, int]:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked or 0)

    @staticmethod
    def _set(norm: _BatchNorm, values: tuple[Tensor, Tensor, int]) -> None:
        for buffer, value in zip((norm.running_mean, norm.running_var), values[:2], strict=True):
            assert buffer is not None
            buffer.copy_(value)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(values[2])
