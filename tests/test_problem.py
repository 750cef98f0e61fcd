"""The description of a problem: where it is found, what it may say, and how it travels."""

import json

import pytest
from bins import add_thirty_bins, bring

from bincount.data import assembly, bins, snapshots
from bincount.errors import SettingsError
from bincount.problem import BINS, PICTURES, Classes, Problem, read_description
from bincount.settings import DataConfig, ImageConfig, TrainConfig
from bincount.training.spec import ModelSpec, read_spec, write_spec

BOXES = """
noun = "box"
nouns = "boxes"
purpose = "Says in which condition a box is"
answer = "condition"
classes = ["intact", "damaged"]
positive = "damaged"
licence = "The photos are drawn."
limits = ["Nothing can be said about the sides that the photo does not show."]
"""


def write(folder, text=BOXES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problem.toml").write_text(text)
    return folder / "problem.toml"


def test_a_description_beside_the_pictures_is_found_and_gives_classes_and_words(tmp_path):
    write(tmp_path / "photos")
    data = DataConfig(source=str(tmp_path / "photos"))

    assert data.class_set == Classes(names=("intact", "damaged"), ordered=False)
    assert (data.description.noun, data.description.nouns) == ("box", "boxes")
    assert data.description.positive_label(data.class_set) == 1


def test_a_description_elsewhere_is_named_and_comes_before_the_one_beside_the_pictures(tmp_path):
    write(tmp_path / "photos")
    other = write(tmp_path / "other", 'noun = "part"\nclasses = "good,bad,worse"')
    data = DataConfig(source=str(tmp_path / "photos"), problem=other)

    assert (data.description.nouns, data.classes) == ("parts", "good,bad,worse")


def test_classes_that_are_set_come_before_those_of_the_description(tmp_path):
    write(tmp_path / "photos")
    assert DataConfig(source=str(tmp_path / "photos"), classes="damaged,intact").classes == "damaged,intact"


def test_without_a_description_counts_are_of_bins_and_names_of_pictures(tmp_path):
    assert DataConfig().classes == "0..5"
    assert DataConfig().description == BINS
    assert DataConfig(source=str(tmp_path), classes="good,bad").description == PICTURES


def test_of_two_named_classes_the_second_is_positive_unless_said_and_counts_have_no_positive_one():
    assert Problem().positive_label(Classes.parse("good,bad")) == 1
    assert Problem(positive="good").positive_label(Classes.parse("good,bad")) == 0
    assert Problem().positive_label(Classes.parse("good,bad,worse")) is None
    assert Problem().positive_label(Classes.parse("0..1")) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("noun = box", r"problem.toml is not valid TOML \(.*\); correct it there"),
        ('noum = "box"', r"problem.toml: a description has no noum; did you mean noun\?; it may have noun, nouns"),
        ('noun = ""', r"problem.toml: noun: string should have at least 1 character; correct it there"),
        ('limits = "One."', r"problem.toml: limits takes a list of sentences, as in limits = \["),
        ('classes = ["one"]', r"problem.toml: classes: 'one' names fewer than two classes"),
        ('classes = ["a", "a"]', r"problem.toml: classes: class names must be distinct"),
        (BOXES.replace('"damaged"\n', '"torn"\n'), r"positive: torn is none of the classes intact, damaged; name one"),
    ],
)
def test_a_description_that_cannot_be_names_the_file_and_what_to_do(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=said):
        DataConfig(source=str(tmp_path))
    with pytest.raises(SettingsError, match=said):
        DataConfig(problem=path)


def test_a_description_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match=r"no description of a problem at .*no.toml; correct --problem"):
        DataConfig(problem=tmp_path / "no.toml")


def test_a_snapshot_keeps_the_words_and_takes_those_of_a_later_prepare(tmp_path):
    add_thirty_bins(tmp_path / "bucket")
    bring(tmp_path / "bucket", tmp_path)
    classes = Classes.parse("0..5")
    rows = assembly.build(tmp_path, bins.read(tmp_path), classes, "drawn").read()
    first = snapshots.freeze(rows, classes, "drawn", tmp_path, Problem(noun="crate"))
    frozen = first.frozen
    assert snapshots.open_snapshot(first.path).problem.nouns == "crates"

    assert snapshots.words_of(tmp_path).nouns == "crates"
    again = snapshots.freeze(rows, classes, "drawn", tmp_path, Problem(noun="drawer"))
    assert (again, again.frozen) == (first, frozen)
    assert again.problem.nouns == "drawers"
    assert snapshots.freeze(rows, classes, "drawn", tmp_path).problem == BINS  # as of an earlier release


def test_a_model_keeps_the_words_and_one_of_an_earlier_release_is_of_bins(tmp_path):
    spec = ModelSpec.make(ImageConfig(), TrainConfig(), Classes.parse("good,bad"), problem=Problem(noun="part"))
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path).problem.nouns == "parts"

    earlier = spec.model_dump() | {"classes": Classes.parse("0..5")}
    del earlier["problem"]
    assert ModelSpec.model_validate(earlier).problem == BINS


@pytest.mark.parametrize(
    ("classes", "positive", "label"),
    [
        (["intact", "de\u0301fectueux"], "d\u00e9fectueux", 1),  # é as macOS writes it, and as others do
        (["d\u00e9fectueux", "intact"], " de\u0301fectueux", 0),
        (["0", "1"], "0", 0),
        (["0", "1"], None, None),
        (["intact", "torn"], None, 1),
        (["intact", "torn", "wet"], "wet", None),
    ],
)
def test_the_positive_class_is_the_one_that_is_named_however_it_is_spelled(tmp_path, classes, positive, label):
    named = f"positive = {json.dumps(positive)}" if positive else ""
    path = tmp_path / "problem.toml"
    path.write_text(f"classes = {json.dumps(classes)}\n{named}\n")

    described = read_description(path)
    assert described.positive_label(Classes.parse(described.classes)) == label
