"""What two or more files share: user errors, seeds, the run folder with its logs, checkpoints, accuracy and its interval."""

from __future__ import annotations

import contextlib
import csv
import difflib
import errno
import fcntl
import io
import json
import math
import os
import pickle
import platform
import random
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

CHECKPOINT_FORMAT = "few-shot-action-recognition/1"
LATEST, BEST, FINAL = "checkpoint.pt", "checkpoint_best_val.pt", "checkpoint_final.pt"
LOCK = ".lock"  # in a run folder, held by the process that writes there
LOG_COLUMNS = ("tasks", "split", "loss", "accuracy", "ci95", "learning_rate")


class UserError(ValueError):
    """A mistake its user can mend. The message is one sentence: what was expected, what was found, what to do.

    Only the command line programs catch it: they print the message and exit with code 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a `name` that is in no table, with the table's names and the nearest one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return UserError(f"unknown {kind} '{name}': expected one of {', '.join(known)}{hint}")


# ---------------------------------------------------------------------------------------------------------------------
# Names, which need not be Unicode


def path_part(name: str, what: str) -> str:
    """`name`, where a file or folder can be called so and be listed again.

    Every name that is read from a file and becomes a part of a path to write to goes through here. Raises UserError, which
    calls it `what`, where it would lead elsewhere, would be hidden, or is too long.
    """
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 255 or name[0] == "." or set(name) & {"/", "\0"}:
        raise UserError(
            f"{what} '{printable(name)[:80]}' cannot be the name of a folder: expected 1 to 255 bytes without '/' and not "
            "a '.' first; rename it"
        )
    return name


def printable(text: str) -> str:
    """Text for people, with � for each byte of a name that is not UTF-8: screens, fonts and HTML take no such bytes."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def print_note(text: str) -> None:
    """What a user should know and may do nothing about, apart from a program's results."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def accuracy_interval(accuracies: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean of per-episode accuracies and the half-width of its 95 % interval, 1.96 * sd / sqrt(n), in their unit.

    One episode alone says nothing about the spread: its interval is reported as infinite.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), float("inf")
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def is_time(tasks_done: int, every: int) -> bool:
    """Whether something that happens after every `every` finished tasks is due now; 0 means never."""
    return every > 0 and tasks_done > 0 and tasks_done % every == 0


def seed_everything(*key: int) -> None:
    """Seeds every global generator with a hash of `key`: those of torch on all devices, numpy and Python.

    Initial weights depend on (seed,), the dropout of task i on (seed, i): so a resumed run, or another number of processes,
    draws the same without any generator's state being kept.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def start_reader() -> None:
    """What a process that reads ahead does first."""
    # One thread: the parallelism is in the processes, and their threads would fight over the same cores.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that is read for ends this one
    # So do a scheduler that takes the machine away, and a terminal that is closed, when it has a last step to make.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(60))


# ---------------------------------------------------------------------------------------------------------------------
# Helpers that classes written for the TRX-style libraries import from here


def cos_sim(x: Tensor, y: Tensor, epsilon: float = 0.01) -> Tensor:
    """Cosine similarity of every row of x (..., N, D) to every row of y (..., M, D): (..., N, M).

    `epsilon` is added to the product of the norms, as the TRX-style libraries do.
    """
    norms = x.norm(dim=-1, keepdim=True) * y.norm(dim=-1).unsqueeze(-2)
    return x @ y.transpose(-1, -2) / (norms + epsilon)


def extract_class_indices(labels: Tensor, which_class: Tensor | int) -> Tensor:
    """Positions in labels (N,) that hold `which_class`: (number of them,)."""
    return torch.nonzero(labels == which_class).flatten()


# ---------------------------------------------------------------------------------------------------------------------
# Files that are whole or not there


