"""What is lost in a video is told, what only looks odd plays, and reading a video and extracting it agree on which is which."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from video_clips import cut, decoded_by_ffmpeg, in_a_process, make_clip, place

from clips import frame_sources
from clips.frame_sources import BadVideo, FrameFolder, LmdbStore, VideoFile, is_whole
from clips.listing import count_frames, frames_in_folder
from clips.video_split import Split
from data_prep import extract_folder, pack_lmdb
from utils import UserError

OPEN_GOPS = "keyint=8:min-keyint=8:scenecut=0:open-gop=1:bframes=3:b-adapt=0"
KINDS = {
    "mpeg4.avi": ("-bf", "2"),
    "h264.mkv": ("-c:v", "libx264"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime"),
    "stream.mpg": ("-c:v", "libx264", "-f", "mpegts"),
    "mpeg1.mpg": ("-r", "25"),
    "flash.flv": (),
    "windows.wmv": (),
    "quick.mov": ("-c:v", "libx264", "-movflags", "faststart"),
    "fragments.mp4": ("-c:v", "libx264", "-g", "5", "-movflags", "frag_keyframe+empty_moov"),
    "picture.gif": (),
}


@contextmanager
def seconds_at_most(seconds: int) -> Iterator[None]:
    """Stops what waits for ever."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def extracted(src: Path, dst: Path) -> tuple[set[str], dict[str, str]]:
    """(names of the videos that were made, {name: reason} of those that failed)."""
    extract_folder.main(["--src", str(src), "--dst", str(dst), "--jobs", "1", "--size", "original"])
    failed = dst / "failed.txt"
    rows = [line.split("\t") for line in failed.read_text().splitlines()] if failed.exists() else []
    return {path.name for path in (dst / "train" / "a").glob("*")}, {name.split("/")[-1]: why for name, why in rows}


def damage(video: Path, path: Path) -> Path:
    """Copies a video with a few bytes in its middle overwritten."""
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(range(40))
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def test_cut_and_damaged_videos_are_named_alike_by_reading_extracting_and_packing(tmp_path):
    videos = tmp_path / "src" / "train" / "a"
    for name, options in KINDS.items():
        whole = make_clip(videos / f"whole_{name}", *options, frames=20)
        cut(whole, videos / f"cut_{name}")
    damage(videos / "whole_mpeg4.avi", videos / "hit_mpeg4.avi")
    damage(videos / "whole_quick.mov", videos / "hit_quick.mov")
    reasons = {}
    for path in videos.iterdir():
        try:
            assert VideoFile(path).num_frames == 20
        except BadVideo as error:
            reasons[path.stem] = str(error)
    assert all(f"{videos}/{name}." in reason for name, reason in reasons.items())
    assert set(reasons) == {path.stem for path in videos.iterdir() if not path.name.startswith("whole_")}
    assert "cut short" in reasons["cut_h264"]
    assert "of its 20 frames are damaged" in reasons["hit_mpeg4"]

    made, failed = extracted(tmp_path / "src", tmp_path / "dst")
    assert made == {path.stem for path in videos.iterdir()} - set(reasons)
    assert set(failed) == set(reasons)
    assert all(failed[name] in reasons[name] for name in reasons)
    assert pack_lmdb.main(["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/lmdb", "--jobs", "1"]) == 1
    not_packed = dict(line.split("\t") for line in (tmp_path / "lmdb" / "failed.txt").read_text().splitlines())
    assert {name.split("/")[-1] for name in not_packed} == set(reasons)


def test_an_avi_without_its_index_has_lost_nothing(tmp_path):
    whole = make_clip(tmp_path / "whole.avi", frames=20)
    content = whole.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: content.index(b"idx1") + 30])
    every = VideoFile(whole).read(range(20))
    np.testing.assert_array_equal(VideoFile(tmp_path / "cut.avi").read(range(20)), every)


def test_a_header_that_promises_more_than_comes_is_believed(tmp_path):
    avi = make_clip(tmp_path / "v.avi", frames=20)
    content = bytearray(avi.read_bytes())
    length = content.index(b"strh") + 8 + 32  # dwLength of the stream header
    content[length : length + 4] = (23).to_bytes(4, "little")
    avi.write_bytes(content)
    with pytest.raises(BadVideo, match="claims 23 frames, decoding gives 20"):
        _ = VideoFile(avi).num_frames
    content[length : length + 4] = (22).to_bytes(4, "little")  # so little is lost to an honest cut
    avi.write_bytes(content)
    assert VideoFile(avi).num_frames == 20
    mkv = make_clip(tmp_path / "v.mkv", frames=20)
    content = bytearray(mkv.read_bytes())
    duration = content.index(b"\x44\x89\x88") + 3  # the element Duration, a float of 8 bytes, in milliseconds
    content[duration : duration + 8] = np.array(2500, ">f8").tobytes()
    mkv.write_bytes(content)
    with pytest.raises(BadVideo, match=r"claims 2\.50 seconds, 2\.00 came"):
        _ = VideoFile(mkv).num_frames


