"""VideoFile and LmdbStore: exact frames of generated videos, and of real footage where it is present."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset
from video_clips import decoded_by_ffmpeg, in_a_process, make_clip, turn

from clips import frame_sources
from clips.frame_sources import BadVideo, FrameFolder, LmdbStore, VideoFile
from data_prep import extract_folder, pack_lmdb

FOOTAGE = Path(__file__).parents[2] / "shared" / "data"
needs_footage = pytest.mark.skipif(not FOOTAGE.is_dir(), reason=f"no real footage at {FOOTAGE}")

LOSSLESS = ("-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast")
# Key frames every 5 frames and B-frames that look across them: where seeking goes wrong if it can.
OPEN_GOPS = ("-c:v", "libx264", "-bf", "3", "-x264-params", "keyint=5:min-keyint=5:scenecut=0:open-gop=1")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gops.mp4", OPEN_GOPS),
        ("gops.mkv", OPEN_GOPS),
        ("mpeg4.avi", ("-bf", "2", "-g", "7")),
        ("vp8.webm", ("-c:v", "libvpx", "-deadline", "realtime")),
        ("fragments.mp4", (*OPEN_GOPS, "-movflags", "frag_keyframe+empty_moov")),
        ("uneven.mkv", ("-vf", "setpts=N*N/TB/20", "-vsync", "passthrough", "-enc_time_base", "1:1000")),
        ("mpeg.mpg", ("-bf", "2", "-g", "6")),
    ],
)
def test_frames_are_those_of_decoding_the_whole_in_any_order_and_with_repeats(name, options, tmp_path):
    path = make_clip(tmp_path / name, *options, frames=24, rate=25)
    every = decoded_by_ffmpeg(path)
    video = VideoFile(path)
    assert video.num_frames == len(every) == 24
    for indices in ([0], [23], [7], [4, 5, 6], [22, 3, 3, 14], range(24)):
        np.testing.assert_array_equal(video.read(indices), every[list(indices)])
    assert len({frame.tobytes() for frame in every}) == 24


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path):
    whole = make_clip(tmp_path / "whole.mp4", "-g", "20", frames=40)
    cut = tmp_path / "cut.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "1.3", "-i", whole, "-c", "copy", cut], check=True)
    every = decoded_by_ffmpeg(cut)
    assert 25 < len(every) < 40
    assert VideoFile(cut).num_frames == len(every)
    np.testing.assert_array_equal(VideoFile(cut).read([0, len(every) - 1]), every[[0, -1]])


def test_only_what_is_needed_is_decoded(tmp_path):
    path = make_clip(tmp_path / "v.mp4", "-g", "10", frames=100)
    expected = VideoFile(path).read([2, 95])
    content = bytearray(path.read_bytes())
    middle = slice(len(content) * 3 // 10, len(content) * 6 // 10)
    content[middle] = bytes(middle.stop - middle.start)
    path.write_bytes(content)
    np.testing.assert_array_equal(VideoFile(path, num_frames=100).read([2, 95]), expected)
    with pytest.raises(BadVideo, match="can't be decoded|damaged"):
        VideoFile(path, num_frames=100).read(range(100))
    with pytest.raises(BadVideo, match="can't be decoded|damaged"):
        VideoFile(path).read([2])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(degrees, tmp_path):
    turned = turn(make_clip(tmp_path / "plain.mp4", *LOSSLESS), degrees, tmp_path / "turned.mov")
    frames = VideoFile(turned).read([0, 9])
    assert frames.shape == ((2, 48, 64, 3) if degrees == 180 else (2, 64, 48, 3))
    np.testing.assert_array_equal(frames, decoded_by_ffmpeg(turned)[[0, 9]])


def test_bad_files_are_named_with_the_cause(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not found" * 100)
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=d=1", tmp_path / "sound.mp4"], check=True)
    cut = make_clip(tmp_path / "cut.mp4", "-movflags", "faststart", frames=60, size="320x240")
    os.truncate(cut, cut.stat().st_size // 2)
    causes = {"empty.mp4": "is empty", "text.mp4": "Invalid data", "sound.mp4": "no video", "cut.mp4": "cut short"}
    for name, cause in causes.items():
        with pytest.raises(BadVideo, match=cause) as error:
            _ = VideoFile(tmp_path / name).num_frames
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(BadVideo, match="No such file"):
        VideoFile(tmp_path / "gone.mp4").read([0])
    with pytest.raises(BadVideo, match="cut.mp4"):
        VideoFile(cut).read([0, 59])


def test_a_frame_beyond_the_end_is_an_error(tmp_path):
    path = make_clip(tmp_path / "v.mp4")
    with pytest.raises(BadVideo, match="frame 11 was expected, decoding gives 10"):
        VideoFile(path).read([3, 10])


def test_odd_file_names(tmp_path):
    clip = make_clip(tmp_path / "v.mp4")
    for name in ("-a:b [c] %05d#é?.mp4", "http:x.mp4"):
        shutil.copy(clip, tmp_path / name)
        assert VideoFile(tmp_path / name).num_frames == 10


# ---------------------------------------------------------------------------------------------------------------------
# The same pixels from wherever


@pytest.fixture(scope="module")
def four_forms(tmp_path_factory) -> Path:
    """One data set as videos, PNG folders, and an LMDB of each."""
    root = tmp_path_factory.mktemp("forms")
    for label, frames in (("jump", 12), ("run", 9)):
        make_clip(root / "video" / "train" / label / "v 1.mkv", *LOSSLESS, frames=frames)
    flags = ["--image", "png", "--size", "original", "--jobs", "1"]
    assert extract_folder.main(["--src", f"{root}/video", "--dst", f"{root}/png", *flags]) == 0
    for form in ("video", "png"):
        assert pack_lmdb.main(["--src", f"{root}/{form}", "--dst", f"{root}/{form}_lmdb", "--jobs", "1"]) == 0
    return root


def test_folder_lmdb_and_video_give_identical_pixels(four_forms):
    for label, frames in (("jump", 12), ("run", 9)):
        sources = [
            FrameFolder(four_forms / "png" / "train" / label / "v 1"),
            VideoFile(four_forms / "video" / "train" / label / "v 1.mkv"),
            LmdbStore(four_forms / "png_lmdb" / "train.lmdb").video(label, "v 1"),
            LmdbStore(four_forms / "video_lmdb" / "train.lmdb").video(label, "v 1"),
        ]
        for source in sources:
            assert source.num_frames == frames
            np.testing.assert_array_equal(source.read([8, 0, 3, 3]), sources[0].read([8, 0, 3, 3]))


def test_the_index_lists_classes_and_videos(four_forms):
    index = LmdbStore(four_forms / "png_lmdb" / "train.lmdb").index
    assert index == {"kind": "images", "videos": {"jump": {"v 1": 12}, "run": {"v 1": 9}}}
    assert LmdbStore(four_forms / "video_lmdb" / "train.lmdb").index == {**index, "kind": "video"}


class Clips(Dataset):
    def __init__(self, store: LmdbStore) -> None:
        self.videos = [store.video(label, "v 1") for label in ("jump", "run")]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> np.ndarray:
        return self.videos[index % 2].read([index % 9])


def test_several_forked_workers_read_one_file(four_forms):
    store = LmdbStore(four_forms / "png_lmdb" / "train.lmdb")
    clips = Clips(store)
    here = [clips[index] for index in range(len(clips))]  # opened here first: workers must not use this handle
    loader = DataLoader(clips, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for read, expected in zip(loader, here, strict=True):
        np.testing.assert_array_equal(read, expected)
    assert frame_sources._ENVIRONMENTS
    assert in_a_process(lambda: len(frame_sources._ENVIRONMENTS)) == 0


def test_two_stores_of_one_file_and_pickling(four_forms):
    path = four_forms / "png_lmdb" / "train.lmdb"
    one, other = LmdbStore(path).video("run", "v 1"), LmdbStore(str(path)).video("run", "v 1")
    np.testing.assert_array_equal(one.read([1]), other.read([1]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).read([1]), other.read([1]))


def test_what_a_packed_set_does_not_hold_is_an_error(four_forms, tmp_path):
    store = LmdbStore(four_forms / "png_lmdb" / "train.lmdb")
    with pytest.raises(BadVideo, match="no video run/v 2"):
        store.video("run", "v 2").read([0])
    with pytest.raises(BadVideo, match="has 9 frames, but frame 10"):
        store.video("run", "v 1").read([0, 9])
    (tmp_path / "train.lmdb").write_bytes(b"no database" * 1000)
    with pytest.raises(BadVideo, match="no LMDB file"):
        _ = LmdbStore(tmp_path / "train.lmdb").index
    with pytest.raises(BadVideo, match="no LMDB file"):
        _ = LmdbStore(tmp_path / "gone.lmdb").index


# ---------------------------------------------------------------------------------------------------------------------
# Real footage

REAL = {
    "singles/ucf101__ApplyEyeMakeup__v_ApplyEyeMakeup_g01_c01.avi": 164,
    "singles/ucf101__BaseballPitch__v_BaseballPitch_g01_c01.avi": 107,
    "singles/ssv2__Poking_something_so_that_it_falls_over__id_166766.mp4": 49,
    "singles/unlabelled__mmaction2_rawvideo_part_0.mp4": 32,
    "odd/decord_unordered.mov": 4,
    "odd/decord_video_90.mov": 3,
    "odd/decord_video_180.mov": 3,
    "odd/decord_video_270.mov": 3,
    "odd/handgesture_demo.gif": 14,
    "odd/torchcodec_av1_video.mkv": 125,
    "odd/torchcodec_nasa_13013.mp4": 390,
    "exercise_typing/typing/typing44.mp4": 324,
}


@needs_footage
@pytest.mark.parametrize("name", REAL)
def test_frames_of_real_videos_are_those_of_ffmpeg(name):
    video = VideoFile(FOOTAGE / name)
    assert video.num_frames == REAL[name]
    if name.endswith("av1_video.mkv"):
        return  # not every ffmpeg program decodes AV1
    every = decoded_by_ffmpeg(FOOTAGE / name)
    for wanted in ([REAL[name] - 1, 0], [REAL[name] // 2], [min(3, REAL[name] - 1)]):
        np.testing.assert_array_equal(video.read(wanted), every[wanted])


@needs_footage
def test_a_truly_corrupt_video_is_named():
    video = VideoFile(FOOTAGE / "odd" / "decord_corrupted.mp4")
    with pytest.raises(BadVideo, match=r"decord_corrupted\.mp4 can't be decoded: Invalid data"):
        video.read(range(video.num_frames))


@needs_footage
def test_ten_bit_videos_are_read_in_eight():
    for name in ("torchcodec_h264_10bits.mp4", "torchcodec_h265_10bits.mp4"):
        assert VideoFile(FOOTAGE / "odd" / name).read([0, 29]).shape == (2, 200, 200, 3)
