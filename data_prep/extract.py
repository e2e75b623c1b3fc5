"""From downloaded videos to folders of frames: what every extract_*.py shares.

A data set's script says which videos its split asks for (`Video`); `main` here does the rest. ffmpeg turns each video
into images in a folder of its own, which is renamed into place when it is whole; so whatever stops a run, what lies in
place is finished, and the same command resumes with the rest.

    <dst>/{train,val,test}/<class>/<video>/00001.jpg ...    blanks in class names become '_'
    <dst>/manifest.jsonl                                    settings, then a line per video: its frames, or why none
    <dst>/missing.txt  failed.txt  damaged.txt              written when there is something to name
"""

from __future__ import annotations

import argparse
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

# Python puts the folder of a script on its path, not the project's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips.frame_names import frame_order
from clips.frame_sources import (
    IMAGE_SUFFIXES,
    JPEG_START,
    MIN_SHARE_OF_PROMISE,
    PNG_START,
    VIDEO_SUFFIXES,
    BadVideo,
    Contents,
    VideoFile,
    check_open_files,
    check_whole,
    decode_image,
    file_content,
    frame_files,
    is_whole,
    open_file,
)
from clips.list_files import read_lines
from clips.listing import first_few, leads_nowhere
from clips.orientation import UPRIGHT
from clips.video_split import SPLITS
from engine.command_line import Parser, arguments, exit_code
from utils import UserError, atomic_write, locked, path_part, print_note, read_json

UNFINISHED = ".unfinished"  # folder in <dst> for what is not whole yet, and for the locks
MOST_PIXELS, MOST_FRAMES_PER_SECOND = 16384, 1000
SAMPLE = 8  # videos after which disk space and time are foretold
NEVER_FITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Classes = dict[str, dict[str, int | None]]  # split -> class -> number of videos it should have, where that is known
Rows = dict[str, list[tuple[str, str]]]  # split -> (class, video) as a list file names them
Wanted = Callable[[argparse.Namespace], "list[Video]"]
Item = TypeVar("Item")
Result = TypeVar("Result")

# ---------------------------------------------------------------------------------------------------------------------
# Which videos


@dataclass(frozen=True)
class Video:
    """A video that a split asks for. source: a file or a folder of frames, None when there is none.

    Where a split only says how many videos a class has, one entry stands for the `count` videos that were not found.
    """

    split: str
    label: str
    name: str
    source: Path | None
    count: int = 1

    @property
    def folder(self) -> str:
        """Where its frames go, relative to the data set. Raises UserError where a name would lead out of it."""
        name = self.name if self.source is None else path_part(self.name, f"a video of class '{self.label}',")
        return f"{self.split}/{folder_name(self.label)}/{name}"


def folder_name(label: str) -> str:
    """Blanks in class names would break the list formats that separate columns with them."""
    return path_part(label, "the class").replace(" ", "_")


def same(label: str) -> str:
    """A form in which the spellings of one class are equal: letter case, blanks, brackets around placeholders."""
    return re.sub(r"[\[\]]", "", label.replace(" ", "_")).casefold()


def read_classes(source: str | Path) -> Classes:
    """The classes of a split: a name under splits/, or a JSON file {"train": [class, ...] or {class: videos}, ...}."""
    shipped = Path(__file__).resolve().parents[1] / "splits" / str(source) / "classes.json"
    content = read_json(shipped if shipped.is_file() else Path(source))
    if not isinstance(content, dict) or not content or not set(content) <= set(SPLITS):
        raise UserError(f'{source} is no split: expected {{"train": [class, ...], "val": [...], "test": [...]}}')
    for split, labels in content.items():
        names, counts = list(labels or ()) if isinstance(labels, (dict, list)) else [None], []
        if isinstance(labels, dict):
            counts = [count for count in labels.values() if count is not None]
        if not all(isinstance(name, str) for name in names) or not all(type(n) is int and n >= 0 for n in counts):
            raise UserError(
                f"{source} has {json.dumps(labels)[:60]} for {split}: expected a list of class names, or their numbers of "
                'videos as {"class": 120, ...}'
            )
    classes = {
        split: dict(labels) if isinstance(labels, dict) else dict.fromkeys(labels) for split, labels in content.items()
    }
    seen: dict[str, str] = {}
    for split, labels in classes.items():
        for label in labels:
            if same(label) in seen:
                raise UserError(f"{source} lists class '{label}' in {seen[same(label)]} and {split}; keep one of them")
            seen[same(label)] = split
    return classes


