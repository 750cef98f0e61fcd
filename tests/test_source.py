import pandas as pd
import pytest
from bins import add_bin, jpeg

from bincount.data import client, ids, source
from bincount.errors import SourceError, SourceUnavailable
from bincount.settings import DataConfig


def numbered(*numbers):
    return pd.Series([f"{number:05d}" for number in numbers])


def test_bins_are_listed_with_what_they_lack(tmp_path):
    add_bin(tmp_path, "00001")
    add_bin(tmp_path, "00002")
    (tmp_path / "metadata" / "00001.json").unlink()
    (tmp_path / "bin-images" / "00002.jpg").unlink()
    bins = source.open_source(DataConfig(source=str(tmp_path))).list_bins().set_index("image_id")
    assert list(bins.index) == ["00001", "00002"]
    assert bins["image_tag"].notna().to_list() == [True, False]
    assert bins["record_tag"].notna().to_list() == [False, True]


def test_padded_and_unpadded_ids_are_different_bins(tmp_path):
    add_bin(tmp_path, "10", 1)
    add_bin(tmp_path, "00010", 2)
    opened = source.open_source(DataConfig(source=str(tmp_path)))
    assert opened.list_bins()["image_id"].to_list() == ["00010", "10"]
    assert opened.read(opened.record_key("10")) != opened.read(opened.record_key("00010"))


def test_a_folder_a_class_is_recognised(tmp_path):
    for name in ("good/a.jpg", "defective/b.PNG", "defective/deep/c.jpg", "good/notes.txt", "stray.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    opened = source.open_source(DataConfig(source=str(tmp_path)))
    assert opened.layout == "folders"
    assert opened.list_bins()["image_id"].to_list() == ["defective/b.PNG", "defective/deep/c.jpg", "good/a.jpg"]


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("no-such-folder", "existing folder"),
        ("gs://bucket", "neither s3://BUCKET nor a folder"),
        ("s3://", "lacks the bucket's name"),
        (".", "neither bin-images/"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_with_the_remedy(tmp_path, monkeypatch, address, remedy):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=remedy):
        source.open_source(DataConfig(source=address))


def test_a_server_that_does_not_answer_is_worth_another_try(free_port):
    config = DataConfig(source="s3://bins", endpoint=f"http://127.0.0.1:{free_port}")
    with pytest.raises(SourceUnavailable, match="cannot be listed"):
        source.open_source(config)


def test_a_larger_limit_only_adds():
    every = numbered(*range(1, 2001))
    few, more = ids.first_bins(every, 300), ids.first_bins(every, 700)
    assert list(more[:300]) == list(few)


def test_a_limit_takes_neighbours_together_and_favours_no_part_of_the_range():
    taken = ids.first_bins(numbered(*range(0, 100_000)), 2_000).astype(int)
    assert (taken.diff().iloc[1:] == 1).mean() > 0.98
    assert taken.max() > 90_000
    assert taken.min() < 10_000


def test_a_limit_does_not_depend_on_the_order_of_the_listing():
    every = numbered(*range(1, 1001))
    assert list(ids.first_bins(every.sample(frac=1, random_state=0), 100)) == list(ids.first_bins(every, 100))


def test_a_bucket_is_read_as_a_folder_is(tmp_path, bucket):
    for number in range(1, 4):
        add_bin(tmp_path, f"{number:05d}", number)
    config = bucket(tmp_path)
    opened = source.open_source(config)
    assert opened.layout == "bins"
    assert opened.list_bins()["image_id"].to_list() == ["00001", "00002", "00003"]
    assert opened.read("bin-images/00002.jpg") == (tmp_path / "bin-images" / "00002.jpg").read_bytes()
    with pytest.raises(client.ObjectMissing):
        opened.read("bin-images/99999.jpg")


def test_a_bucket_that_does_not_exist_is_an_error_and_not_worth_another_try(tmp_path, bucket):
    add_bin(tmp_path, "00001")
    config = bucket(tmp_path)
    with pytest.raises(SourceError) as raised:
        source.open_source(config.model_copy(update={"source": "s3://no-such-bucket"}))
    assert not isinstance(raised.value, SourceUnavailable)
