"""What lies in the folder of a split, and how many frames each video has: counted once, then kept.

Nothing is passed over in silence: a listing says what it is not about, and why a video has no frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clips.frame_sources import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    BadVideo,
    LmdbStore,
    VideoFile,
    check_open_files,
    frames_and_others,
)
from utils import UserError, locked, print_note

Paths = dict[str, dict[str, str]]  # {class: {video: path}}, both in alphabetical order
Counts = dict[str, dict[str, int]]  # {class: {video: number of frames}}
Remarks = dict[tuple[str, str], str]  # {(class, video): a remark on it}


@dataclasses.dataclass(frozen=True)
class Entries:
    """What the class folders of a split hold, but for hidden entries.

    folders: of frames, to all appearance. files: video files, by their names without the suffix. others: paths of what is
    neither, from the split's folder on. A link to nothing stands for the video that it should be.
    """

    folders: Paths
    files: Paths
    others: list[str]

    @classmethod
    def of(cls, root: str | Path) -> Entries:
        """Lists the folder of a split, and opens no video. Raises UserError where a folder may not be read."""
        found = cls({}, {}, [])
        for label in _visible(root):
            if not _is_folder(label):
                found.others.append(label.name)
                continue
            found.folders[label.name], found.files[label.name], others = videos_and_others(label.path)
            found.others.extend(f"{label.name}/{name}" for name in others)
        return found


def videos_and_others(folder: str | Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """(folders, video files, names of all else) in a class folder; see `Entries`.

    Raises UserError where two files differ only in their suffix.
    """
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    others: list[str] = []
    for entry in _visible(folder):
        video, suffix = os.path.splitext(entry.name)
        if _is_folder(entry):
            folders[entry.name] = entry.path
        elif suffix.lower() in VIDEO_SUFFIXES and (os.path.isfile(entry.path) or leads_nowhere(entry.path)):
            if video in files:
                raise UserError(f"{folder} holds two videos called {video}; keep one of them")
            files[video] = entry.path
        elif leads_nowhere(entry.path):
            folders[entry.name] = entry.path
        else:
            others.append(entry.name)
    return folders, dict(sorted(files.items())), others


def visible_folders(folder: str | Path) -> list[str]:
    """Paths of the folders in a folder, in alphabetical order."""
    return [entry.path for entry in _visible(folder) if _is_folder(entry)]


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        check_open_files(error)
        raise UserError(
            f"{folder} could not be listed ({error.strerror}): expected a folder that may be read"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def leads_nowhere(path: str) -> bool:
    """Whether it is a link to nothing, or to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def holds_images(folder: str | Path) -> bool:
    try:
        return any(name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "." for name in os.listdir(folder))
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# The three formats of a split


@dataclasses.dataclass(frozen=True)
class Listing:
    """The videos of a split. suffixes: what files' names have beside those of the videos. others: what was passed over."""

    counts: Counts
    remarks: Remarks = dataclasses.field(default_factory=dict)
    suffixes: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    others: list[str] = dataclasses.field(default_factory=list)


def list_frame_folders(root: Path) -> Listing:
    """Folders of images."""
    entries = Entries.of(root)
    counts, remarks = count_frames(root, entries.folders, frames_in_folder)
    return Listing(counts, remarks, others=sorted([*entries.others, *_from_root(entries.files)]))


def list_video_files(root: Path) -> Listing:
    """Video files."""
    entries = Entries.of(root)
    counts, remarks = count_frames(root, entries.files, frames_in_file)
    suffixes = {
        (label, video): os.path.splitext(path)[1]
        for label, videos in entries.files.items()
        for video, path in videos.items()
    }
    return Listing(counts, remarks, suffixes, sorted([*entries.others, *_from_root(entries.folders)]))


def list_lmdb(path: Path) -> Listing:
    """An LMDB file, which holds its own listing."""
    return Listing(LmdbStore(path).index["videos"])


LISTERS = {"frames": list_frame_folders, "video": list_video_files, "lmdb": list_lmdb}


def _from_root(paths: Paths) -> list[str]:
    return [f"{label}/{os.path.basename(path)}" for label, videos in paths.items() for path in videos.values()]


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first few names of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def the_others(names: Sequence[str]) -> str:
    """The end of a sentence on the first of some videos: what the others are called."""
    return f"; the others are {first_few(names, most=100)}" if names else ""


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of frames


def frames_in_folder(path: str) -> tuple[int, str]:
    """(the number of frames in a folder, a remark: why there is none, or which images are no frames)."""
    try:
        frames, others = frames_and_others(path)
    except BadVideo as error:
        return 0, str(error)
    if not frames:
        return 0, f"{path} holds no .jpg or .png file"
    return len(frames), f"{len(others)} beside {len(frames)} frames, as {others[0]}" if others else ""


def frames_in_file(path: str) -> tuple[int, str]:
    """(the number of frames of a video file, '' or why it cannot be read)."""
    try:
        return VideoFile(path).num_frames, ""
    except BadVideo as error:
        return 0, str(error)


