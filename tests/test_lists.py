"""Tests of the bins that a list means, in every form in which such lists are published."""

import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest

from bincount.data import lists
from bincount.errors import SettingsError, SourceError

PUBLIC = ["00001", "00002", "00003", "00004", "00005", "00006", "00010", "00011", "00100", "1", "10", "100", "100313"]
FOLDERS = ["bad/img_001.jpg", "bad/img_002.jpg", "good/img_001.jpg", "good/img_003.jpg", "good/my photo.jpg"]


def taken(folder: Path, text: str | bytes, ids: list[str]) -> list[str]:
    file = folder / "list"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    image_ids = pd.Series(ids, dtype="str")
    return image_ids[lists.take(file, image_ids, "s3://bins")].to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00002\n100\n", ["00002", "100"]),
        ("00002.jpg\r\n100.jpg\r\n", ["00002", "100"]),
        ("# mine\n00002.jpg 3\n00003.jpg 10\n", ["00002", "00003"]),
        ("3 00002.jpg\n10 00003.jpg\n", ["00002", "00003"]),
        ("00002 3\n100313 1\n", ["00002", "100313"]),
        ("00002\t3\n00003\t1\n", ["00002", "00003"]),
        ("00002,3\n00003,1\n", ["00002", "00003"]),
        ("id,label,split\n00004,5,val\n00005,4,train\n", ["00004", "00005"]),
        ("id\n00004\n", ["00004"]),
        ("Image ID,Label\n00004,5\n", ["00004"]),
        (",label,Image_ID\n0,5,00004\n1,4,00005\n", ["00004", "00005"]),
        ("id;file_name;label\n1;00004.jpg;5\n10;00005.jpg;4\n", ["00004", "00005"]),
        ("\ufeffimage,label\nbin-images/00004.jpg,5\n", ["00004"]),
        ("s3://aft-vbi-pds/metadata/00004.json\n/home/me/bin-images/100.jpg\n", ["00004", "100"]),
        ("data\\metadata\\00004.json\ndata\\metadata\\1.json\n", ["00004", "1"]),
        ("00004\n".encode("utf-16"), ["00004"]),
        ('{"1": ["data/metadata/00003.json"], "2": ["data/metadata/10.json"]}', ["00003", "10"]),
        ('{"train": {"1": ["00003.jpg"], "2": ["00004"]}, "val": {"1": ["100.jpg"]}}', ["00003", "00004", "100"]),
        ('{"train": ["00003"], "test": ["00004"]}', ["00003", "00004"]),
        ('["00003", "00004"]', ["00003", "00004"]),
        ('{"00003.jpg": 2, "1.jpg": 3}', ["00003", "1"]),
        ('{"00003": {"label": 2}, "00004": {"label": 3}}', ["00003", "00004"]),
        ('[{"image_id": "00003", "label": 1}, {"image_id": "00004", "label": 2}]', ["00003", "00004"]),
        ('{"image_id": "00003", "label": 1}\n{"image_id": "00004", "label": 2}\n', ["00003", "00004"]),
        ('{"id": ["00003", "00004"], "label": [1, 2]}', ["00003", "00004"]),
        ('{"images": [{"id": 1, "file_name": "00003.jpg"}], "annotations": []}', ["00003"]),
        ('[["00003.jpg", 2], ["00004.jpg", 3]]', ["00003", "00004"]),
    ],
)
def test_a_list_takes_exactly_the_bins_that_it_names(tmp_path, text, expected):
    assert taken(tmp_path, text, PUBLIC) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good/img_001.jpg\nbad/img_002.jpg\n", ["bad/img_002.jpg", "good/img_001.jpg"]),
        ("/data/src/good/img_001.jpg\n", ["good/img_001.jpg"]),
        ("good/img_001\nimg_003.jpg\nimg_002\n", ["bad/img_002.jpg", "good/img_001.jpg", "good/img_003.jpg"]),
        ("good/my photo.jpg\ngood/img_001.jpg\n", ["good/img_001.jpg", "good/my photo.jpg"]),
        ("path,label\ngood/img_001.jpg,good\n", ["good/img_001.jpg"]),
        ('{"good": ["good/img_001.jpg"], "bad": ["bad/img_001.jpg"]}', ["bad/img_001.jpg", "good/img_001.jpg"]),
    ],
)
def test_a_list_for_class_folders_names_keys_or_files(tmp_path, text, expected):
    assert taken(tmp_path, text, FOLDERS) == expected


def test_a_list_without_the_split_folder_finds_the_picture_below_it(tmp_path):
    ids = ["train/good/a.jpg", "val/good/b.jpg", "val/bad/a.jpg"]
    assert taken(tmp_path, "good/a.jpg\nb.jpg\n", ids) == ["train/good/a.jpg", "val/good/b.jpg"]


def test_a_name_in_another_class_folder_is_not_taken_for_the_one_of_this_class(tmp_path, caplog):
    assert taken(tmp_path, "good/img_001.jpg\ngood/img_002.jpg\n", FOLDERS) == ["good/img_001.jpg"]
    assert "1 of the 2 listed ids are not in the source, such as good/img_002.jpg" in caplog.text


def test_the_counting_list_of_the_challenge_counts_from_zero(tmp_path, caplog):
    assert taken(tmp_path, "[[3, 5], [4, 4], [9, 4]]", PUBLIC) == ["00004", "00005", "00010"]
    assert "count from 0: 3 is taken as 00004" in caplog.text
    question = '[[4, [["B006SA39OU", [502755, 502756]]]], [3, [["B00KVP76G0", [11868]]]]]'
    assert taken(tmp_path, question, PUBLIC) == ["00004", "00005"]


