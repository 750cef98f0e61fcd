"""Names that no id can be, links, and bins that raise what nobody expects: each is told, and all else goes on."""

import os
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import faulty_s3
import pytest
from bins import add_bin, bring, jpeg, record
from faulty_s3 import FaultyS3

from bincount.data import assembly, bins, fetch, listing, names, source
from bincount.errors import DiskFull, SourceError, SourceUnavailable
from bincount.problem import Classes
from bincount.settings import DataConfig

LONG = "n" * 240
ODD_KEYS = ["a//b", "a/../b", "a/./b", "line\nbreak", "tab\tkey", "del\x7f", "sep\u2028", "c1\x85", "w" * 252]


def folders_of(folder: Path, *extra: str | bytes) -> Path:
    """Two classes of three pictures, and whatever else is wanted below them."""
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            (folder / name / f"{number}.jpg").write_bytes(jpeg(10 * number + len(name)))
    for number, name in enumerate(extra):
        path = os.fsencode(folder) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(jpeg(100 + number))
    return folder


def rows_of(dataset: Path):
    return bins.read(dataset).set_index("image_id")


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize("page_size", [1000, 2])
def test_a_bin_of_a_bucket_whose_key_can_be_no_file_is_quarantined_and_all_else_arrives(tmp_path, key, page_size):
    objects = {f"bin-images/{name}.jpg": jpeg(seed) for seed, name in enumerate(["00001", "00002", "z9", key])}
    objects |= {f"metadata/{name}.json": record(1) for name in ("00001", "00002", "z9", key)}
    with FaultyS3(objects, page_size) as server:
        report = bring(None, tmp_path / "data", server.config())
        assert (report.num_fetched, report.unreachable) == (3, {})
        rows = rows_of(tmp_path / "data")
        assert rows.loc[["00001", "00002", "z9"], "status"].to_list() == ["ok"] * 3
        assert rows.loc[names.printable(key), "reason"].startswith("unusable name: it ")
        assert server.count("bin-images/*") == 3
        again = bring(None, tmp_path / "data", server.config())
    assert (again.num_fetched, again.quarantined) == (0, Counter())


@pytest.mark.parametrize("key", [*(key for key in ODD_KEYS if key != "w" * 252), "x" * 256])
def test_a_picture_of_class_folders_in_a_bucket_is_quarantined_by_its_name(tmp_path, key):
    objects = {f"{name}/{number}.jpg": jpeg(number) for number in range(3) for name in ("good", "bad")}
    with FaultyS3(objects | {f"good/{key}.jpg": jpeg(9)}, page_size=4) as server:
        report = bring(None, tmp_path, server.config())
    assert report.num_fetched == 6
    assert report.quarantined == Counter({"unusable name": 1})


def test_a_key_that_a_server_can_write_in_no_xml_is_quarantined(tmp_path, monkeypatch):
    monkeypatch.setattr(faulty_s3, "escape", lambda key: escape(key).replace("\0", "&#x0;"))
    objects = {f"{name}/{number}.jpg": jpeg(number) for number in range(3) for name in ("good", "bad")}
    with FaultyS3(objects | {"good/zero\0.jpg": jpeg(9)}) as server:
        report = bring(None, tmp_path, server.config())
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 1}))


def test_keys_that_only_slashes_at_the_ends_tell_apart_are_not_taken_for_each_other(tmp_path):
    objects = {f"{name}/{number}.jpg": jpeg(number) for number in range(3) for name in ("good", "bad")}
    with FaultyS3(objects | {"/good/1.jpg": jpeg(99, (200, 100)), "good/": b""}) as server:
        report = bring(None, tmp_path, server.config())
    assert (report.num_fetched, report.unreachable) == (6, {})
    assert rows_of(tmp_path).loc["good/1.jpg", "width"] == 64


def test_a_bucket_below_a_prefix_is_listed_past_an_odd_key(tmp_path, s3_client, s3_endpoint):
    s3_client.create_bucket(Bucket="odd-below", ACL="public-read")
    keys = [f"some/where/{name}/{number}.jpg" for name in ("good", "bad") for number in range(3)]
    for key in [*keys, "some/where/good//1.jpg", "some/where/bad/a/../b.jpg"]:
        s3_client.put_object(Bucket="odd-below", Key=key, Body=jpeg(1), ACL="public-read")
    config = DataConfig(source="s3://odd-below/some/where", endpoint=s3_endpoint)
    report = bring(None, tmp_path, config)
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 2}))