# ---------------------------------------------------------------------------------------------------------------------
# Odd, but whole


def test_packets_that_give_no_frame_do_not_count(tmp_path):
    whole = make_clip(
        tmp_path / "whole.mkv", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", OPEN_GOPS, frames=24
    )
    # The first frames behind the cut need the group before it.
    half = tmp_path / "src" / "train" / "a" / "half.mkv"
    half.parent.mkdir(parents=True)
    subprocess.run(["ffmpeg", "-v", "error", "-i", whole, "-ss", "0.95", "-c", "copy", half], check=True)
    # VP8 hides pictures that others are made of.
    two = (
        "-c:v",
        "libvpx",
        "-b:v",
        "100k",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "16",
        "-passlogfile",
        f"{tmp_path}/log",
    )
    for turn in ("1", "2"):
        hidden = make_clip(half.parent / "hidden.webm", *two, "-pass", turn, frames=60)
    for video, frames in ((half, 8), (hidden, 60)):
        with frame_sources.av.open(os.fspath(video)) as container:
            assert sum(packet.size > 0 for packet in container.demux(video=0)) > frames
        every = decoded_by_ffmpeg(video)
        assert VideoFile(video).num_frames == len(every) == frames
        for indices in ([0], [frames - 1, 2], [frames // 2], range(frames)):
            np.testing.assert_array_equal(VideoFile(video).read(indices), every[list(indices)])
    np.testing.assert_array_equal(VideoFile(half).read(range(8)), VideoFile(whole).read(range(16, 24)))
    assert extracted(tmp_path / "src", tmp_path / "dst") == ({"half", "hidden"}, {})
    assert FrameFolder(tmp_path / "dst" / "train" / "a" / "half").num_frames == 8


def test_titles_in_any_encoding_do_not_matter(tmp_path):
    odd = make_clip(tmp_path / "src" / "train" / "a" / "odd.avi", "-metadata", os.fsdecode(b"title=caf\x8e \x8c"))
    assert b"caf\x8e \x8c" in odd.read_bytes()
    assert VideoFile(odd).read(range(10)).shape == (10, 48, 64, 3)
    assert VideoFile(odd).seconds == pytest.approx(1)
    assert extracted(tmp_path / "src", tmp_path / "dst") == ({"odd"}, {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ten_bits.mkv", ("-c:v", "libx264", "-pix_fmt", "yuv420p10le")),
        ("interlaced.mpg", ("-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-top", "1")),
        ("hd.mp4", ("-vf", "scale=out_color_matrix=bt709,format=yuv420p", "-colorspace", "bt709")),
        ("full.mp4", ("-vf", "scale=out_range=full,format=yuvj420p")),
        ("422.mkv", ("-c:v", "libx264", "-pix_fmt", "yuv422p")),
    ],
)
def test_colours_are_those_of_ffmpeg(name, options, tmp_path):
    video = make_clip(tmp_path / name, *options)
    np.testing.assert_array_equal(VideoFile(video).read(range(10)), decoded_by_ffmpeg(video))


def test_jpegs_of_an_hd_video_have_its_colours(tmp_path):
    green = "drawbox=c=0x20c040:t=fill:w=64:h=48,scale=out_color_matrix=bt709,format=yuv420p"
    for name, flags in (("original", ("--size", "original")), ("small", ("--size", "32x24"))):
        src = tmp_path / name
        video = make_clip(src / "train" / "a" / "v.mp4", "-vf", green, "-colorspace", "bt709", frames=2)
        assert np.abs(VideoFile(video).read([0]).astype(int) - (0x20, 0xC0, 0x40)).max() <= 4
        flags = ("--jobs", "1", *flags)
        assert extract_folder.main(["--src", str(src), "--dst", f"{src}_out", *flags]) == 0
        frame = FrameFolder(f"{src}_out/train/a/v").read([0])
        assert np.abs(frame.astype(int) - (0x20, 0xC0, 0x40)).max() <= 6


# ---------------------------------------------------------------------------------------------------------------------
# One video's failure


def test_whatever_goes_wrong_in_a_video_is_its_own_failure(tmp_path, monkeypatch):
    videos = tmp_path / "src" / "train" / "a"
    clip = make_clip(videos / "good.mp4")
    place(clip, videos / "strange.mp4")
    real = frame_sources.best_video_stream

    def stumble(container):
        if "strange" in container.name:
            raise KeyError("no such thing")
        return real(container)

    monkeypatch.setattr(frame_sources, "best_video_stream", stumble)
    with pytest.raises(BadVideo, match=r"strange\.mp4 can't be decoded: KeyError: 'no such thing'"):
        _ = VideoFile(videos / "strange.mp4").num_frames
    made, failed = extracted(tmp_path / "src", tmp_path / "dst")
    assert made == {"good"}
    assert "KeyError" in failed["strange"]
    assert pack_lmdb.main(["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/lmdb", "--jobs", "1"]) == 1

    def no_memory(container):
        raise MemoryError

    monkeypatch.setattr(frame_sources, "best_video_stream", no_memory)
    with pytest.raises(MemoryError):
        _ = VideoFile(clip).num_frames


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    videos = tmp_path / "src" / "train" / "a"
    for name in ("good", "bad"):
        make_clip(videos / name / "%05d.jpg", frames=3)
    (videos / "bad" / "00002.jpg").unlink()
    os.mkfifo(videos / "bad" / "00002.jpg")
    os.mkfifo(tmp_path / "pipe.mp4")
    with seconds_at_most(60):
        with pytest.raises(BadVideo, match=r"pipe\.mp4 is a pipe"):
            _ = VideoFile(tmp_path / "pipe.mp4").num_frames
        with pytest.raises(BadVideo, match=r"bad/00002\.jpg is a pipe"):
            FrameFolder(videos / "bad").read([1])
        made, failed = extracted(tmp_path / "src", tmp_path / "dst")
        assert made == {"good"}
        assert "00002.jpg is a pipe" in failed["bad"]
        assert pack_lmdb.main(["--src", f"{tmp_path}/src", "--dst", f"{tmp_path}/lmdb", "--jobs", "1"]) == 1
        assert "00002.jpg is a pipe" in (tmp_path / "lmdb" / "failed.txt").read_text()
    (videos / "good" / "00003.jpg").unlink()
    (videos / "good" / "00003.jpg").symlink_to("00003.jpg")
    with pytest.raises(BadVideo, match=r"00003\.jpg could not be read \(Too many levels of symbolic links\)"):
        FrameFolder(videos / "good").read([2])


def test_too_many_open_files_are_no_videos_failure(tmp_path, monkeypatch):
    videos = tmp_path / "src" / "train" / "a"
    make_clip(videos / "v.mp4")
    make_clip(videos / "w" / "%05d.jpg", frames=3)
    place(videos / "v.mp4", tmp_path / "files" / "train" / "a" / "v.mp4")
    assert pack_lmdb.main(["--src", f"{tmp_path}/files", "--dst", f"{tmp_path}/lmdb", "--jobs", "1"]) == 0
    folder, names = FrameFolder(videos / "w"), FrameFolder(videos / "w").names
    attempts = {
        "a video file": lambda: VideoFile(videos / "v.mp4").num_frames,
        "its decoder": lambda: VideoFile(videos / "v.mp4").num_frames,
        "a folder": lambda: folder.num_frames,
        "an image": lambda: FrameFolder(folder.path, names).read([0]),
        "a packed video": lambda: LmdbStore(tmp_path / "lmdb" / "train.lmdb").index,
        "a listing": lambda: Split.open(tmp_path / "files", "train", format="video", on_bad_video="skip"),
        "a count": lambda: count_frames(tmp_path, {"a": {"w": folder.path}}, frames_in_folder),
        "packing": lambda: pack_lmdb.packed(videos / "w"),
    }

    def with_no_file_left() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        wrong = []
        for name, attempt in attempts.items():
            with monkeypatch.context() as patch:
                if name == "its decoder":
                    patch.setattr(frame_sources, "open_file", lambda path: io.BytesIO(b"content"))
                try:
                    wrong.append(f"{name}: {attempt()}")
                except UserError as error:
                    if "raise 'ulimit -n', or lower --num_workers" not in str(error):
                        wrong.append(f"{name}: {error}")
                except Exception as error:
                    wrong.append(f"{name}: {error!r}")
        os.close(taken.pop())
        (tmp_path / "wrong").write_text("\n".join(wrong))
        return 0

    assert in_a_process(with_no_file_left) == 0
    assert (tmp_path / "wrong").read_text() == ""


def test_the_content_says_what_a_whole_image_is_not_the_suffix(tmp_path):
    png = make_clip(tmp_path / "1.png", frames=1)
    png.rename(tmp_path / "1.jpg")
    assert is_whole(tmp_path / "1.jpg")
    assert not is_whole(cut(tmp_path / "1.jpg", tmp_path / "2.jpg"))
