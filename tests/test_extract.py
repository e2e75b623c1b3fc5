"""Trees laid out and named as the downloads are go through the extract scripts; bad videos, kills and full disks too."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clips import in_a_process, make_clip, place, tree, turn

from clips.frame_sources import FrameFolder, VideoFile, frame_files
from data_prep import (
    annotate,
    extract,
    extract_folder,
    extract_hmdb51,
    extract_jester,
    extract_kinetics,
    extract_ssv1,
    extract_ssv2,
    extract_ucf101,
    make_demo_set,
    merge_manifests,
    pack_lmdb,
    shrink,
)

FRAMES = 10


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="session")
def avi(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.avi")


@pytest.fixture
def src(tmp_path) -> Path:
    return tmp_path / "down load %02d"


@pytest.fixture
def dst(tmp_path) -> Path:
    return tmp_path / "100%d 'data'"


@pytest.fixture
def mine(src, clip) -> Path:
    """A download of two classes with three videos each, for extract_folder."""
    place(clip, *(src / "train" / label / f"v{n}.mp4" for label in ("jump", "run") for n in range(3)))
    return src


def run(main, src, dst, *flags) -> int:
    return main(["--src", str(src), "--dst", str(dst), "--jobs", "2", *map(str, flags)])


def videos(dst: Path) -> dict[str, int]:
    """{folder: frames} of what lies in place."""
    return {name: len(frame_files(dst / name)) for name in extract.video_folders(dst)}


def manifest(dst: Path, name: str = "manifest.jsonl") -> dict[str, dict]:
    lines = [json.loads(line) for line in (dst / name).read_text().splitlines()]
    return {line["video"]: line for line in lines if "video" in line}


# ---------------------------------------------------------------------------------------------------------------------
# The data sets


def test_ucf101_joins_the_class_that_is_spelled_in_two_ways(src, dst, avi, capsys):
    place(
        avi,
        src / "HandstandPushups" / "v_HandStandPushups_g01_c01.avi",
        src / "Archery" / "v_Archery_g01_c01.avi",
        src / "Archery" / "._v_Archery_g01_c02.avi",
        src / "Archery" / "notes.txt",
        src / "Punch" / "v_Punch_g25_c07.avi",
    )
    assert run(extract_ucf101.main, src, dst) == 1
    assert videos(dst) == {
        "train/Archery/v_Archery_g01_c01": FRAMES,
        "val/HandstandPushups/v_HandStandPushups_g01_c01": FRAMES,
        "test/Punch/v_Punch_g25_c07": FRAMES,
    }
    missing = (dst / "missing.txt").read_text().splitlines()
    assert "val/HandstandPushups/(127 of 128 videos)" in missing
    assert len(missing) == 101
    assert f"{13320 - 3:,} missing" in capsys.readouterr().out
    assert run(extract_ucf101.main, src, dst, "--allow_missing") == 0
    assert Image.open(dst / "test/Punch/v_Punch_g25_c07/00001.jpg").size == (256, 256)


def test_ucf101_official_split(src, dst, avi):
    place(avi, src / "Archery" / "v_Archery_g01_c01.avi", src / "Archery" / "v_Archery_g08_c01.avi")
    lists = src.parent / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist02.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    assert run(extract_ucf101.main, src, dst, "--split", "official2") == 2
    assert run(extract_ucf101.main, src, dst, "--split", "official2", "--annotations", lists) == 0
    assert list(videos(dst)) == ["train/Archery/v_Archery_g08_c01", "test/Archery/v_Archery_g01_c01"]


ODD_NAMES = [
    "#20_Rhythm_clap_u_nm",
    "(a)[b]!&+;@~-x_clap",
    "-dash 'quote' \"two\" %05d",
    "a:b$c`d\\e*?",
    "été_v1.2_clap",
]


def test_hmdb51_with_every_odd_character(src, dst, avi):
    place(avi, *(src / "clap" / f"{name}.avi" for name in ODD_NAMES))
    assert run(extract_hmdb51.main, src, dst, "--allow_missing") == 0
    assert videos(dst) == {f"train/clap/{name}": FRAMES for name in sorted(ODD_NAMES)}


def test_hmdb51_official_split_leaves_the_unused_out(src, dst, avi):
    names = ["#a_clap.avi", "b c_clap.avi", "unused_clap.avi"]
    place(avi, *(src / "clap" / name for name in names))
    lists = src.parent / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "clap_test_split1.txt").write_text("#a_clap.avi 1 \nb c_clap.avi 2 \nunused_clap.avi 0 \n")
    assert run(extract_hmdb51.main, src, dst, "--split", "official1", "--annotations", lists) == 0
    assert list(videos(dst)) == ["train/clap/#a_clap", "test/clap/b c_clap"]


@pytest.fixture
def something(src, clip) -> Path:
    """Something-Something V2: a folder with videos, a folder with labels. Returns the labels."""
    webm = src / "1.webm"
    make_clip(webm, "-c:v", "libvpx", "-deadline", "realtime")
    place(webm, *(src / f"{number}.webm" for number in range(2, 7)))
    parts = {
        "train": {"1": "Closing [something]", "2": "Digging [something] out of [something]"},
        "validation": {
            "3": "Closing [something]",
            "4": "Digging [something] out of [something]",
            "5": "Scooping [something] up with [something]",
            "6": "Opening [something]",
        },
    }
    labels = src.parent / "labels"
    labels.mkdir()
    for part, templates in parts.items():
        items = [{"id": name, "label": "closing door", "template": text} for name, text in templates.items()]
        (labels / f"something-something-v2-{part}.json").write_text(json.dumps(items))
    return labels


def test_ssv2_otam_takes_train_classes_from_train_and_the_others_from_validation(src, dst, something):
    assert run(extract_ssv2.main, src, dst, "--annotations", something, "--allow_missing") == 0
    assert videos(dst) == {
        "train/Closing_something/1": FRAMES,
        "val/Scooping_something_up_with_something/5": FRAMES,
        "test/Digging_something_out_of_something/4": FRAMES,
    }


def test_ssv2_official_split(src, dst, something):
    assert run(extract_ssv2.main, src, dst, "--split", "official", "--annotations", something) == 0
    assert len(videos(dst)) == 6
    assert "val/Opening_something/6" in videos(dst)


def test_ssv2_small_by_list_with_names_or_indices(src, dst, something):
    lists = src.parent / "lists"
    lists.mkdir()
    (lists / "trainlist03.txt").write_text("Pouring something into something/1\n\ntrain1/2\n")
    (lists / "vallist03.txt").write_text("val0/3\n")
    (lists / "testlist03.txt").write_text("Opening something/4\nOpening something/999\n")
    flags = ("--split", "cmn_small", "--list", lists)
    assert run(extract_ssv2.main, src, dst, *flags) == 1
    assert list(videos(dst)) == [
        "train/Poking_a_stack_of_something_without_the_stack_collapsing/2",
        "train/Pouring_something_into_something/1",
        "val/Lifting_something_up_completely_without_letting_it_drop_down/3",
        "test/Opening_something/4",
    ]
    missing = (dst / "missing.txt").read_text().splitlines()
    assert "test/Opening_something/999" in missing
    assert "test/Opening_something/(98 of 100 videos are not listed)" in missing


def test_a_list_with_an_unknown_class_is_refused(src, dst, something, capsys):
    wrong = src.parent / "testlist03.txt"
    wrong.write_text("Openning something/4\n")
    assert run(extract_ssv2.main, src, dst, "--split", "cmn_small", "--list", wrong) == 2
    error = capsys.readouterr().err
    assert "'Openning something'" in error
    assert "'Opening something'" in error
    assert not (dst / "test").exists()


@pytest.mark.parametrize("module", [extract_ssv1, extract_jester])
def test_frames_of_the_20bn_sets_are_copied_as_they_are_or_scaled(module, src, dst, clip):
    for name in ("7", "8"):
        (src / name).mkdir(parents=True)
        subprocess.run(["ffmpeg", "-v", "error", "-i", clip, "%05d.jpg"], cwd=src / name, check=True)
    labels = src.parent / "csv"
    labels.mkdir()
    (labels / "jester-v1-train.csv").write_text("7;Swiping Left\n9;Swiping Left\n")
    (labels / "jester-v1-validation.csv").write_text("8;Thumb Up\n")
    assert run(module.main, src, dst, "--annotations", labels) == 1
    assert (dst / "missing.txt").read_text() == "train/Swiping_Left/9\n"
    for copied, name in (("train/Swiping_Left/7", "7"), ("val/Thumb_Up/8", "8")):
        assert [p.read_bytes() for p in sorted((dst / copied).iterdir())] == [
            p.read_bytes() for p in sorted((src / name).iterdir())
        ]
    split = src.parent / "mine.json"
    split.write_text('{"train": ["Thumb Up"], "test": ["Swiping left"]}')
    small = dst.parent / "small"
    flags = ("--annotations", labels, "--split", split, "--size", "32x24", "--allow_missing")
    assert run(module.main, src, small, *flags) == 0
    assert videos(small) == {"train/Thumb_Up/8": FRAMES, "test/Swiping_left/7": FRAMES}
    assert Image.open(small / "train/Thumb_Up/8/00010.jpg").size == (32, 24)


def test_kinetics_ids_with_dashes_and_underscores(src, dst, clip):
    place(
        clip,
        src / "val" / "air_drumming" / "-5A_B-c_dE__000010_000020.mp4",
        src / "hurling (sport)" / "_abcdefghi-.mp4",
        src / "_abcdefghiX_000001_000011.mp4",
    )
    lists = src.parent / "lists"
    lists.mkdir()
    (lists / "train.list").write_text(
        "air drumming/-5A_B-c_dE__000010_000020\nair drumming/-5A_B-c_dE__000030_000040\n"
    )
    (lists / "val.list").write_text("baking cookies/_abcdefghiX_000001_000011\n")
    (lists / "test.list").write_text("hurling (sport)/_abcdefghi-_000099_000109\n")
    assert run(extract_kinetics.main, src, dst, "--list", lists) == 1
    assert list(videos(dst)) == [
        "train/air_drumming/-5A_B-c_dE__000010_000020",
        "val/baking_cookies/_abcdefghiX_000001_000011",
        "test/hurling_(sport)/_abcdefghi-_000099_000109",
    ]
    assert "train/air_drumming/-5A_B-c_dE__000030_000040" in (dst / "missing.txt").read_text()


def test_kinetics_by_the_official_csv(src, dst, clip):
    place(clip, src / "train" / "-0abcdefghi_000000_000010.mp4", src / "val" / "zz_zzzzzzz-_000123_000133.mp4")
    lists = {"train.csv": "zumba,-0abcdefghi,0,10,train", "validate.csv": '"eating, fast",zz_zzzzzzz-,123,133,val'}
    for name, row in lists.items():
        (src.parent / name).write_text(f"label,youtube_id,time_start,time_end,split\n{row}\n")
    paths = [src.parent / name for name in lists]
    assert run(extract_kinetics.main, src, dst, "--split", "official", "--list", *paths) == 0
    assert list(videos(dst)) == ["train/zumba/-0abcdefghi_000000_000010", "val/eating,_fast/zz_zzzzzzz-_000123_000133"]
    paths[0].write_text("id,label\n")
    assert run(extract_kinetics.main, src, dst, "--split", "official", "--list", *paths) == 2


def test_folders_by_a_split_file_with_counts(src, dst, clip, capsys):
    place(clip, src / "big jump" / "a.mp4", src / "Run" / "b.mp4", src / "Run" / "c.mp4", src / "other" / "d.mp4")
    split = src.parent / "mine.json"
    split.write_text('{"train": {"Big Jump": 3}, "test": {"run": 1}}')
    assert run(extract_folder.main, src, dst, "--split", split) == 1
    assert list(videos(dst)) == ["train/Big_Jump/a", "test/run/b", "test/run/c"]
    assert (dst / "missing.txt").read_text() == "train/Big_Jump/(2 of 3 videos)\n"
    assert "'run' has 2 videos, the public split 1" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['["a"]', '{"training": ["a"]}', '{"train": ["a"], "test": ["A"]}', "{"])
def test_a_split_file_that_is_none_is_refused(content, mine, dst, capsys):
    split = mine.parent / "mine.json"
    split.write_text(content)
    assert run(extract_folder.main, mine, dst, "--split", split) == 2
    assert str(split) in capsys.readouterr().err


def test_two_videos_of_one_name_are_refused(mine, dst, clip, capsys):
    place(clip, mine / "train" / "jump" / "v0.mkv")
    assert run(extract_folder.main, mine, dst) == 2
    assert "v0.mkv" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The frames


@pytest.mark.parametrize(
    ("size", "flags", "expected"),
    [
        ("64x48", ("--short_side", 24), (32, 24)),
        ("48x64", ("--short_side", 24), (24, 32)),
        ("64x48", ("--size", "30x20"), (30, 20)),
        ("64x48", ("--size", "original"), (64, 48)),
    ],
)
def test_size_of_the_frames(size, flags, expected, src, dst):
    make_clip(src / "train" / "a" / "v.mp4", size=size)
    assert run(extract_folder.main, src, dst, *flags) == 0
    assert Image.open(dst / "train/a/v/00001.jpg").size == expected


def test_short_side_is_that_of_the_upright_frame(src, dst, clip):
    turn(clip, 90, src / "train" / "a" / "v.mov")
    assert run(extract_folder.main, src, dst, "--short_side", 24) == 0
    assert Image.open(dst / "train/a/v/00001.jpg").size == (24, 32)


def test_png_holds_the_pixels_that_reading_the_video_gives(src, dst, clip):
    place(clip, src / "train" / "a" / "v.mp4")
    assert run(extract_folder.main, src, dst, "--image", "png", "--size", "original") == 0
    every = np.arange(FRAMES)
    np.testing.assert_array_equal(FrameFolder(dst / "train/a/v").read(every), VideoFile(clip).read(every))


def test_fps_thins_out_and_quality_makes_smaller(mine, dst):
    assert run(extract_folder.main, mine, dst, "--fps", 5, "--quality", 31) == 0
    assert set(videos(dst).values()) == {FRAMES // 2}
    best = dst.parent / "best"
    run(extract_folder.main, mine, best, "--fps", 5)
    assert manifest(dst)["train/run/v0"]["bytes"] < manifest(best)["train/run/v0"]["bytes"]


def test_a_variable_frame_rate_gives_every_frame_once(src, dst):
    make_clip(
        src / "train" / "a" / "v.mp4", "-vf", "setpts=N*N/TB/20", "-vsync", "passthrough", "-enc_time_base", "1:1000"
    )
    assert run(extract_folder.main, src, dst) == 0
    assert videos(dst) == {"train/a/v": FRAMES}
    assert "complaints" not in manifest(dst)["train/a/v"]


def test_the_manifest_says_what_was_read_and_made(mine, dst):
    run(extract_folder.main, mine, dst)
    head = json.loads((dst / "manifest.jsonl").read_text().splitlines()[0])["settings"]
    assert head["size"] == "256x256"
    assert head["ffmpeg"][0].isalnum()
    entry = manifest(dst)["train/jump/v1"]
    assert (entry["status"], entry["frames"], entry["fps"]) == ("ok", FRAMES, 10.0)
    assert (entry["width"], entry["height"]) == (64, 48)
    assert entry["bytes"] == sum(path.stat().st_size for path in (dst / "train/jump/v1").iterdir())
    assert entry["source"] == str(mine / "train/jump/v1.mp4")


# ---------------------------------------------------------------------------------------------------------------------
# Bad videos


def test_bad_videos_fail_by_name_and_the_others_are_made(mine, dst, clip, capsys):
    bad = mine / "train" / "bad"
    bad.mkdir()
    (bad / "empty.mp4").touch()
    (bad / "text.avi").write_text("<html>not found</html>")
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=d=1", f"file:{bad}/sound.mp4"], check=True)
    whole = make_clip(bad / "cut.mp4", "-movflags", "faststart", frames=60, size="320x240")
    os.truncate(whole, whole.stat().st_size // 2)
    shutil.copy(whole, bad / "no_index.mp4")
    os.truncate(bad / "no_index.mp4", 500)
    assert run(extract_folder.main, mine, dst) == 1
    assert set(videos(dst)) == {f"train/{label}/v{n}" for label in ("jump", "run") for n in range(3)}
    failed = dict(line.split("\t") for line in (dst / "failed.txt").read_text().splitlines())
    assert failed["train/bad/empty"] == "the file is empty"
    assert failed["train/bad/sound"] == "it has no video stream"
    assert "cut short" in failed["train/bad/cut"]
    assert "Invalid data" in failed["train/bad/text"]
    assert "train/bad/no_index" in failed
    assert "5 failed" in capsys.readouterr().out
    assert run(extract_folder.main, mine, dst, "--allow_missing") == 0


def test_a_frame_that_was_cut_short_is_noticed(mine, dst, monkeypatch):
    real = shutil.which("ffmpeg")
    cut = f'{real} "$@"; for last; do :; done; truncate -s 99 "$(dirname "${{last#file:}}" | sed s/%%/%/)/00003.jpg"; exit 0'
    monkeypatch.setenv("PATH", wrapped_ffmpeg(dst.parent / "bin", at_call=3, do=cut))
    assert run(extract_folder.main, mine, dst, "--jobs", 1) == 1
    assert "ffmpeg wrote only a part of 00003.jpg" in (dst / "failed.txt").read_text()


def test_a_failed_video_is_tried_again(mine, dst, clip):
    (mine / "train/run/v0.mp4").write_bytes(b"")
    assert run(extract_folder.main, mine, dst) == 1
    place(clip, mine / "train/run/v0.mp4")
    assert run(extract_folder.main, mine, dst) == 0
    assert not (dst / "failed.txt").exists()
    assert videos(dst)["train/run/v0"] == FRAMES


def test_without_ffmpeg_the_error_says_how_to_get_it(mine, dst, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(extract_folder.main, mine, dst) == 2
    assert "apt install ffmpeg" in capsys.readouterr().err


def test_wrong_folders_are_refused(mine, dst, capsys):
    assert run(extract_folder.main, mine / "nothing", dst) == 2
    assert run(extract_folder.main, mine, mine / "train") == 2
    assert run(extract_ucf101.main, mine, dst) == 2
    assert "expected the unpacked download" in capsys.readouterr().err
    assert not dst.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def wrapped_ffmpeg(folder: Path, *, at_call: int, do: str) -> str:
    """A PATH on which ffmpeg counts its calls, which must come one by one, and runs the shell command `do` at one."""
    folder.mkdir()
    script = folder / "ffmpeg"
    real = shutil.which("ffmpeg")
    count = f'echo >> "{folder}/calls"; [ $(wc -l < "{folder}/calls") -eq {at_call} ] && {{ {do}; }}'
    script.write_text(f'#!/bin/sh\n{count}\nexec {real} "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_after_a_kill_in_the_middle_the_same_command_completes_it(mine, dst, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        # The first two calls ask for version and help; half of the frames are written when the kill comes.
        real = shutil.which("ffmpeg")
        kill = f'{real} "$@" -frames:v 5; kill -9 $PPID; exit'
        patch.setenv("PATH", wrapped_ffmpeg(dst.parent / "bin", at_call=6, do=kill))
        assert in_a_process(lambda: extract_folder.main(["--src", str(mine), "--dst", str(dst), "--jobs", "1"])) == -9
    before = videos(dst)
    assert 0 < len(before) < 6
    assert set(before.values()) == {FRAMES}
    assert any((dst / extract.UNFINISHED).rglob("*.jpg"))
    with open(dst / "manifest.jsonl", "a") as file:
        file.write('{"video": "train/run/v2", "sta')  # a line may be cut, too
    kept = (dst / next(iter(before)) / "00001.jpg").stat().st_mtime_ns
    assert run(extract_folder.main, mine, dst) == 0
    assert f"6 videos: {6 - len(before)} to do" in capfd.readouterr().out
    assert (dst / next(iter(before)) / "00001.jpg").stat().st_mtime_ns == kept
    whole = dst.parent / "whole"
    run(extract_folder.main, mine, whole)
    assert tree(dst) == tree(whole)
    assert not any((dst / extract.UNFINISHED).rglob("*.jpg"))
    assert len(manifest(dst)) == 6


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(src, dst, clip, capfd):
    place(clip, *(src / "train" / "a" / f"{n}.mp4" for n in range(3)))
    make_clip(src / "train" / "b" / "large.mp4", size="640x480")

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        return extract_folder.main(["--src", str(src), "--dst", str(dst), "--size", "original", "--jobs", "1"])

    assert in_a_process(limited) == 2
    assert "full" in capfd.readouterr().err
    assert videos(dst) == {f"train/a/{n}": FRAMES for n in range(3)}
    assert run(extract_folder.main, src, dst, "--size", "original") == 0
    assert videos(dst)["train/b/large"] == FRAMES


def test_a_second_process_is_turned_away(mine, dst, capsys):
    with extract.alone(dst, "all"):
        assert run(extract_folder.main, mine, dst) == 2
        assert run(extract_folder.main, mine, dst, "--shard", "0/2") == 2
    assert "another process" in capsys.readouterr().err
    assert run(extract_folder.main, mine, dst) == 0


def test_no_lock_stays_when_the_work_is_done(src, dst, clip, tmp_path):
    place(clip, *(src / "train" / "a" / f"{n}.mp4" for n in range(2)))
    src_and_dst = ["--src", str(src), "--jobs", "1", "--dst"]
    for flags in ([], ["--verify"], ["--fps", "5"]):
        extract_folder.main([*src_and_dst, str(dst), *flags])
    for shard in range(2):
        assert run(extract_folder.main, src, tmp_path / "parts", "--shard", f"{shard}/2") == 0
    assert merge_manifests.main([str(tmp_path / "parts")]) == 0
    assert pack_lmdb.main([*src_and_dst, str(tmp_path / "packed")]) == 0
    frames = ["--src", str(dst), "--jobs", "1", "--dst"]
    assert shrink.main([*frames, str(tmp_path / "small"), "--frames", "2"]) == 0
    assert annotate.main(["write", "--src", str(dst), "--dst", str(tmp_path / "lists")]) == 0
    lists = ["--list", str(tmp_path / "lists/train.txt"), "--root", str(dst)]
    assert annotate.main(["read", *lists, "--dst", str(tmp_path / "links")]) == 0
    for folder in (dst, *(tmp_path / name for name in ("parts", "packed", "small", "links"))):
        assert folder.is_dir()
        assert not (folder / extract.UNFINISHED).exists(), folder
    # What a killed process has left goes with the next one's.
    (dst / extract.UNFINISHED / "part" / "half").mkdir(parents=True)
    (dst / extract.UNFINISHED / "all.lock").touch()
    assert run(extract_folder.main, src, dst) == 0
    assert not (dst / extract.UNFINISHED).exists()


def test_other_settings_are_not_mixed_into_a_data_set(mine, dst, capsys):
    run(extract_folder.main, mine, dst)
    assert run(extract_folder.main, mine, dst, "--short_side", 32) == 2
    assert "256x256" in capsys.readouterr().err


def test_a_folder_that_no_manifest_knows_is_not_taken_for_finished(mine, dst, capsys):
    (dst / "train/run/v0").mkdir(parents=True)
    assert run(extract_folder.main, mine, dst) == 2
    assert "train/run/v0" in capsys.readouterr().err


def test_verify_finds_damage_and_the_next_run_mends_it(mine, dst, capsys):
    run(extract_folder.main, mine, dst)
    assert run(extract_folder.main, mine, dst, "--verify") == 0
    os.truncate(dst / "train/jump/v0/00003.jpg", 100)
    (dst / "train/jump/v1/00010.jpg").unlink()
    middle = dst / "train/jump/v2/00006.jpg"
    middle.write_bytes(middle.read_bytes()[:20] + b"\xff\xd9")
    shutil.rmtree(dst / "train/run/v0")
    assert run(extract_folder.main, mine, dst, "--verify") == 1
    damaged = dict(line.split("\t") for line in (dst / "damaged.txt").read_text().splitlines())
    assert set(damaged) == {"train/jump/v0", "train/jump/v1", "train/jump/v2", "train/run/v0"}
    assert "00003.jpg is cut short" in damaged["train/jump/v0"]
    assert run(extract_folder.main, mine, dst) == 0
    assert run(extract_folder.main, mine, dst, "--verify") == 0
    assert set(videos(dst).values()) == {FRAMES}
    assert not (dst / "damaged.txt").exists()


def test_shards_share_the_work_and_their_manifests_merge(mine, dst, capsys):
    (mine / "train/run/v2.mp4").write_bytes(b"")
    done = []
    for shard in range(3):
        run(extract_folder.main, mine, dst, "--shard", f"{shard}/3")
        done.append(set(manifest(dst, f"manifest.shard-{shard}-of-3.jsonl")))
        if shard == 1:
            assert merge_manifests.main([str(dst)]) == 2
            assert "shard 2 has left no manifest" in capsys.readouterr().err
    assert sum(map(len, done)) == len(set.union(*done)) == 6
    assert min(map(len, done)) >= 1
    assert merge_manifests.main([str(dst)]) == 1
    assert merge_manifests.main([str(dst)]) == 2
    assert len(manifest(dst)) == 6
    assert (dst / "failed.txt").read_text() == "train/run/v2\tthe file is empty\n"
    assert not list(dst.glob("*shard*"))
    shutil.copy(mine / "train/run/v0.mp4", mine / "train/run/v2.mp4")
    assert run(extract_folder.main, mine, dst) == 0


def test_merged_missing_videos_are_those_of_the_last_run(src, dst, clip, capsys):
    place(clip, src / "a" / "1.mp4")
    split = src.parent / "mine.json"
    split.write_text('{"train": {"a": 3}}')
    for _ in range(2):
        for shard in range(2):
            run(extract_folder.main, src, dst, "--split", split, "--shard", f"{shard}/2")
        place(clip, src / "a" / "2.mp4")
    assert merge_manifests.main([str(dst)]) == 1
    assert "2 videos extracted" in (out := capsys.readouterr().out)
    assert out.rstrip().splitlines()[-1].count("1 missing") == 1


def test_estimate_makes_a_sample_and_foretells_the_rest(src, dst, clip, capsys):
    place(clip, *(src / "train" / "a" / f"{n:02d}.mp4" for n in range(20)))
    assert run(extract_folder.main, src, dst, "--estimate") == 0
    assert len(videos(dst)) == extract.SAMPLE
    assert "the other 12 videos need about 0.0 GB" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# The command line


WRONG = [
    ("--size", "256"),
    ("--size", "0x5"),
    ("--shard", "3/3"),
    ("--quality", "1"),
    ("--jobs", "0"),
    ("--fps", "nan"),
    ("--short_side", "7"),
    ("--short_side", "64", "--size", "64x64"),
    ("--frames", "8"),
]


@pytest.mark.parametrize("flags", WRONG, ids=" ".join)
def test_a_wrong_flag_is_one_sentence(flags, mine, dst, capsys):
    assert run(extract_folder.main, mine, dst, *flags) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert flags[0] in err
    assert not dst.exists()


def test_every_script_answers_a_wrong_flag_and_ctrl_c_alike(mine, tmp_path, capsys, monkeypatch):
    src_and_dst = ["--src", str(mine), "--dst", str(tmp_path / "new")]
    commands = {
        extract_folder: src_and_dst,
        pack_lmdb: src_and_dst,
        shrink: [*src_and_dst, "--frames", "2"],
        annotate: ["write", *src_and_dst],
        merge_manifests: [str(mine)],
        make_demo_set: [str(tmp_path / "new")],
    }

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for module, words in commands.items():
        assert module.main([*words, "--colour"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: unrecognized arguments: --colour; see python ")
        with monkeypatch.context() as patch:
            patch.setattr(module, {extract_folder: "labelled", annotate: "write"}.get(module, "run"), interrupted)
            assert module.main(words) == 130
        assert capsys.readouterr().err == "stopped: the same command resumes from here\n"


def test_scripts_run_from_anywhere(tmp_path):
    script = Path(extract_kinetics.__file__)
    done = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "merge_manifests.py" in done.stdout
    assert "--array" in done.stdout