Kept = dict[
    str, dict[str, list[Any]]
]  # {class: {video: [modification time, number of frames, remark if there is one]}}
COUNTING_RULE = 3  # another number where counting would give other numbers than those that are kept
SECONDS_PER_LINE, SECONDS_PER_SAVE = 30, 60  # of a long listing
UNTRUSTED = -1  # as a modification time; 0 is one that some file systems give to all files


def count_frames(
    root: Path, found: Mapping[str, Mapping[str, str]], count: Callable[[str], tuple[int, str]]
) -> tuple[Counts, Remarks]:
    """Numbers of frames of the videos in {class: {video: path}}, and remarks about some of them, kept for `root`.

    They are kept in the user's cache folder. A video is counted again when its modification time has moved; that of a
    folder moves when a frame is added, removed or renamed. So 100,000 unchanged videos cost one look at each one's time.
    Where counting is stopped, what was counted is kept.
    """
    # The number stands for the rule by which frames are told from other images.
    cache_file = (
        _cache_folder()
        / f"{hashlib.sha256(f'2 {root.resolve()}'.encode(errors='surrogateescape')).hexdigest()[:24]}.json"
    )
    started = time.time_ns()
    modified = {label: {video: _modified(path) for video, path in videos.items()} for label, videos in found.items()}

    def count_one(place: tuple[str, str]) -> None:
        label, video = place
        at = modified[label][video]
        try:
            frames, remark = count(found[label][video])
        except OSError as error:
            check_open_files(error)
            frames, remark, at = 0, f"{found[label][video]} could not be read ({error.strerror})", UNTRUSTED
        # What was touched a moment ago may change again within the clock's tick: its time is not trusted.
        settled = started - at > 2_000_000_000
        kept[label][video] = [at if settled else UNTRUSTED, frames, *([remark] if remark else [])]

    kept, changed = _look_up(cache_file, modified)
    if changed:
        with _one_at_a_time(cache_file):
            kept, changed = _look_up(cache_file, modified)  # another process of the job may just have counted
            try:
                _with_a_bar(count_one, changed, f"list {root.name}", lambda: _write_cache(cache_file, kept))
            finally:
                _write_cache(cache_file, kept)
    counts = {label: {video: entry[1] for video, entry in videos.items()} for label, videos in kept.items()}
    remarks = {
        (label, video): entry[2] for label, videos in kept.items() for video, entry in videos.items() if len(entry) > 2
    }
    return counts, remarks


def _look_up(cache_file: Path, modified: Mapping[str, Mapping[str, int]]) -> tuple[Kept, list[tuple[str, str]]]:
    """(what is kept of the videos there are, (class, video) of those to be counted) by their modification times."""
    known = _read_cache(cache_file)
    kept: Kept = {
        label: {video: known.get(label, {}).get(video, [UNTRUSTED, 0]) for video in videos}
        for label, videos in modified.items()
    }
    changed = [
        (label, video)
        for label, videos in modified.items()
        for video, at in videos.items()
        if at == UNTRUSTED or kept[label][video][0] != at
    ]
    return kept, changed


def _with_a_bar(
    work: Callable[[tuple[str, str]], None], places: Sequence[tuple[str, str]], doing: str, save: Callable[[], None]
) -> None:
    """Does the work for every place, and saves now and then. Where it is stopped, what has not begun does not begin."""
    # Where nobody watches, a line every half minute, of what takes that long at all.
    pace = {} if sys.stderr.isatty() else {"delay": SECONDS_PER_LINE, "mininterval": SECONDS_PER_LINE}
    # Folders wait for the disk, whatever the number of cores; video files are decoded, outside Python's lock.
    pool = ThreadPoolExecutor(max(8, len(os.sched_getaffinity(0))))
    try:
        saved = time.monotonic()
        for _ in tqdm(pool.map(work, places), total=len(places), desc=doing, unit=" videos", leave=False, **pace):
            if time.monotonic() - saved > SECONDS_PER_SAVE:
                save()
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_at_a_time(cache_file: Path) -> Iterator[None]:
    """Lets the first process of a job list, and the others wait for what it finds: they read the same videos."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no right to write, or a file system without locks: each for itself
            stack.enter_context(locked(cache_file.with_suffix(".lock"), wait=True))
        yield


def _modified(path: str) -> int:
    """When a video was changed last, in nanoseconds; UNTRUSTED where it is gone or its link leads nowhere."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return UNTRUSTED


def _cache_folder() -> Path:
    """Never inside the data set, which may be read-only or shared."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "few_shot_action_recognition" / "listings"


def _read_cache(path: Path) -> Kept:
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return {}
    if checksum != _checksum(content):
        print_note(f"the listing {path} is damaged: the data set is listed again")
        return {}
    kept: Kept = json.loads(content)
    return kept


def _write_cache(path: Path, listing: Kept) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(listing, separators=(",", ":")).encode()
        temporary.write_bytes(_checksum(content) + b"\n" + content)
        temporary.replace(path)
    except OSError:  # no room or no right to write: the next start lists again
        with contextlib.suppress(OSError):
            temporary.unlink()


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
