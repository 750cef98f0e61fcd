import pytest

from bincount.data import record


def test_a_record_gives_the_expected_quantity_and_its_items():
    data = b'{"BIN_FCSKU_DATA": {"B01": {"quantity": 2, "name": null}, "B02": {"quantity": 1}}, "EXPECTED_QUANTITY": 4}'
    assert record.parse(data) == record.Record(quantity=4, items={"B01": 2, "B02": 1})


@pytest.mark.parametrize("data", [b'{"EXPECTED_QUANTITY": 0}', b'{"BIN_FCSKU_DATA": null, "EXPECTED_QUANTITY": 0}'])
def test_an_empty_bin_needs_no_items(data):
    assert record.parse(data) == record.Record(quantity=0, items={})


def test_an_item_without_a_usable_quantity_is_left_out():
    items = b'{"A": {"quantity": NaN}, "B": null, "C": {}, "D": {"quantity": 1}}'
    data = b'{"BIN_FCSKU_DATA": ' + items + b', "EXPECTED_QUANTITY": 1}'
    assert record.parse(data).items == {"D": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed record"),
        (b"<html>", "malformed record"),
        (b'{"EXPECTED_QUANTITY": 2', "malformed record"),
        (b"\xff\xfe{}", "malformed record"),
        (b"[" * 900_000, "malformed record"),
        (b" " * 2_000_000, "malformed record: 2,000,000 bytes"),
        (b"[1, 2]", "malformed record: not a JSON object"),
        (b"{}", "no quantity"),
        (b'{"EXPECTED_QUANTITY": null}', "no quantity"),
        (b'{"EXPECTED_QUANTITY": -1}', "negative quantity: -1"),
        (b'{"EXPECTED_QUANTITY": "3"}', "unusable quantity: '3'"),
        (b'{"EXPECTED_QUANTITY": NaN}', "unusable quantity: 'nan'"),
        (b'{"EXPECTED_QUANTITY": 2.5}', "unusable quantity: '2.5'"),
        (b'{"EXPECTED_QUANTITY": true}', "unusable quantity: 'True'"),
        (b'{"EXPECTED_QUANTITY": 99999}', "unusable quantity: 99999"),
    ],
)
def test_a_bad_record_says_what_is_wrong(data, reason):
    with pytest.raises(record.BadRecord) as raised:
        record.parse(data)
    assert str(raised.value).startswith(reason)


@pytest.mark.parametrize("text", [r"\ud800", r"\uDFFF and more", r"\udc00\ud800"])
@pytest.mark.parametrize("place", ['{"%s": {"quantity": 1}}', '{"A": {"quantity": 1, "name": "%s"}}'])
def test_half_of_a_surrogate_pair_is_no_text(text, place):
    data = f'{{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {place % text}}}'.encode()
    with pytest.raises(record.BadRecord, match="malformed record: half of a surrogate pair"):
        record.parse(data)


def test_a_whole_surrogate_pair_is_a_character():
    data = rb'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"\ud83d\ude00": {"quantity": 1}}}'
    assert record.parse(data).items == {"\U0001f600": 1}