@contextmanager
def writing(path: Path, note: str = "") -> Iterator[None]:
    """Within it, a disk that refuses to write `path` is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}{note}; free some space or choose another folder, "
            "then resume with -r"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file object whose content appears under `path` at once when the block ends, or not at all.

    Raises UserError when the disk refuses; what was at `path` before is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, " (the earlier file is kept)" if path.exists() else ""):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of the same block, by a lock on the file `path`, which is there for that time only.

    The lock ends with the process that holds it, however it ends. shared: processes that share it may be in it together.
    wait: until the others have left; else it is a BlockingIOError that there are any.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with _locked_file(path, kind) as file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # where others share it, the last of them takes it away
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _locked_file(path: Path, kind: int) -> IO[bytes]:
    """The file at `path`, made where there is none, with a lock on it."""
    patience = time.monotonic() + 0.5  # one that shares the lock has it to itself for a moment when it leaves
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "ab"))
                fcntl.flock(file, kind)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    stack.pop_all()
                    return file
            except FileNotFoundError:  # who had it has just taken it away
                continue
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.05)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON for every reader: where a number is infinite or not a number, it says null.

    The bytes of a name that is not UTF-8 become escapes, from which `read_json` makes the same name again.
    """
    text = json.dumps(_without_odd_numbers(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def _without_odd_numbers(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_odd_numbers(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_odd_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"could not read {path} as JSON ({error}); restore it or start a new run folder") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table with a header; see `csv_text`. Names that are not UTF-8 keep the bytes that they have on the disk."""
    text = csv_text(columns, rows)
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def read_csv(path: Path, columns: Collection[str]) -> Iterator[dict[str, str]]:
    """The rows of a table that has these columns, and perhaps more. Raises ValueError, in words, for another or a cut one."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="")
        found = reader.fieldnames or []
        if not set(columns) <= set(found):
            raise ValueError(f"its first line is '{','.join(found)[:60]}', expected columns {', '.join(columns)}")
        if not text.endswith("\n"):
            raise ValueError("its last line is cut")
        for row in reader:
            if "" in row:
                raise ValueError(f"line {reader.line_num} has more than {len(found)} cells")
            yield row
    except csv.Error as error:
        raise ValueError(f"{error}") from error


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True) -> str:
    """CSV of what each row holds under the names of the columns: an empty cell where it holds nothing, and nothing more."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a dict of tensors and plain Python values that loads with `weights_only=True`."""
    # Serialising into memory first lets the disk's own error reach `atomic_write`; torch's zip writer would hide it.
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **checkpoint}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_tensors(path: Path) -> Any:
    """Reads a file written by torch.save on to the CPU, executing no code in it.

    Raises UserError when it is missing, truncated, or holds anything but tensors and plain Python values.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: expected a file written by this library or by torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols, beside the one sentence below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it is damaged or holds more than tensors and plain values, and loading such a file can "
            "run code; save a plain state_dict and give that"
        ) from error
    except Exception as error:  # any kind: the unpickler follows whatever the damaged bytes say until it stumbles
        reason = f"{error}".partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is truncated or no PyTorch file ({reason}); copy it again or give another") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this library; see `load_tensors` for what is refused."""
    return checked_checkpoint(load_tensors(path), path)


def is_checkpoint(content: Any) -> bool:
    """Whether it says of itself that it is a checkpoint of this library."""
    return isinstance(content, dict) and str(content.get("format")).startswith(CHECKPOINT_FORMAT.partition("/")[0])


def checked_checkpoint(checkpoint: Any, path: Path) -> dict[str, Any]:
    """What a file held, as a checkpoint of this library. Raises UserError where it is none."""
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of this library: expected format '{CHECKPOINT_FORMAT}', found "
            f"{found or 'none'}; weights of another library are given with --pretrained_backbone"
        )
    missing = [part for part in ("args", "progress", "model") if not isinstance(checkpoint.get(part), dict)]
    if missing:
        raise UserError(f"{path} lacks {' and '.join(missing)}: expected a whole checkpoint, give another")
    return checkpoint


# ---------------------------------------------------------------------------------------------------------------------
# The run folder