@pytest.mark.parametrize(
    "name", [b"good/gr\xf6\xdfe.jpg", b"good/a\nb.jpg", b"good/tab\t.jpg", "good/\u2028.jpg".encode()]
)
def test_a_file_whose_name_is_no_text_of_one_line_is_quarantined(tmp_path, name):
    folders_of(tmp_path / "source", name)
    report = bring(tmp_path / "source", tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 1}))
    (odd,) = rows_of(tmp_path / "data").query("status != 'ok'").index
    assert odd.isprintable()
    assert bring(tmp_path / "source", tmp_path / "data").quarantined == Counter()


def test_other_files_and_folders_with_such_names_are_counted_and_stop_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    folders_of(tmp_path / "source", b"notes-gr\xf6.txt", b"good/a\nb.txt", b"good/\xff/in.jpg", b"\xfe/in.jpg")
    report = bring(tmp_path / "source", tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 2}))
    assert (
        "2 files are not read, since they are not called CLASS/NAME with the suffix of a picture: 2 .txt" in caplog.text
    )


@pytest.mark.parametrize("layout", ["bins", "folders"])
def test_links_that_lead_in_circles_or_nowhere_are_reported_and_the_rest_arrives(tmp_path, caplog, layout):
    if layout == "bins":
        for number in range(3):
            add_bin(tmp_path / "source", f"{number:05d}")
        folder, number = tmp_path / "source" / "bin-images", 3
    else:
        folder, number = folders_of(tmp_path / "source") / "good", 6
    (folder / "loop").symlink_to(tmp_path / "source")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "nothing.jpg").symlink_to(folder / "gone.jpg")
    report = bring(tmp_path / "source", tmp_path / "data")
    assert report.num_fetched == number
    assert report.quarantined == Counter({"unusable name": 2})
    assert f"{folder.name}/loop/ is not read: a link that leads back to a folder that holds it" in caplog.text


def test_two_links_to_each_other_end_and_links_inside_the_source_are_followed(tmp_path):
    source_folder = folders_of(tmp_path / "source", "store/x.jpg")
    (source_folder / "bad" / "more").symlink_to(source_folder / "store")
    (source_folder / "bad" / "one.jpg").symlink_to(source_folder / "good" / "1.jpg")
    (source_folder / "good" / "to-bad").symlink_to(source_folder / "bad")
    (source_folder / "bad" / "to-good").symlink_to(source_folder / "good")
    ids = set(source.open_source(DataConfig(source=str(source_folder))).list_bins()["image_id"])
    assert {"bad/more/x.jpg", "bad/one.jpg", "good/to-bad/1.jpg", "store/x.jpg"} <= ids
    assert len(ids) < 40


def test_what_links_lead_to_outside_the_source_is_read_only_when_asked_for(tmp_path, caplog):
    outside = folders_of(tmp_path / "outside")
    source_folder = folders_of(tmp_path / "source")
    (source_folder / "good" / "out.jpg").symlink_to(outside / "good" / "1.jpg")
    (source_folder / "bad" / "outside").symlink_to(outside / "bad")
    report = bring(source_folder, tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 1}))
    assert "bad/outside/ is not read: a link that leads out of the source, see --follow-links" in caplog.text
    config = DataConfig(source=str(source_folder), follow_links=True)
    assert bring(source_folder, tmp_path / "data", config).num_fetched == 4
    assert (rows_of(tmp_path / "data")["status"] == "ok").sum() == 10


def test_a_source_whose_folder_is_a_link_is_read(tmp_path):
    folders_of(tmp_path / "real")
    (tmp_path / "source").symlink_to(tmp_path / "real")
    assert bring(tmp_path / "source", tmp_path / "data").num_fetched == 6