def test_the_random_split_of_the_challenge_means_padded_ids_though_some_exist_without_zeros(tmp_path, caplog):
    text = "".join(f"{number}\n" for number in (1, 2, 3, 4, 5, 6, 10, 11, 100, 100313))
    assert taken(tmp_path, text, PUBLIC) == [*PUBLIC[:9], "100313"]
    assert "without the zeros before them: 2 is taken as 00002" in caplog.text


@pytest.mark.parametrize("text", ["1\n10\n100\n", "[1, 10, 100]", "id,label\n1,3\n10,2\n", "1\n2\n", "1\n10\n7777\n"])
def test_numbers_that_may_mean_either_series_are_refused_with_what_to_write(tmp_path, text):
    with pytest.raises(SettingsError, match=r"may be the bin 1 or 00001.*write 00001 for the latter, or 1.jpg for"):
        taken(tmp_path, text, PUBLIC)


def test_unpadded_bins_are_never_taken_for_a_split_of_the_padded_ones(tmp_path):
    ids = ["00050", "00051", "1", "10", "100"]
    with pytest.raises(SettingsError, match="write 00001"):
        taken(tmp_path, "".join(f"{number}\n" for number in range(1, 49)), ids)


@pytest.mark.parametrize(
    ("ids", "text", "expected"),
    [
        (["1", "10", "2"], "1\n10\n37\n", ["1", "10"]),  # a source without padded ids
        (["00050", "1", "10"], "1\n10\n", ["1", "10"]),  # all of them, and no other bin that they could be
        (["00001", "00002", "1"], "1.jpg\n", ["1"]),
        (["00001", "00002", "1"], "00002\n1\n", ["00002", "1"]),  # the list writes the zeros that it means
        (["0001", "0002", "0010"], "1\n10\n", ["0001", "0010"]),
    ],
)
def test_numbers_are_taken_as_they_are_where_nothing_else_can_be_meant(tmp_path, ids, text, expected):
    assert taken(tmp_path, text, ids) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 3\n2 5\n", "which column of '1 3' has the ids does not show"),
        ("1,good\n2,bad\n", "which column"),
        ("00001 00002\n00003 00004\n", "which column"),
        ("00001.jpg 3\n00002.jpg\n", "line 2 has 1 words and the first line 2"),
        ("number,label\n00001,3\n", "of its columns number, label none is called as the ids are"),
        ('[{"number": 1}]', "of its fields number none is called as the ids are"),
        ("{", "Expecting property name"),
        ('{"1": 5}', "whether '1' is an id or a class does not show"),
        ('{"1": [1.5]}', "mixes"),
        ('[["a", 1], [2, 1]]', "do not begin with an id"),
        ("", "lists no ids"),
        ("[]", "lists no ids"),
        ("image_id,label\n", "lists no ids"),
        (b"\xff\xfe\x00", "is no list of ids"),
        ("[" * 100_000, "is no list of ids"),
    ],
)
def test_what_is_no_list_or_does_not_say_what_it_means_is_refused_with_what_to_write(tmp_path, text, reason):
    with pytest.raises(SettingsError) as raised:
        taken(tmp_path, text, PUBLIC)
    assert reason in str(raised.value)
    assert "write one id, key or file name in a line" in str(raised.value)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="there is no such file; correct --only-listed"):
        lists.read(tmp_path / "none")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="pipe is no list of ids: there is no such file"):
        lists.read(tmp_path / "pipe")


def test_files_whose_names_begin_as_a_column_may_be_called_are_names(tmp_path):
    ids = ["good/photo 1.jpg", "good/photo 2.jpg", "bad/image 1.jpg"]
    assert taken(tmp_path, "photo 1.jpg\nphoto 2.jpg\n", ids) == ids[:2]


def test_a_file_name_that_two_classes_have_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"img_001.jpg, which may be bad/img_001.jpg or good/img_001.jpg"):
        taken(tmp_path, "img_001.jpg\n", FOLDERS)


def test_ids_that_match_nothing_are_counted_and_named_and_none_at_all_is_an_error(tmp_path, caplog):
    assert taken(tmp_path, "00001\n00777\n00888\n", PUBLIC) == ["00001"]
    assert "2 of the 3 listed ids are not in the source, such as 00777, 00888" in caplog.text
    with pytest.raises(SourceError, match=r"none of the 2 ids .* such as 00777, 00888; .* has ids such as 00001"):
        taken(tmp_path, "00777\n00888\n", PUBLIC)


@pytest.mark.services
@pytest.mark.real
def test_the_published_lists_take_the_real_bins_that_they_mean(tmp_path, caplog):
    real = Path(os.environ["BINCOUNT_REAL_BINS"])
    here = pd.Series(sorted(path.stem for path in (real / "bin-images").iterdir()), dtype="str")
    challenge = pd.read_csv(real / "lists" / "challenge_labels.csv", dtype="str")
    students = json.loads((real / "lists" / "udacity_file_list.json").read_text())
    counting = [[int(row.id) - 1, int(row.label)] for row in challenge.itertuples()]
    (tmp_path / "counting.json").write_text(json.dumps(counting))
    (tmp_path / "random.txt").write_text("".join(f"{number}\n" for number in range(1, 535_235)))
    of_challenge = here[here.isin(challenge["id"])].to_list()
    expected = {
        real / "lists" / "challenge_labels.csv": of_challenge,
        tmp_path / "counting.json": of_challenge,
        tmp_path / "random.txt": here[here.str.len() >= 5].to_list(),
        real / "lists" / "udacity_file_list.json": sorted(
            {Path(name).stem for every in students.values() for name in every} & set(here)
        ),
    }
    with caplog.at_level(logging.ERROR):
        for file, ids in expected.items():
            assert here[lists.take(file, here, str(real))].to_list() == ids