class RunFolder:
    """A folder with everything about one run: args.json, command.txt, log.txt, log.csv, tensorboard/, checkpoints.

    A new folder must not exist yet or be empty; `resume=True` wants one that a run has left, at whatever moment.
    With `writes=False` nothing is created or written: the other processes of a distributed run hold such a folder.
    columns: of log.csv.
    """

    def __init__(
        self, path: str | Path, *, resume: bool = False, writes: bool = True, columns: Sequence[str] = LOG_COLUMNS
    ) -> None:
        self.path = Path(path)
        self.writes = writes
        self.columns = columns
        self._early_lines: list[str] | None = None if resume else []  # logged before `start` has made the folder
        self._board: Any = None
        self._lock: int | None = None
        has_run = (self.path / "args.json").exists()
        if printable(str(path)) != str(path):
            raise UserError(
                f"the run folder {printable(str(path))} has a name that is not UTF-8, which TensorBoard cannot write to; give "
                "another -c"
            )
        if resume and not has_run:
            raise UserError(f"nothing to resume: {self.path} holds no args.json; leave out -r to start a new run")
        if resume:
            self._take_lock()  # before the run's state is read, which another process may be about to change
            return
        self._check_new()

    def _check_new(self) -> None:
        if (self.path / "args.json").exists():
            raise UserError(f"{self.path} already holds a run; add -r to resume it, or give another -c")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; expected a folder to write the run to, give another -c")
        if self.path.is_dir() and any(
            entry.name != LOCK and not entry.name.endswith(".tmp") for entry in self.path.iterdir()
        ):
            raise UserError(f"{self.path} is not empty and holds no run; give a new or empty folder with -c")

    def _take_lock(self) -> None:
        """Claims the folder until this process ends, however it ends. Raises UserError where another process has it.

        Network file systems hold such locks between machines if they are mounted with locking; where there are none, the
        run goes unguarded and says so.
        """
        if not self.writes or self._lock is not None:
            return
        path = self.path / LOCK
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no child inherits it
            is_current = path.exists() and os.path.samestat(os.fstat(file), path.stat())
        except OSError as error:
            is_current = error.errno not in (errno.EACCES, errno.EAGAIN)
            if is_current:
                self.log(f"warning: {self.path} is on a file system without locks: see that no other run uses it")
        if not is_current:  # held by another, or removed by one that was just ending
            os.close(file)
            raise UserError(f"another process is at work in {self.path}: wait until it ends, or give another -c")
        self._lock = file

    def start(self, settings: dict[str, Any], argv: Sequence[str], *, keep_settings: bool = False) -> None:
        """Makes the folder and records what was asked for; until then nothing is written.

        keep_settings: leave args.json as it is, because another run's folder is only added to.
        """
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"could not make the run folder {self.path}: {error.strerror}; give another -c") from error
        if self._early_lines is not None:  # a new run, which another one may have forestalled
            self._take_lock()
            self._check_new()
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink()
        if not keep_settings:
            write_json(self.path / "args.json", settings)  # first: its presence says that the folder holds a run
        self._append("command.txt", f"{shlex.join([Path(sys.executable).name, *argv])}\n")
        if not (self.path / "log.csv").exists():
            self.rewind_rows(0)
        early_lines, self._early_lines = self._early_lines, None
        self._write_log(early_lines or [])

    def log(self, line: str) -> None:
        """Prints a line and keeps it in log.txt with the time."""
        if not self.writes:
            return
        from tqdm import tqdm  # late, so that programs without bars do not pay for it

        tqdm.write(printable(line), file=sys.stdout)
        sys.stdout.flush()
        if self._early_lines is not None:
            self._early_lines.append(line)
        else:
            self._write_log([line])

    def _write_log(self, lines: Sequence[str]) -> None:
        self._append("log.txt", "".join(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n" for line in lines))

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        with writing(path), open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)

    def row(self, **values: Any) -> None:
        """Appends a row to log.csv. No times are in it, so that a resumed run leaves the same bytes as an unbroken one."""
        if not self.writes:
            return
        unknown = set(values) - set(self.columns)
        assert not unknown, f"log.csv has no column {unknown}"
        is_new = self.rows_size() == 0  # it may have been taken away from under the run
        self._append("log.csv", csv_text(self.columns, [values], header=is_new))

    def rows_size(self) -> int:
        """Bytes in log.csv now, 0 where there is none; a checkpoint keeps it so that rows written after it can be taken
        back."""
        path = self.path / "log.csv"
        return path.stat().st_size if self.writes and path.exists() else 0

    def rewind_rows(self, size: int) -> None:
        """Cuts log.csv back to `size` bytes; 0 leaves just the header.

        Where the file is gone or was cut, its whole rows stay, and a warning says that others are lost. One that does not
        begin with the header is kept under another name.
        """
        if not self.writes:
            return
        path = self.path / "log.csv"
        header = csv_text(self.columns, []).encode()
        found = path.read_bytes()[:size] if path.exists() else b""
        rows = found[: found.rfind(b"\n") + 1]
        if len(rows) < size:
            self.log("warning: log.csv is gone or was cut: rows of before this resume are lost")
        if rows and not rows.startswith(header):
            self.log("warning: log.csv does not begin with the names of its columns: a new one is begun")
            self.retire("log.csv")
            rows = b""
        with atomic_write(path) as file:
            file.write(rows or header)

    def scalars(self, tasks_done: int, **values: float) -> None:
        """Adds to TensorBoard's curves, over the number of finished tasks. Names have '__' for '/'."""
        for name, value in values.items():
            if self.writes:
                with writing(self.path / "tensorboard"):
                    self.board.add_scalar(name.replace("__", "/"), value, tasks_done)

    def picture(self, tasks_done: int, name: str, image: Tensor) -> None:
        """Shows a uint8 picture (3, H, W) in TensorBoard."""
        if self.writes:
            with writing(self.path / "tensorboard"):
                self.board.add_image(name, image, tasks_done)

    def open_board(self, resumed_at: int | None = None) -> None:
        """Starts TensorBoard's log. A run that is resumed hides the points after `resumed_at` that an earlier start has
        left; a test, None, adds to what is there."""
        from torch.utils.tensorboard import SummaryWriter  # late: importing it takes a second

        if self.writes:
            with writing(self.path / "tensorboard"):
                purge_step = None if resumed_at is None else resumed_at + 1 if resumed_at else 0
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step)

    def flush_board(self) -> None:
        """Brings TensorBoard's points to the disk, so that a kill after a checkpoint loses none from before it."""
        if self._board is not None:
            with writing(self.path / "tensorboard"):
                self._board.flush()

    @property
    def board(self) -> Any:
        if self._board is None:
            self.open_board()
        return self._board

    def close(self) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):  # of a full disk, which a file that matters more has met by now
                self._board.close()
            self._board = None
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)  # before it is released: who opens it later makes a new one
            os.close(self._lock)
            self._lock = None

    def retire(self, name: str) -> None:
        """Renames an existing file to NAME_1, NAME_2, ... before a new one takes its name: nothing is replaced in silence."""
        path = self.path / name
        if not (self.writes and path.exists()):
            return
        number = 1
        while (old := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
            number += 1
        path.rename(old)
        self.log(f"kept the earlier {name} as {old.name}")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the git commit where there is one."""
    import importlib.metadata
    import subprocess

    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pillow", "simplejpeg"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
        found["commit"] = git.stdout.strip() or "none"
    except (OSError, subprocess.TimeoutExpired):
        found["commit"] = "none"
    return found