def find_videos(src: Path) -> Iterator[Path]:
    """Video files and folders of frames below `src`, sorted, without the hidden ones that archives of macOS carry.

    A link to nothing stands for the video that it should be. What is neither, and links to folders that they lie in, are
    told in one note when all is found. Raises UserError where a folder may not be read.
    """
    others: list[str] = []
    for folder, folders, files in os.walk(src, followlinks=True, onerror=_unreadable):
        visible = sorted(name for name in files if name[0] != ".")
        images = [name for name in visible if name.lower().endswith(IMAGE_SUFFIXES)]
        videos = [name for name in visible if name.lower().endswith(VIDEO_SUFFIXES)]
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if images and not videos and (not folders or _are_frames(images)):
            yield Path(folder)
            others += [f"{folder}/{name}" for name in folders]
            folders.clear()
        elif images:  # a cover, a thumbnail
            others += [f"{folder}/{name}" for name in images]
        beside = [name for name in visible if name not in images]
        found = [name for name in beside if _is_video(f"{folder}/{name}")]
        yield from (Path(folder, name) for name in found)
        others += [f"{folder}/{name}" for name in beside if name not in found]
        others += [] if files or folders else [folder]
        loops = [name for name in folders if os.path.islink(f"{folder}/{name}") and _is_loop(f"{folder}/{name}", src)]
        folders[:] = [name for name in folders if name not in loops]
        others += [f"{folder}/{name}" for name in loops]
    if others:
        print_note(f"{len(others):,} passed over, being no videos: {first_few(others)}")


def _is_video(path: str) -> bool:
    """Whether it is a video file, to all appearance, or a link that leads nowhere."""
    return os.path.isfile(path) and path.lower().endswith(VIDEO_SUFFIXES) or leads_nowhere(path)


def _unreadable(error: OSError) -> NoReturn:
    check_open_files(error)
    raise UserError(
        f"{error.filename} could not be listed ({error.strerror}): expected a folder that may be read"
    ) from error


def _are_frames(images: Sequence[str]) -> bool:
    """Whether images are frames although there are folders beside them: more than one of a series."""
    try:
        return len(frame_order(images)[0]) > 1
    except ValueError:
        return True  # the video is named as one without a certain order


def _is_loop(link: str, src: Path) -> bool:
    """Whether a link to a folder leads to one that it lies in, by the way that was walked from `src`."""
    target = os.path.realpath(link)
    above = Path(link).parents
    return any(os.path.realpath(parent) == target for parent in above if parent == src or src in parent.parents)


def splits_of(dataset: Path) -> list[str]:
    """The splits that a data set has folders of. Raises UserError when there is none."""
    splits = [split for split in SPLITS if (dataset / split).is_dir()]
    if not splits:
        raise UserError(
            f"{dataset} has none of the folders {', '.join(SPLITS)}: expected {dataset}/train/<class>/<video>"
        )
    return splits


def class_folders(dataset: Path) -> Iterator[tuple[str, Path]]:
    """(split, class folder) of a data set, sorted. Raises UserError when there is none."""
    for split in splits_of(dataset):
        for folder in sorted((dataset / split).iterdir()):
            if folder.is_dir() and folder.name[0] != ".":
                yield split, folder


def video_folders(dataset: Path) -> list[str]:
    """'<split>/<class>/<video>' of every folder of frames in a data set, sorted."""
    return [
        f"{split}/{folder.name}/{video.name}"
        for split, folder in class_folders(dataset)
        for video in sorted(folder.iterdir())
        if video.is_dir() and video.name[0] != "."
    ]


def stem(name: str) -> str:
    """A file name without its video suffix; other dots belong to the name."""
    base, dot, suffix = name.rpartition(".")
    return base if f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else name


def by_class(classes: Classes, found: Iterable[tuple[str, Path]]) -> list[Video]:
    """A split that is made of all videos of its classes. found: (class, video) in any spelling of the class."""
    of_class: dict[str, dict[str, Path]] = {}
    for label, path in found:
        videos = of_class.setdefault(same(label), {})
        other = videos.setdefault(stem(path.name), path)
        if other != path:
            raise UserError(f"{other} and {path} are one video by name; remove or rename one of them")
    wanted = []
    for split, labels in classes.items():
        for label, expected in labels.items():
            videos = of_class.get(same(label), {})
            wanted += [Video(split, label, name, path) for name, path in videos.items()]
            lacking = (expected or 1) - len(videos)
            if lacking > 0:
                wanted.append(Video(split, label, f"({lacking} of {expected or 'its'} videos)", None, lacking))
            if expected and lacking < 0:
                print(f"note: class '{label}' has {len(videos)} videos, the public split {expected}; all are taken")
    return wanted


