"""The class lists under splits/: complete, disjoint and of the published sizes."""

import json
from itertools import combinations
from pathlib import Path

import pytest

SPLITS = Path(__file__).parents[1] / "splits"

# (classes, videos) of train, val and test, from the papers and the public list files.
PUBLISHED = {
    "ucf101_arn": [(70, 9154), (10, 1421), (21, 2745)],
    "hmdb51_arn": [(31, 4280), (10, 1194), (10, 1292)],
    "ssv2_otam": [(64, 67013), (12, 1926), (24, 2857)],
    "ssv2_cmn_small": [(64, 6400), (12, 1200), (24, 2400)],
    "kinetics_cmn": [(64, 6400), (12, 1200), (24, 2400)],
}


def classes_of(name: str) -> dict[str, dict[str, int]]:
    return json.loads((SPLITS / name / "classes.json").read_text(encoding="utf-8"))


def test_every_split_folder_is_checked_here_and_has_a_source():
    assert {folder.name for folder in SPLITS.iterdir() if folder.is_dir()} == set(PUBLISHED)
    for name, sizes in PUBLISHED.items():
        source = (SPLITS / name / "SOURCE.md").read_text(encoding="utf-8")
        for _, videos in sizes:
            assert f"{videos:,}" in source


@pytest.mark.parametrize("name", PUBLISHED)
def test_classes_and_videos_are_as_many_as_published(name):
    classes = classes_of(name)
    assert list(classes) == ["train", "val", "test"]
    assert [(len(part), sum(part.values())) for part in classes.values()] == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_class_is_in_two_parts_even_as_a_folder_name(name):
    parts = [{label.casefold().replace(" ", "_") for label in part} for part in classes_of(name).values()]
    assert [len(part) for part in parts] == [classes for classes, _ in PUBLISHED[name]]
    for one, other in combinations(parts, 2):
        assert one.isdisjoint(other)


@pytest.mark.parametrize(
    ("name", "part", "index", "label"),
    [
        ("ssv2_otam", "train", 0, "Bending something until it breaks"),
        ("ssv2_otam", "test", 23, "Tipping something over"),
        ("ssv2_cmn_small", "train", 0, "Pouring something into something"),
        ("kinetics_cmn", "test", 10, "hurling (sport)"),
    ],
)
def test_order_is_that_of_the_public_lists_which_write_indices(name, part, index, label):
    assert list(classes_of(name)[part])[index] == label


@pytest.mark.parametrize("name", PUBLISHED)
def test_classes_that_pretraining_has_seen_are_classes_of_both_lists(name):
    from torchvision.models._meta import _IMAGENET_CATEGORIES, _KINETICS400_CATEGORIES

    import backbones.torchvision_import  # noqa: F401  (before torchvision, beside a torch for CPUs)

    lists = {"kinetics400": _KINETICS400_CATEGORIES, "imagenet1k": _IMAGENET_CATEGORIES}
    test = classes_of(name)["test"]
    found = json.loads((SPLITS / name / "overlap.json").read_text(encoding="utf-8"))["pretraining"]
    assert found.keys() == lists.keys()
    for pretraining, overlap in found.items():
        assert overlap.keys() == {"source", "how", "classes"}
        assert list(overlap["classes"]) == [label for label in test if label in overlap["classes"]]
        for known in overlap["classes"].values():
            assert known
            assert set(known) <= set(lists[pretraining])


def test_a_split_of_kinetics_is_known_to_kinetics_as_a_whole():
    overlap = json.loads((SPLITS / "kinetics_cmn" / "overlap.json").read_text(encoding="utf-8"))["pretraining"]
    assert list(overlap["kinetics400"]["classes"]) == list(classes_of("kinetics_cmn")["test"])


def test_leaks_between_the_two_something_splits_are_as_the_docs_say():
    small, full = classes_of("ssv2_cmn_small"), classes_of("ssv2_otam")
    assert len(set(small["train"]) & set(full["test"])) == 9
    assert len(set(small["test"]) & set(full["train"])) == 7
