"""Numbers, seeds, files that are whole or not there, checkpoints, and the run folder."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils import (
    RunFolder,
    UserError,
    accuracy_interval,
    atomic_write,
    cos_sim,
    extract_class_indices,
    is_time,
    load_checkpoint,
    load_tensors,
    locked,
    printable,
    read_json,
    save_checkpoint,
    seed_everything,
    unknown_name,
    versions,
    write_csv,
    write_json,
)

# Numbers -------------------------------------------------------------------------------------------------------------


def test_interval_is_the_mean_and_1_96_standard_errors() -> None:
    mean, half_width = accuracy_interval([0.0, 50.0, 100.0, 100.0])
    # deviations -62.5 -12.5 37.5 37.5, sample variance 6875 / 3
    assert mean == 62.5
    assert half_width == pytest.approx(1.96 * (6875 / 3) ** 0.5 / 2)


def test_interval_of_equal_accuracies_is_zero_and_of_one_is_unknown() -> None:
    assert accuracy_interval([40.0, 40.0, 40.0]) == (40.0, 0.0)
    assert accuracy_interval([40.0]) == (40.0, float("inf"))


def test_interval_covers_the_truth_in_95_of_100_experiments() -> None:
    rng = np.random.default_rng(0)
    intervals = [accuracy_interval(rng.binomial(5, 0.6, size=400) * 20.0) for _ in range(1000)]
    covered = np.mean([abs(mean - 60) <= half_width for mean, half_width in intervals])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("every", "due"), [(3, [3, 6]), (1, [1, 2, 3, 4, 5, 6, 7]), (7, [7]), (8, []), (0, [])])
def test_it_is_time_after_every_so_many_tasks(every: int, due: list[int]) -> None:
    assert [done for done in range(8) if is_time(done, every)] == due


def test_seeding_repeats_every_generator_and_differs_between_keys() -> None:
    def draws(*key: int) -> tuple[float, float, float]:
        seed_everything(*key)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draws(3, 5) == draws(3, 5)
    for other in [(3, 6), (4, 5), (5, 3)]:
        assert all(a != b for a, b in zip(draws(3, 5), draws(*other), strict=True))


def test_cosine_has_epsilon_on_the_product_of_norms() -> None:
    x, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [-8.0, 6.0], [1.0, 0.0]])
    expected = torch.tensor([[25 / 25.01, 0.0, 3 / 5.01], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(cos_sim(x, y), expected)


def test_class_indices_are_the_positions_of_a_label() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1])
    assert extract_class_indices(labels, 1).tolist() == [0, 2, 4]
    assert extract_class_indices(labels, torch.tensor(7)).tolist() == []


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    message = str(unknown_name("backbone", "resnet81", ["resnet50", "resnet18", "conv4"]))
    assert message == (
        "unknown backbone 'resnet81': expected one of conv4, resnet18, resnet50; did you mean 'resnet18'?"
    )
    assert "did you mean" not in str(unknown_name("method", "zzzz", ["trx"]))


# Files that are whole or not there -----------------------------------------------------------------------------------


def test_a_write_that_fails_keeps_the_earlier_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")
    with contextlib.suppress(KeyError), atomic_write(path) as file:
        file.write(b"half")
        assert path.read_text() == "earlier"
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "earlier"


def test_a_write_to_a_place_that_refuses_is_a_user_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="could not write .*nowhere.*No such file"),
        atomic_write(tmp_path / "nowhere/f"),
    ):
        pass


def test_what_was_written_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    with atomic_write(tmp_path / "file") as file:
        file.write(b"content")
    assert events == ["sync", "rename"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_json_keeps_non_ascii_and_a_damaged_one_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_json(path, {"class": "überholen", "way": 5})
    assert "überholen" in path.read_text(encoding="utf-8")
    assert read_json(path) == {"class": "überholen", "way": 5}
    path.write_text('{"way": ')
    with pytest.raises(UserError, match="settings.json as JSON"):
        read_json(path)


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(
        path,
        {"model": {"w": torch.arange(600.0)}, "progress": {"tasks_done": 7, "best": 0.5}, "args": {}, "none": None},
    )
    return path


def test_names_that_are_not_utf_8_come_back_from_every_file(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80 \\")  # Latin-1, then UTF-8, then a backslash
    write_json(tmp_path / "n.json", {name: [name, "überholen"]})
    assert read_json(tmp_path / "n.json") == {name: [name, "überholen"]}
    assert "caf\\udce9 😀" in (tmp_path / "n.json").read_text(encoding="utf-8")  # each reader of JSON takes it
    write_csv(tmp_path / "n.csv", ["name"], [{"name": name}])
    assert (tmp_path / "n.csv").read_bytes() == b"name\r\n" + os.fsencode(name) + b"\r\n"
    assert printable(name) == "caf� 😀 \\"


def test_a_table_is_what_python_writes_row_by_row(tmp_path: Path) -> None:
    columns = ["task", "name", "value"]
    rows = [
        {"task": 1, "name": 'a, "b"', "value": 0.1},
        {"value": None, "task": 2, "further": "left out"},
        {"task": "", "name": "two\nlines"},
    ]
    expected = b'task,name,value\r\n1,"a, ""b""",0.1\r\n2,,\r\n,"two\nlines",\r\n'
    write_csv(tmp_path / "t.csv", columns, iter(rows))
    assert (tmp_path / "t.csv").read_bytes() == expected