def by_list(rows: Rows, classes: Classes | None, find: Callable[[str, str], Path | None]) -> list[Video]:
    """A split that lists its videos one by one. find(class, video): where it lies, or None.

    `classes` checks the lists: a class not in it is a UserError, videos that it counts and the lists lack are missing.
    Without it the lists say which classes there are.
    """
    wanted = []
    for split, pairs in rows.items():
        labels = {same(label): label for label in classes.get(split, {})} if classes else {}
        listed: dict[str, list[str]] = {}
        for written, name in dict.fromkeys(pairs):
            label = _spelled_out(written, split, classes) if classes else written
            label = labels.get(same(label), label)
            if labels and label not in labels.values():
                nearest = difflib.get_close_matches(label, labels.values(), n=1)
                hint = f", whose nearest is '{nearest[0]}'" if nearest else ""
                raise UserError(
                    f"the {split} list names class '{label}': expected the {split} classes of this split{hint}; "
                    "give the lists that belong to it"
                )
            listed.setdefault(label, []).append(name)
            wanted.append(Video(split, label, name, find(label, name)))
        for label, expected in (classes or {}).get(split, {}).items():
            lacking = (expected or 0) - len(listed.get(label, []))
            if lacking > 0:
                wanted.append(Video(split, label, f"({lacking} of {expected} videos are not listed)", None, lacking))
    return wanted


def _spelled_out(label: str, split: str, classes: Classes) -> str:
    """Some public lists write 'train12' for the class at position 12 of the train part."""
    index = re.fullmatch(rf"{split}(\d+)", label)
    names = list(classes.get(split, {}))
    return names[int(index[1])] if index and int(index[1]) < len(names) else label


def list_files(paths: Sequence[Path], suffixes: tuple[str, ...] = (".txt", ".list", ".csv")) -> dict[str, Path]:
    """{split: list file} of files, or a folder with files, whose names say train, val or test."""
    candidates = [
        file
        for path in paths
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        if not path.is_dir() or file.suffix in suffixes
    ]
    files: dict[str, Path] = {}
    for file in candidates:
        splits = [split for split in SPLITS if split in file.name.lower()]
        if len(splits) != 1:
            raise UserError(f"can't tell whether {file} is train, val or test: expected one of them in its name")
        if files.setdefault(splits[0], file) != file:
            raise UserError(f"{files[splits[0]]} and {file} are both {splits[0]} lists; give one file for each part")
    if not files:
        raise UserError(f"no list file among {', '.join(map(str, paths))}: expected names with train, val or test")
    return files


def read_rows(paths: Sequence[Path]) -> Rows:
    """Lists with lines `.../class/video[.suffix] [label]`; blanks in class names and a leading '#' mean themselves."""
    rows: Rows = {}
    for split, path in list_files(paths).items():
        rows[split] = []
        for line in read_lines(path):
            *folders, last = line.split("/")
            if not any(folders) or not last.strip():
                raise UserError(f"{path} has the line '{line[:80]}': expected class/video")
            label = [folder for folder in folders if folder][-1]
            rows[split].append((label, stem(last.split()[0])))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# One video


@dataclass(frozen=True)
class Settings:
    """How frames are made. size: 'WxH', 'original' or 'short:N'; fps: 0 keeps every frame; quality: 2 (best) to 31."""

    size: str
    fps: float
    image: str
    quality: int

    @property
    def timing(self) -> list[str]:
        """Before the input: a made-up rate numbers the frames, where equal or falling time stamps would stop ffmpeg."""
        return [] if self.fps else ["-r", "25"]

    def filters(self, about: Contents) -> list[str]:
        """From frames as they are stored to those that are written."""
        # Turned by what reading the video says: which mirrored videos ffmpeg itself sets right depends on its version.
        chain = about.orientation.ffmpeg_filters
        if chain:
            chain.append("sidedata=mode=delete:type=DISPLAYMATRIX")  # or newer versions hand it on to the images
        if self.fps:
            chain.append(f"fps={self.fps:g}")
        if self.size.startswith("short:"):
            side = self.size.removeprefix("short:")
            # -2 keeps the aspect with an even number of pixels.
            chain.append(f"scale=-2:{side}" if about.width > about.height else f"scale={side}:-2")
        elif self.size != "original":
            chain.append(f"scale={self.size.replace('x', ':')}")
        if self.image == "jpg" and about.hd_colours:
            chain.append("format=rgb24")  # from which the colours of a JPEG are made, with any version
        return chain


