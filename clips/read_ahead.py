"""Reading in worker processes, ahead of what needs it, in the order in which it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from clips.frame_sources import BadVideo
from utils import UserError, start_reader

Item = TypeVar("Item")


class _Caught:
    """Carries a BadVideo out of a worker process: the loader would bury its sentence in a stack trace."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(index)
        except BadVideo as error:
            return error


def read_ahead(read: Callable[[int], Item], indices: Sequence[int], num_workers: int) -> Iterator[Item]:
    """read(i) for each of `indices`, in that order, by `num_workers` processes (0: in this one). Raises BadVideo, and UserError
    when one of the processes is killed.

    The processes live until the last one is read, so that all that is needed in a row is best asked for at once.
    """
    loader: DataLoader[Any] = DataLoader(
        _Caught(read),  # type: ignore[arg-type]  # a map from indices, all that a loader asks for
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        worker_init_fn=start_reader,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # so that it draws nothing from the global one
    )
    items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads ahead has died ({str(error).partition('. ')[0]}): often the memory was full, or "
                "/dev/shm; lower --num_workers, and go on with -r"
            ) from error
        if isinstance(item, BadVideo):
            raise item
        yield item
