import pytest

from bincount.errors import mask_address, mask_credentials


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:PW@127.0.0.1:9/x", "http://***@127.0.0.1:9/x"),
        ("https://TOKEN@host", "https://***@host"),
        ("postgresql+psycopg://me:p@PW@db:5432/x?a=b", "postgresql+psycopg://***@db:5432/x?a=b"),
        ("postgresql://me:P/W@db/x", "postgresql://***@db/x"),
        ("smtp://:PW@host", "smtp://***@host"),
        ("db://host/x?user=me&password=PW&ssl=1", "db://host/x?user=me&password=***&ssl=1"),
        ("http://host/x?a=1&X-Amz-Signature=PW&b=2", "http://host/x?a=1&X-Amz-Signature=***&b=2"),
        ("http://host/x?sslpassword=PW", "http://host/x?sslpassword=***"),
        ("http://host/x?sig=PW&se=2026", "http://host/x?sig=***&se=2026"),
        ("http://host/x?AWSAccessKeyId=me&Signature=PW", "http://host/x?AWSAccessKeyId=me&Signature=***"),
        ("http://host/x?client_secret=PW&api-key=PW", "http://host/x?client_secret=***&api-key=***"),
        ("http://host/x#accessToken=PW", "http://host/x#accessToken=***"),
        ("http://host/x?key=PW", "http://host/x?key=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DPW", "mssql+pyodbc:///?odbc_connect=***"),
        ("host=db user=me password=PW dbname=x", "host=db user=me password=*** dbname=x"),
        ("host=db password='a PW' dbname=x", "host=db password=*** dbname=x"),
        ("from 'http://a:PW@b' to \"s3://k:PW@c/d\"\nover", "from 'http://***@b' to \"s3://***@c/d\"\nover"),
    ],
)
def test_credentials_in_a_url_are_masked_wherever_it_stands(text, masked):
    assert mask_credentials(text) == masked
    assert "PW" not in masked


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/mail?to=a@b",
        "write to a@b.org",
        "s3://bucket/a@b.jpg",
        "sqlite:////a/b.db",
        "",
        "/data/token=5/x",
        "http://host/x?sslmode=require&author=me",
        "s3://bucket/key=1/a.jpg",
        "the key is a=b",
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert mask_credentials(text) == text


def test_an_error_is_masked_as_its_text_is():
    assert mask_credentials(OSError("cannot reach http://a:b@c")) == "cannot reach http://***@c"


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("anna:PW@host:5000/x", "***@host:5000/x"),
        ("//anna:PW@host/x", "***@host/x"),
        ("http:/anna:PW@host", "***@host"),
        ("http://anna:a PW@host/x", "http://***@host/x"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_credentials_in_an_address_that_is_mistyped_are_masked(address, masked):
    assert mask_address(address) == masked