def contents(source: Path) -> Contents:
    """What a video file or a folder of images holds. Raises BadVideo where that is not whole."""
    if not source.is_dir():
        return VideoFile(source).contents()
    names = frame_files(source)
    if not names:
        raise BadVideo("the folder holds no .jpg or .png file")
    height, width, _ = decode_image(file_content(source / names[0]), names[0]).shape
    return Contents(len(names), width, height, 0.0, 0, UPRIGHT)  # decoding turns images upright


class DiskFull(UserError):
    """Nothing more can be written; what is finished stays."""

    def __init__(self, dst: Path) -> None:
        super().__init__(
            f"the disk of {dst} is full or its limit is reached: free some space, then run the same command again; "
            "finished videos are kept"
        )


class Extractor:
    """Calls ffmpeg. dst: the data set; work: the folder in it for unfinished videos."""

    def __init__(self, settings: Settings, dst: Path, work: Path) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            raise UserError(
                "the program ffmpeg was not found: install it with 'apt install ffmpeg', 'brew install ffmpeg' or "
                "'conda install -c conda-forge ffmpeg', or put its folder on PATH"
            )
        self.settings, self.dst, self.work = settings, dst, work
        self.program = program
        self.version = self._ask("-version").split("Copyright")[0].removeprefix("ffmpeg version").strip()
        # Every decoded frame is written once, whatever its time stamp; older versions spell that differently.
        self.every_frame = ["-fps_mode" if "-fps_mode" in self._ask("-h", "long") else "-vsync", "passthrough"]

    def _ask(self, *words: str) -> str:
        return subprocess.run([self.program, "-hide_banner", *words], capture_output=True, text=True).stdout

    def __call__(self, video: Video) -> tuple[Video, dict[str, Any], Path]:
        """Extracts into a new folder: (video, its line for the manifest, the folder). Raises DiskFull."""
        assert video.source is not None
        folder = self.work / uuid.uuid4().hex
        folder.mkdir()
        entry: dict[str, Any] = {"source": str(video.source)}
        try:
            about = contents(video.source)
            entry |= {
                name: value
                for name, value in vars(about).items()
                if name not in ("frames", "orientation", "hd_colours")
            }
            words = self._run(video.source, about, folder)
            entry |= self._judge(folder, about, words)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever it is, it is this video's failure alone
            check_open_files(error)
            if isinstance(error, OSError) and error.errno in NEVER_FITS:
                raise DiskFull(self.dst) from error
            reason = str(error) if isinstance(error, BadVideo | OSError) else f"{type(error).__name__}: {error}"
            reason = reason.removeprefix(str(video.source)).lstrip(": ").partition("; get or encode")[0]
            entry |= {"status": "failed", "reason": reason}
        return video, entry, folder

    def _run(self, source: Path, about: Contents, folder: Path) -> str:
        """Writes the images and returns ffmpeg's complaints. Raises BadVideo when it gave up."""
        if not source.is_dir():
            return self._ffmpeg(["-noautorotate", *self.settings.timing, "-i", f"file:{source}"], about, folder)
        images = [source / name for name in frame_files(source)]
        start = {"jpg": JPEG_START, "png": PNG_START}[self.settings.image]
        if self.settings.size != "original" or not all(_starts_with(image, start) for image in images):
            reading = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{about.width}x{about.height}"]
            return self._ffmpeg([*reading, *self.settings.timing, "-i", "pipe:0"], about, folder, images)
        check_whole(images)
        for number, image in enumerate(images, start=1):  # images that need no change keep their bytes
            (folder / f"{number:05d}.{self.settings.image}").write_bytes(file_content(image))
        return ""

    def _ffmpeg(self, reading: list[str], about: Contents, folder: Path, images: Sequence[Path] = ()) -> str:
        """Calls it for one video. images: frames for its standard input, decoded here in the order of reading them."""
        from_rgb = images or about.hd_colours
        if self.settings.image == "png":
            coding = ["-pix_fmt", "rgb24"]
        else:
            coding = ["-q:v", str(self.settings.quality), *(["-pix_fmt", "yuvj420p"] if from_rgb else [])]
        filters = self.settings.filters(about)
        command = [self.program, "-hide_banner", "-nostdin", "-v", "error", "-threads", "1"]
        command += [*reading, "-map", f"0:{about.stream}", *(["-vf", ",".join(filters)] if filters else [])]
        command += [*self.every_frame, *coding, "-threads", "1", "-f", "image2"]
        command += [f"file:{folder}/".replace("%", "%%") + f"%05d.{self.settings.image}"]
        with tempfile.TemporaryFile() as complaints:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints) as ffmpeg:
                assert ffmpeg.stdin is not None
                with suppress(BrokenPipeError):  # where it gave up, it says why
                    for image in images:
                        pixels = decode_image(file_content(image), image.name)
                        if pixels.shape != (about.height, about.width, 3):
                            raise BadVideo(
                                f"{image.name} is {pixels.shape[1]}x{pixels.shape[0]} pixels where the first frame is "
                                f"{about.width}x{about.height}"
                            )
                        ffmpeg.stdin.write(pixels.data)
                    ffmpeg.stdin.close()
            complaints.seek(0)
            words = complaints.read().decode(errors="replace").replace(f"{folder}/", "").strip()
        if ffmpeg.returncode == -signal.SIGXFSZ or any(os.strerror(code) in words for code in NEVER_FITS):
            raise DiskFull(self.dst)
        if ffmpeg.returncode:
            raise BadVideo(_short(words) or f"ffmpeg stopped with code {ffmpeg.returncode} and no word")
        return words

    def _judge(self, folder: Path, about: Contents, words: str) -> dict[str, Any]:
        files = [folder / name for name in frame_files(folder)]
        broken = next((file.name for file in files if not is_whole(file)), None)
        if broken:
            raise BadVideo(f"ffmpeg wrote only a part of {broken}")
        if not files:
            raise BadVideo(_short(words) or "ffmpeg found no frame in it")
        kept = MIN_SHARE_OF_PROMISE * self.settings.fps / about.fps if self.settings.fps and about.fps else 1.0
        if len(files) < kept * about.frames or (not self.settings.fps and len(files) > about.frames):
            found = f"ffmpeg gave {len(files)} images of its {about.frames} frames"
            raise BadVideo(f"{found}: {_short(words)}" if words else found)
        size = sum(file.stat().st_size for file in files)
        complaints = {"complaints": _short(words)} if words else {}
        return {"status": "ok", "frames": len(files), "bytes": size, **complaints}


