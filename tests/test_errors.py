import pytest

from bincount.services import mask_credentials


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:PW@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("https://TOKEN@host", "https://***@host"),
        ("postgresql+psycopg://me:p@PW@db:5432/x?a=b", "postgresql+psycopg://***@db:5432/x?a=b"),
        ("postgresql://me:P/W@db/x", "postgresql://***@db/x"),
        ("smtp://:PW@host", "smtp://***@host"),
        ("db://host/x?user=me&password=PW&ssl=1", "db://host/x?user=me&password=***&ssl=1"),
        ("from 'http://a:PW@b' to \"s3://k:PW@c/d\"\nover", "from 'http://***@b' to \"s3://***@c/d\"\nover"),
    ],
)
def test_credentials_in_a_url_are_masked_wherever_it_stands(text, masked):
    assert mask_credentials(text) == masked
    assert "PW" not in masked


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:5000/mail?to=a@b", "write to a@b.org", "s3://bucket/a@b.jpg", "sqlite:////a/b.db", ""]
)
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert mask_credentials(text) == text


def test_an_error_is_masked_as_its_text_is():
    assert mask_credentials(OSError("cannot reach http://a:b@c")) == "cannot reach http://***@c"
