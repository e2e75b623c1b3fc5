"""Reading in worker processes, ahead of what needs it, in the order in which it is needed.

Each process answers over a socket of its own, by a memory file without a name. So nothing goes through /dev/shm, of which
containers give little; a death is noticed at once; and whatever ends a process, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from clips.frame_sources import BadVideo
from utils import UserError, start_reader

Item = TypeVar("Item")

AHEAD = 2  # items per process that are read before they are needed, or being read
_NUMBER = struct.Struct("<q")  # a question: which item; an answer: where in its memory file the item begins, or -errno
# A copy of this process may read by whatever it can call; a process of its own would have to be handed it.
_CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else None)


def read_ahead(read: Callable[[int], Item], indices: Sequence[int], num_workers: int) -> Iterator[Item]:
    """read(i) for each of `indices`, in that order, by `num_workers` processes (0: in this one). Raises BadVideo, and UserError
    when one of the processes is killed or the machine has no room for them.

    The processes live until the last one is read, so that all that is needed in a row is best asked for at once. Tensors keep
    their strides, and are pinned where there is a GPU.
    """
    num_readers = min(num_workers, len(indices))
    if num_readers == 0:
        yield from map(read, indices)
        return
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(ThreadPoolExecutor(1))  # receives an item while the one before is used
        readers = [_start(read, number, num_workers, stack) for number in range(num_readers)]
        for turn, index in enumerate(indices[: AHEAD * num_readers]):
            readers[turn % num_readers].ask(index)

        def receive(turn: int) -> Item:
            reader = readers[turn % num_readers]
            item = reader.answer()
            if turn + AHEAD * num_readers < len(indices):
                reader.ask(indices[turn + AHEAD * num_readers])
            return item

        received = receiver.submit(receive, 0)
        for turn in range(1, len(indices)):
            item = received.result()
            received = receiver.submit(receive, turn)
            yield item
        yield received.result()


def _start(read: Callable[[int], Any], number: int, num_workers: int, stack: contextlib.ExitStack) -> Reader:
    """A process that `stack` will end."""
    try:
        reader = Reader(read)
    except OSError as error:
        raise UserError(
            f"could not start process {number + 1} of the {num_workers} that read ahead ({error.strerror}): lower "
            "--num_workers, or raise the limits that 'ulimit -a' shows"
        ) from error
    stack.callback(reader.close)
    return reader


class Reader:
    """A process that answers questions by `read`, in the order in which they are asked. It ends when this one does."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = _CONTEXT.Process(target=_serve, args=(read, theirs, self._socket), daemon=True)
            self._process.start()
        self._size = 0  # bytes of the last answer
        # Also when this object or the interpreter ends, before multiprocessing would wait for the process.
        self.close = multiprocessing.util.Finalize(self, _end, args=(self._process, self._socket), exitpriority=1)

    def ask(self, index: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # its answer will be that it has died
            self._socket.sendall(_NUMBER.pack(index))

    def answer(self) -> Any:
        """What was read. Raises BadVideo and UserError as `read` did, and RuntimeError for what else went wrong there."""
        try:
            number, files, *_ = socket.recv_fds(self._socket, _NUMBER.size, 1)
        except ConnectionResetError:
            number = b""
        if not number:
            self._process.join(5)
            held = f" (each such process keeps {AHEAD} items ready, the last of {self._size / 1e6:.1f} MB)"
            raise UserError(
                f"a process that reads ahead has died ({_cause(self._process.exitcode)}): often the memory was full, of the "
                f"machine or of its container{held if self._size else ''}; lower --num_workers (0: no such process), "
                "and resume with -r"
            )
        (start,) = _NUMBER.unpack(number)
        try:
            if start < 0:
                raise OSError(-start, os.strerror(-start))
            memory = _mapped(files)
        except OSError as error:
            raise UserError(
                f"no room to hand over what was read ahead ({error.strerror}): lower --num_workers (0 hands nothing over), or "
                "raise the limits of memory and open files that 'ulimit -a' shows"
            ) from error
        self._size = len(memory)
        kind, content = _Unpickler(memory, start).load()
        if kind == "error":
            raise content
        if kind == "traceback":
            raise RuntimeError(f"a process that reads ahead failed:\n{content}")
        return content


def _mapped(files: list[int]) -> mmap.mmap:
    """The memory file that came with an answer; where this process may open no more, it was dropped on the way."""
    if not files:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with open(files[0], "rb") as file:
        return mmap.mmap(file.fileno(), 0)


def _end(process: multiprocessing.Process, connection: socket.socket) -> None:
    process.kill()  # it only reads
    process.join()
    connection.close()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


# ---------------------------------------------------------------------------------------------------------------------
# In the process that reads


def _serve(read: Callable[[int], Any], connection: socket.socket, other_end: socket.socket) -> None:
    other_end.close()  # so that the connection ends with the process that asks
    start_reader()
    while number := _next_question(connection):
        answer: tuple[str, Any]
        try:
            answer = "item", read(*_NUMBER.unpack(number))
        except (BadVideo, UserError) as error:
            answer = "error", error
        except Exception:
            answer = "traceback", traceback.format_exc()
        try:
            with _memory_file() as file:
                try:
                    start = _pack(answer, file)
                except (pickle.PicklingError, AttributeError, TypeError):  # by which pickle says what it cannot take
                    start = _pack(("traceback", traceback.format_exc()), file)
                socket.send_fds(connection, [_NUMBER.pack(start)], [file.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            break
        except (OSError, MemoryError) as error:
            connection.sendall(_NUMBER.pack(-(getattr(error, "errno", None) or errno.ENOMEM)))
    os._exit(0)  # what else is in this copy of the program is not its to clean up


def _next_question(connection: socket.socket) -> bytes:
    """Nothing where there is nobody left to ask."""
    try:
        return connection.recv(_NUMBER.size, socket.MSG_WAITALL)
    except ConnectionResetError:  # killed, with answers that it had not taken
        return b""


def _memory_file() -> IO[bytes]:
    """A file of memory alone, which no mounted file system bounds; a disk's where there is no such thing."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("read ahead"), "w+b")
    return tempfile.TemporaryFile()


def _pack(item: Any, file: IO[bytes]) -> int:
    """Writes an item's tensors, then the item. Returns where it begins."""
    content = io.BytesIO()
    _Pickler(content, file).dump(item)
    start = file.tell()
    file.write(content.getbuffer())
    file.flush()
    return start


class _Pickler(pickle.Pickler):
    """Leaves tensors out of the pickle: their bytes are written to `tensors`, in the order in which they lie in memory."""

    def __init__(self, file: IO[bytes], tensors: IO[bytes]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, Tensor):
            return None
        thing = thing.detach()
        if torch.empty_like(thing, device="meta").stride() != thing.stride():
            thing = thing.clone()  # it had gaps
        self._tensors.seek(-self._tensors.tell() % 64, os.SEEK_CUR)  # where a cache line begins
        start = self._tensors.tell()
        self._tensors.write(thing.as_strided((thing.numel(),), (1,)).view(torch.uint8).numpy().data)
        return thing.dtype, tuple(thing.shape), thing.stride(), start


class _Unpickler(pickle.Unpickler):
    """Puts the tensors back, as views of the memory file."""

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        super().__init__(io.BytesIO(memory[start:]))
        self._memory = memory

    def persistent_load(self, place: tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]) -> Tensor:
        dtype, shape, stride, start = place
        if 0 in shape:
            return torch.empty_strided(shape, stride, dtype=dtype)
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).as_strided(shape, stride)
        return tensor.pin_memory() if torch.cuda.is_available() else tensor