def _short(words: str) -> str:
    lines = words.splitlines()
    return " | ".join(lines[:3])[:500] + (f" ... ({len(lines)} lines)" if len(lines) > 3 else "")


def _starts_with(image: Path, start: bytes) -> bool:
    with open_file(image) as file:
        return file.read(len(start)) == start


# ---------------------------------------------------------------------------------------------------------------------
# Many videos: locks, the manifest, resuming


@contextmanager
def alone(dst: Path, name: str, *, shared: bool = False) -> Iterator[None]:
    """Keeps a second process off the same work. What says so is gone when the work ends."""
    lock = dst / UNFINISHED / f"{name}.lock"
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock, shared=shared))
            except BlockingIOError:
                raise UserError(f"another process is at work on {dst}: wait until it ends or stop it") from None
            yield
    finally:
        with suppress(OSError):  # others are still at work, or were killed in it
            lock.parent.rmdir()


@contextmanager
def unfinished(dst: Path, name: str) -> Iterator[Path]:
    """An empty folder for what is not whole yet. What an earlier process left there goes, and in the end the folder does."""
    folder = dst / UNFINISHED / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(folder: Path, target: Path) -> None:
    """Renames a finished folder into place. An earlier one there, known to be damaged, is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old := folder.with_name(f"{folder.name}.old"))
        shutil.rmtree(old)
    folder.rename(target)


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], jobs: int, *, doing: str) -> Iterator[Result]:
    """Results as they come, under a bar with rate and remaining time. Threads do: others' code does the hard work."""
    if not items:
        return
    bar = tqdm(total=len(items), desc=doing, unit=" videos", mininterval=0.5 if sys.stderr.isatty() else 30)
    with bar, ThreadPool(jobs) as pool:
        for result in pool.imap_unordered(work, items):
            yield result
            bar.update()