def test_a_source_of_links_alone_says_how_they_are_followed(tmp_path):
    add_bin(tmp_path / "outside", "00001")
    (tmp_path / "source").mkdir()
    for name in ("bin-images", "metadata"):
        (tmp_path / "source" / name).symlink_to(tmp_path / "outside" / name)
    with pytest.raises(SourceError, match="leads out of the source, see --follow-links"):
        source.open_source(DataConfig(source=str(tmp_path / "source"))).list_bins()
    config = DataConfig(source=str(tmp_path / "source"), follow_links=True)
    assert source.open_source(config).list_bins()["image_id"].to_list() == ["00001"]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    source_folder = folders_of(tmp_path / "source")
    os.mkfifo(source_folder / "good" / "pipe.jpg")
    report = bring(source_folder, tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (6, Counter({"unusable name": 1}))
    assert rows_of(tmp_path / "data").loc["good/pipe.jpg", "reason"] == "unusable name: it is no file"


def test_a_disk_that_fails_while_it_is_listed_is_worth_another_try(tmp_path, monkeypatch):
    opened = source.open_source(DataConfig(source=str(folders_of(tmp_path / "source"))))

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(listing.os, "scandir", fail)
    with pytest.raises(SourceUnavailable, match=r"cannot be listed: .*Input/output error"):
        opened.list_bins()


def test_the_tags_of_local_files_are_those_that_earlier_versions_wrote(tmp_path):
    from obstore.store import LocalStore

    folders_of(tmp_path / "source", "good/deep er/ü 1%20.jpg")
    listed = source.open_source(DataConfig(source=str(tmp_path / "source"))).list_bins()
    tags = {
        entry["path"]: f"{entry['e_tag'].strip(chr(34))}/{entry['size']}"
        for entry in LocalStore(tmp_path / "source").list().collect()
    }
    assert dict(zip(listed["image_id"], listed["image_tag"], strict=True)) == tags


def test_an_id_as_long_as_a_file_may_be_called_arrives(tmp_path):
    for image_id in ("00001", LONG, "m" * 250):
        add_bin(tmp_path / "source", image_id)
    report = bring(tmp_path / "source", tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (3, Counter())
    assert rows_of(tmp_path / "data").loc[LONG, "status"] == "ok"


def test_an_object_in_the_place_of_a_folder_loses_one_bin_and_not_the_batch(tmp_path):
    objects = {f"{name}/{number}.jpg": jpeg(number) for number in range(3) for name in ("good", "bad")}
    objects |= {"good/1.jpg/inner.jpg": jpeg(9)}
    with FaultyS3(objects) as server:
        report = bring(None, tmp_path, server.config())
    assert report.num_fetched == 6
    assert list(report.quarantined) == ["unusable name"]


BAD_RECORDS = {
    "surrogate key": rb'{"EXPECTED_QUANTITY":2,"BIN_FCSKU_DATA":{"\ud800":{"quantity":2}}}',
    "surrogate value": rb'{"EXPECTED_QUANTITY":2,"BIN_FCSKU_DATA":{"A":{"quantity":2,"name":"\udfff"}}}',
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "huge": b'{"EXPECTED_QUANTITY":' + b"9" * 5000 + b"}",
    "large": b'{"EXPECTED_QUANTITY":' + b"9" * 4000 + b"}",
    "nan": b'{"EXPECTED_QUANTITY":NaN}',
    "infinity": b'{"EXPECTED_QUANTITY":-Infinity}',
    "latin1": '{"EXPECTED_QUANTITY":2,"name":"größe"}'.encode("latin-1"),
    "utf-8 surrogate": b'{"EXPECTED_QUANTITY":2,"BIN_FCSKU_DATA":{"\xed\xa0\x80":{"quantity":2}}}',
    "zeros": bytes(300),
}


@pytest.mark.parametrize("bad", BAD_RECORDS)
def test_a_record_that_cannot_be_read_loses_its_bin_alone(tmp_path, bad):
    for number in range(3):
        add_bin(tmp_path / "source", f"{number:05d}", 1)
    add_bin(tmp_path / "source", "x", recorded=BAD_RECORDS[bad])
    report = bring(tmp_path / "source", tmp_path / "data")
    assert report.num_fetched == 3
    assert report.quarantined.total() == 1
    assert rows_of(tmp_path / "data").loc["x", "reason"].isprintable()


UNEXPECTED = [NotImplementedError("DDS"), RuntimeError("no codec"), RecursionError(), AssertionError(), KeyError("x")]


@pytest.mark.parametrize("error", UNEXPECTED, ids=repr)
def test_whatever_one_picture_raises_the_others_arrive(tmp_path, monkeypatch, error):
    inspect = fetch.inspect

    def raise_for_one(data, max_pixels, *, with_hash):
        if data == jpeg(77):
            raise error
        return inspect(data, max_pixels, with_hash=with_hash)

    monkeypatch.setattr(fetch, "inspect", raise_for_one)
    for number in range(3):
        add_bin(tmp_path / "source", f"{number:05d}")
    add_bin(tmp_path / "source", "00009", image=jpeg(77))
    report = bring(tmp_path / "source", tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (3, Counter({"unreadable": 1}))
    assert type(error).__name__ in rows_of(tmp_path / "data").loc["00009", "reason"]


@pytest.mark.parametrize("error", [DiskFull("full"), MemoryError(), OSError(5, "Input/output error")], ids=repr)
def test_an_error_that_concerns_all_bins_ends_the_batch(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(fetch, "_write_file", fail)
    add_bin(tmp_path / "source", "00001")
    with pytest.raises(type(error)):
        bring(tmp_path / "source", tmp_path / "data")


def test_a_row_that_no_file_can_hold_becomes_one_that_says_so(tmp_path, monkeypatch):
    parse = fetch.record.parse

    def parse_badly(data):
        parsed = parse(data)
        return fetch.record.Record(parsed.quantity, {"\ud800": 1}) if parsed.quantity == 5 else parsed

    monkeypatch.setattr(fetch.record, "parse", parse_badly)
    add_bin(tmp_path / "source", "00001", 1)
    add_bin(tmp_path / "source", "00002", 5)
    bring(tmp_path / "source", tmp_path / "data")
    rows = rows_of(tmp_path / "data")
    assert rows["status"].to_list() == ["ok", "quarantined"]
    assert rows.loc["00002", "reason"].startswith("unwritable row: ")


PICTURES = [
    "a.jpe",
    "b.jfif",
    "c.JPG",
    "d.tif",
    "e.tiff",
    "f.ppm",
    "g.pgm",
    "h.gif",
    "i.webp",
    "j.bmp",
    "k.png",
    "l.avif",
]


def test_every_picture_of_a_class_folder_is_a_bin_and_the_rest_is_counted_by_suffix(tmp_path, caplog):
    others = ["good/raw.cr2", "good/x.svg", "bad/y.svg", "good/Thumbs.db", "top.jpg", "good/noext"]
    hidden = ["good/.ipynb_checkpoints/0.jpg", "good/.h.jpg", "good/._0.jpg", "__MACOSX/good/._0.jpg", ".DS_Store"]
    folders_of(tmp_path / "source", *(f"good/{name}" for name in PICTURES), *others, *hidden)
    listed = source.open_source(DataConfig(source=str(tmp_path / "source"))).list_all()
    assert set(listed.bins["image_id"]) - {f"{c}/{n}.jpg" for c in ("good", "bad") for n in range(3)} == {
        f"good/{name}" for name in PICTURES
    }
    assert listed.ignored == Counter(
        {".svg": 2, ".cr2": 1, ".db": 1, "pictures in no class folder": 1, "without a suffix": 1, "hidden": 5}
    )
    bring(tmp_path / "source", tmp_path / "data")
    assert "11 files are not read, since they are not called CLASS/NAME" in caplog.text
    assert "2 .svg" in caplog.text


def test_hidden_pictures_that_an_earlier_version_fetched_are_not_trained_on(tmp_path):
    bring(folders_of(tmp_path / "source"), tmp_path / "data")
    rows = bins.read(tmp_path / "data")
    fetched = rows["image_id"].replace("good/1.jpg", "good/.ipynb_checkpoints/1.jpg")
    classes = Classes.parse("good,bad")
    rows = assembly.build(tmp_path / "data", rows.assign(image_id=fetched), classes, "x").read().set_index("image_id")
    assert rows.loc["good/.ipynb_checkpoints/1.jpg", "status"] == "quarantined"
    assert rows["split"].notna().sum() == 5


def test_pictures_beside_those_of_the_bins_layout_are_counted_and_named(tmp_path, caplog):
    add_bin(tmp_path / "source", "00001")
    for name in ("00002.png", "00003.jpeg", "00004.JPG", ".00005.jpg"):
        (tmp_path / "source" / "bin-images" / name).write_bytes(jpeg())
    (tmp_path / "source" / "metadata" / "00002.json").write_bytes(record(1))
    report = bring(tmp_path / "source", tmp_path / "data")
    assert (report.num_fetched, report.quarantined) == (1, Counter({"no image": 1}))
    assert "not called bin-images/ID.jpg or metadata/ID.json" in caplog.text
    assert "1 .png, 1 .jpeg, 1 .JPG" in caplog.text or "1 .JPG" in caplog.text