def test_a_table_that_fails_halfway_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["n"], [{"n": 1}])
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "t.csv", ["n"], ({"n": 1 // n} for n in (1, 0)))
    assert (tmp_path / "t.csv").read_bytes() == b"n\r\n1\r\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoint_comes_back_and_loads_with_weights_only(saved: Path) -> None:
    for content in (load_checkpoint(saved), torch.load(saved, weights_only=True)):
        assert torch.equal(content["model"]["w"], torch.arange(600.0))
        assert content["progress"] == {"tasks_done": 7, "best": 0.5}


def test_a_checkpoint_cut_anywhere_is_a_user_error(saved: Path, tmp_path: Path) -> None:
    whole, cut = saved.read_bytes(), tmp_path / "cut.pt"
    for size in [*range(0, 64), *range(64, len(whole), 97)]:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut.pt"):
            load_checkpoint(cut)


def test_a_file_of_other_bytes_is_a_user_error(tmp_path: Path) -> None:
    path, rng = tmp_path / "other.pt", np.random.default_rng(0)
    for head in [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q", b"\x80\x04\x95", b"hello world", b"\xff\xd8\xff"]:
        for _ in range(30):
            path.write_bytes(head + rng.bytes(int(rng.integers(1, 200))))
            with pytest.raises(UserError, match="other.pt"):
                load_checkpoint(path)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "gift.pt", tmp_path / "victim"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"format": Malicious(victim)}))
    else:
        torch.save({"model": Malicious(victim)}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match="gift.pt was refused.*run code"):
        load_tensors(path)
    assert not victim.exists()


def test_a_state_dict_of_another_library_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    for content in ({"conv1.weight": torch.zeros(3)}, torch.zeros(3), {"format": "other/1"}):
        torch.save(content, path)
        with pytest.raises(UserError, match="resnet.pth is not a checkpoint of this library.*--pretrained_backbone"):
            load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(UserError, match=f"no checkpoint at {path}"):
            load_tensors(path)


# The run folder ------------------------------------------------------------------------------------------------------


def started(path: Path, **settings: Any) -> RunFolder:
    folder = RunFolder(path)
    folder.start(settings, ["run.py", "-c", "a b"])
    return folder


def test_nothing_is_written_before_the_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    folder.log("early")
    assert not (tmp_path / "new").exists()
    folder.start({"way": 5}, ["run.py", "-c", "a b"])
    assert json.loads((tmp_path / "new/args.json").read_text()) == {"way": 5}
    assert (tmp_path / "new/command.txt").read_text().endswith(" run.py -c 'a b'\n")
    assert (tmp_path / "new/log.txt").read_text().endswith("  early\n")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunFolder(tmp_path)
    with pytest.raises(UserError, match="thesis.tex is a file"):
        RunFolder(tmp_path / "thesis.tex")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not make the run folder .*Not a directory"):
        started(tmp_path / "file/run")