class Manifest:
    """The manifests of a data set. `entries`: the newest line of every video tried, from the files of all shards.

    A run begins with a line of its settings and one of the videos that are missing; then a line per video is appended
    just before it is renamed into place, so a finished video always has one.
    """

    def __init__(self, dst: Path, suffix: str, settings: dict[str, Any], missing: dict[str, int]) -> None:
        self.entries = read_entries(manifest_files(dst), settings)
        self.path = dst / f"manifest{suffix}.jsonl"
        if self.path.exists():
            text = self.path.read_bytes()
            with open(self.path, "r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)  # a kill may have cut the last line
        # A byte of a name that is no UTF-8 becomes an escape that JSON knows.
        self._file = open(self.path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  (closed by close())
        self._write({"settings": settings})
        self._write({"missing": missing})

    def add(self, folder: str, **entry: Any) -> None:
        self.entries[folder] = {"video": folder, **entry, "time": round(time.time(), 3)}
        self._write(self.entries[folder])

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def manifest_files(dst: Path) -> list[Path]:
    return sorted(path for path in dst.glob("manifest*.jsonl") if path.name[0] != ".")


def manifest_lines(manifest: Path) -> Iterator[dict[str, Any]]:
    """Its lines, but not one that a kill has cut: that video counts as not done."""
    for line in manifest.read_text(encoding="utf-8").split("\n"):
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def read_entries(files: Iterable[Path], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The newest line of every video tried. Raises UserError where a manifest was made with other settings."""
    entries: dict[str, dict[str, Any]] = {}
    for path in files:
        for line in manifest_lines(path):
            if "settings" in line:
                check_settings(line["settings"], settings, path.parent)
            elif "video" in line and line["time"] >= entries.get(line["video"], line)["time"]:
                entries[line["video"]] = line
    return entries


def check_settings(made: Mapping[str, Any], asked: Mapping[str, Any], dst: Path) -> None:
    """Raises UserError where a data set that was begun with other settings would be resumed."""
    for name, value in asked.items():
        if name != "ffmpeg" and made.get(name) != value:
            raise UserError(
                f"{dst} was begun with {name} {made.get(name)}, now {name} is {value}: a data set has one kind "
                "of frames; give the same settings or another --dst"
            )


# ---------------------------------------------------------------------------------------------------------------------
# The command


RESUME = ": the same command resumes from here"  # what a stopped script prints


def size(text: str) -> str:
    """For argparse: 'WxH' or 'original'."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if text != "original" and not (match and all(0 < int(side) <= MOST_PIXELS for side in match.groups())):
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT of 1 to {MOST_PIXELS} as in 256x256, or 'original', found '{text}'"
        )
    return text


def shard_of(video: Video, shards: int) -> int:
    """By its name alone, so that machines which find different videos still share them out alike."""
    return int(hashlib.sha256(video.folder.encode(errors="surrogateescape")).hexdigest()[:15], 16) % shards


def shard(text: str) -> tuple[int, int]:
    """For argparse: 'i/n' with i from 0 to n - 1."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 0 to n-1, as in 0/4 to 3/4, found '{text}'")
    return int(match[1]), int(match[2])


def build_parser(doc: str | None, epilog: str = "") -> Parser:
    """The flags that all data sets share."""
    parser = Parser(doc, epilog=epilog)
    what = parser.add_argument_group("what")
    what.add_argument("--src", type=Path, required=True, metavar="FOLDER", help="the download, unpacked; is only read")
    what.add_argument("--dst", type=Path, required=True, metavar="FOLDER", help="the data set to make or to resume")

    frames = parser.add_argument_group("frames")
    shape = frames.add_mutually_exclusive_group()
    shape.add_argument(
        "--size",
        type=size,
        default="256x256",
        metavar="WxH",
        help="pixels, whatever the video's own shape, as the published few-shot frames are made; 'original' keeps it",
    )
    shape.add_argument(
        "--short_side",
        type=int,
        least=8,
        most=4096,
        metavar="PIXELS",
        help="pixels of the shorter side, the other one keeps the aspect; for networks trained on undistorted frames",
    )
    frames.add_argument(
        "--fps",
        type=float,
        default=0.0,
        least=0,
        most=MOST_FRAMES_PER_SECOND,
        help="frames to keep of a second of video; 0 keeps them all",
    )
    frames.add_argument("--image", choices=("jpg", "png"), default="jpg", help="png is exact and several times larger")
    frames.add_argument(
        "--quality",
        type=int,
        default=2,
        least=2,
        most=31,
        help="of jpg, as ffmpeg counts: 2 is best, 31 is smallest",
    )

    running = parser.add_argument_group("running")
    add_jobs(running, "ffmpeg processes at a time, a core each")
    running.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="do only the I-th of N equal parts (from 0), for job arrays; merge_manifests.py joins what they report",
    )
    running.add_argument(
        "--estimate",
        action="store_true",
        help=f"extract {SAMPLE} videos, say how much disk and time the rest needs, and stop",
    )
    running.add_argument(
        "--verify",
        action="store_true",
        help="extract nothing, check the frames of every finished video; the next run does the damaged ones again",
    )
    running.add_argument(
        "--allow_missing", action="store_true", help="end with code 0 even if videos are missing or failed (named, too)"
    )
    return parser


def add_jobs(group: Any, meaning: str) -> None:
    group.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), least=1, most=1024, help=meaning)


def main(parser: Parser, wanted: Wanted, argv: Sequence[str] | None) -> int:
    """Parses, extracts, reports. Exit code 0: all there; 1: something missing, failed or damaged; else as `exit_code`."""
    return exit_code(lambda: _run(parser.parse_args(arguments(argv)), wanted), resume=RESUME)


@contextmanager
def writing_to(dst: Path) -> Iterator[None]:
    """Turns what a disk refuses into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in NEVER_FITS:
            raise DiskFull(dst) from error
        raise UserError(f"could not work on {dst} ({error}); mend that and run the same command again") from error


def check_folders(src: Path, dst: Path) -> tuple[Path, Path]:
    """Both as absolute paths. Raises UserError when there is no `src` or one of them lies in the other."""
    if not src.is_dir():
        raise UserError(f"no folder at {src}: expected what to read, see --help")
    source, target = src.resolve(), dst.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"{dst} and {src} overlap, and what is read must stay as it is: give a --dst elsewhere")
    return source, target


def _run(args: argparse.Namespace, wanted: Wanted) -> int:
    args.src, dst = check_folders(args.src, args.dst)
    size = f"short:{args.short_side}" if args.short_side else args.size
    settings = Settings(size, args.fps, args.image, args.quality)
    videos = wanted(args)
    if not any(video.source for video in videos):
        raise UserError(f"no video of this split is in {args.src}: expected the unpacked download, see --help")
    if args.fps and (frames := next((v.source for v in videos if v.source and v.source.is_dir()), None)):
        raise UserError(f"--fps needs videos, and {frames} is a folder of frames, which has no rate: leave --fps out")
    index, shards = args.shard or (0, 1)
    part = f".shard-{index}-of-{shards}" if shards > 1 else ""
    videos = [video for video in videos if shard_of(video, shards) == index]
    missing = {video.folder: video.count for video in videos if video.source is None}
    videos = [video for video in videos if video.source]
    locks = alone(dst, "all", shared=shards > 1), alone(dst, f"part{part}")
    with writing_to(dst), locks[0], locks[1], unfinished(dst, f"part{part}") as work:
        extractor = Extractor(settings, dst, work)
        about = {"split": args.split, **vars(settings), "ffmpeg": extractor.version}
        with closing(Manifest(dst, part, about, missing)) as manifest:
            if args.verify:
                return _verify(videos, manifest, dst, part, args.jobs)
            _extract(videos, manifest, extractor, args.jobs, only_sample=args.estimate)
        if args.estimate:
            return 0
        entries = [manifest.entries[video.folder] for video in videos]
        return report(dst, part, entries, missing, allow_missing=args.allow_missing)


def _extract(videos: list[Video], manifest: Manifest, extractor: Extractor, jobs: int, *, only_sample: bool) -> None:
    todo = []
    for video in videos:
        done = manifest.entries.get(video.folder, {}).get("status")
        there = (extractor.dst / video.folder).exists()
        if there and not done:
            raise UserError(
                f"{extractor.dst}/{video.folder} is there and no manifest knows it, so it may be anything: "
                "remove it, or give another --dst"
            )
        if not (done == "ok" and there):
            todo.append(video)
    print(f"{len(videos):,} videos: {len(todo):,} to do")
    # A sample from all over the split comes first, so that disk and time are known before the long work.
    spread = todo[:: max(1, len(todo) // SAMPLE)][:SAMPLE]
    chosen = set(spread)
    rest = [video for video in todo if video not in chosen]
    started = time.monotonic()
    _install_all(spread, manifest, extractor, jobs)
    made = [entry for video in spread if (entry := manifest.entries[video.folder])["status"] == "ok"]
    if rest and made:
        _foretell(made, len(rest), (time.monotonic() - started) / len(spread), extractor.dst)
    if not only_sample:
        _install_all(rest, manifest, extractor, jobs)


def _install_all(videos: list[Video], manifest: Manifest, extractor: Extractor, jobs: int) -> None:
    for video, entry, folder in in_parallel(extractor, videos, jobs, doing="extract"):
        manifest.add(video.folder, **entry)
        if entry["status"] == "ok":
            install(folder, extractor.dst / video.folder)
        else:
            shutil.rmtree(folder)


def _foretell(made: list[dict[str, Any]], left: int, seconds: float, dst: Path) -> None:
    needed = left * sum(entry["bytes"] for entry in made) / len(made)
    free = shutil.disk_usage(dst).free
    print(f"the other {left:,} videos need about {needed / 1e9:,.1f} GB ({free / 1e9:,.1f} GB are free) ", end="")
    print(f"and {left * seconds / 3600:,.1f} hours on this machine")
    if needed > free:
        print("warning: they will not fit; a smaller --size, a higher --quality number, --fps or another disk help")


def _verify(videos: list[Video], manifest: Manifest, dst: Path, part: str, jobs: int) -> int:
    finished = [video.folder for video in videos if manifest.entries.get(video.folder, {}).get("status") == "ok"]

    def check(folder: str) -> tuple[str, str]:
        return folder, damage(dst / folder, manifest.entries[folder]["frames"])

    damaged = {folder: why for folder, why in in_parallel(check, finished, jobs, doing="verify") if why}
    for folder, why in damaged.items():
        manifest.add(folder, status="damaged", reason=why)
    _name(dst / f"damaged{part}.txt", [f"{folder}\t{why}" for folder, why in damaged.items()])
    print(f"{len(finished):,} finished videos checked: {len(damaged):,} damaged{_where(damaged, dst, 'damaged', part)}")
    return 1 if damaged else 0


def damage(folder: Path, frames: int) -> str:
    """What is wrong with a folder that should hold `frames` images, '' for nothing. Three of them are decoded."""
    try:
        names = frame_files(folder)
        if len(names) != frames:
            return f"{len(names)} frames where {frames} were written"
        check_whole(folder / name for name in names)
        for name in {names[0], names[frames // 2], names[-1]}:
            decode_image(file_content(folder / name), name)
    except (OSError, BadVideo) as error:
        return str(error)
    return ""


def report(
    dst: Path, part: str, entries: Iterable[Mapping[str, Any]], missing: Mapping[str, int], *, allow_missing: bool
) -> int:
    """Names what is missing or failed in files, says it in one line, and returns the exit code."""
    entries = list(entries)
    good = [entry for entry in entries if entry["status"] == "ok"]
    failed = [f"{entry['video']}\t{entry['reason']}" for entry in entries if entry["status"] != "ok"]
    _name(dst / f"missing{part}.txt", list(missing))
    _name(dst / f"failed{part}.txt", failed)
    _name(dst / f"damaged{part}.txt", [])  # what --verify had named is done again by now, or has failed
    frames, size = (sum(entry[key] for entry in good) for key in ("frames", "bytes"))
    print(
        f"{len(good):,} videos extracted ({frames:,} frames, {size / 1e9:,.2f} GB), "
        f"{sum(missing.values()):,} missing{_where(missing, dst, 'missing', part)}, "
        f"{len(failed):,} failed{_where(failed, dst, 'failed', part)}"
    )
    return 1 if (missing or failed) and not allow_missing else 0


def _where(named: Any, dst: Path, what: str, part: str) -> str:
    return f" (named in {dst}/{what}{part}.txt)" if named else ""


def name_failures(dst: Path, failures: Mapping[str, str]) -> int:
    """Writes <dst>/failed.txt for tools that go through all videos of a data set: prints how many, returns the code."""
    _name(dst / "failed.txt", [f"{video}\t{reason}" for video, reason in failures.items()])
    if failures:
        print(f"{len(failures):,} videos failed{_where(failures, dst, 'failed', '')}")
    return 1 if failures else 0


def _name(path: Path, lines: Sequence[str]) -> None:
    """Writes the lines, or takes away the file of an earlier run when there is nothing to name any more."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