def test_a_run_is_not_started_over_and_nothing_is_not_gone_on_with(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run; add -r"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="nothing to resume.*leave out -r"):
        RunFolder(tmp_path / "absent", resume=True)


def test_a_folder_with_leftovers_of_a_killed_start_can_be_used_and_is_tidied(tmp_path: Path) -> None:
    (tmp_path / ".args.json.123.tmp").touch()
    started(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_rows_have_fixed_columns_and_can_be_taken_back(tmp_path: Path) -> None:
    folder = started(tmp_path)
    header = "tasks,split,loss,accuracy,ci95,learning_rate\r\n"
    folder.row(tasks=2, split="train", loss="0.5", accuracy="50.0", learning_rate=0.1)
    size = folder.rows_size()
    folder.row(tasks=4, split="val", accuracy="60.0", ci95="1.5")
    assert (tmp_path / "log.csv").read_bytes().decode() == f"{header}2,train,0.5,50.0,,0.1\r\n4,val,,60.0,1.5,\r\n"
    folder.rewind_rows(size)
    assert (tmp_path / "log.csv").read_bytes().decode() == f"{header}2,train,0.5,50.0,,0.1\r\n"
    folder.rewind_rows(0)
    assert (tmp_path / "log.csv").read_bytes().decode() == header
    with pytest.raises(AssertionError, match="no column"):
        folder.row(acuracy=3)


def test_a_run_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run folder .*caf\N{REPLACEMENT CHARACTER} has a name that is not UTF-8"):
        RunFolder(tmp_path / os.fsdecode(b"caf\xe9"))


def test_a_name_that_is_not_utf_8_is_logged_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = os.fsdecode(b"caf\xe9"), RunFolder(tmp_path / "run")
    folder.start({"dataset": name}, ["--dataset", name])
    folder.log(f"class {name} has no video")
    assert capsys.readouterr().out == "class caf\N{REPLACEMENT CHARACTER} has no video\n"
    assert b"class caf\xe9 has no video" in (tmp_path / "run/log.txt").read_bytes()
    assert b"caf\xe9" in (tmp_path / "run/command.txt").read_bytes()
    assert read_json(tmp_path / "run/args.json") == {"dataset": name}


def test_a_folder_that_does_not_write_leaves_no_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.start({}, ["run.py"])
    folder.log("line")
    folder.row(tasks=1)
    folder.scalars(1, train__loss=0.5)
    folder.picture(1, "picture", torch.zeros(3, 4, 4, dtype=torch.uint8))
    folder.rewind_rows(0)
    folder.retire("results.json")
    folder.open_board()
    folder.close()
    assert folder.rows_size() == 0
    assert not (tmp_path / "run").exists()


def test_retired_files_are_numbered_and_none_is_lost(tmp_path: Path) -> None:
    folder = started(tmp_path)
    for content in "abc":
        folder.retire("results.json")
        (tmp_path / "results.json").write_text(content)
    found = {path.name: path.read_text() for path in tmp_path.glob("results*")}
    assert found == {"results_1.json": "a", "results_2.json": "b", "results.json": "c"}


def test_versions_name_what_the_numbers_depend_on() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"python", "torchvision", "numpy", "pillow", "simplejpeg", "commit"} <= set(found)


# Locks ---------------------------------------------------------------------------------------------------------------


def count_up(folder: Path, times: int) -> int:
    """Adds to a number in a file, which another process does too."""
    for _ in range(times):
        with locked(folder / "work/lock", wait=True):
            number = int((folder / "number").read_text())
            time.sleep(0.0005)
            (folder / "number").write_text(str(number + 1))
    return 0


def test_one_process_at_a_time_holds_a_lock_and_its_file_goes(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(tmp_path, 100)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "number").read_text() == "300"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_shared_lock_goes_with_the_last_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True):
        with locked(path, shared=True), pytest.raises(BlockingIOError), locked(path):
            pass
        assert path.exists()
        with pytest.raises(BlockingIOError), locked(path):
            pass
    assert not path.exists()
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, shared=True):
            pass
        assert path.exists()
    assert not path.exists()
