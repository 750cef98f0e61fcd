"""Whom the Prefect server answers that this project starts."""

import asyncio
import base64
import stat
from collections.abc import Iterator

import pytest
import sqlalchemy
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings
from sqlalchemy import event
from starlette.testclient import TestClient

from deployments import server

AUTH = "bincount:a-secret"
SIGNED_IN = {"Authorization": "Basic " + base64.b64encode(AUTH.encode()).decode()}
PORT = 4300
LISTENER = (sqlalchemy.Engine, "before_cursor_execute", server._begin_as_writer)


@pytest.fixture(scope="module")
def pages() -> Iterator[TestClient]:
    """A client of the guarded app without a database and services behind it."""
    fields = _get_settings_fields(Settings)
    guarded = {fields[name]: value for name, value in server.guard(PORT, AUTH).items()}
    with temporary_settings({PREFECT_API_URL: f"http://prefect:{PORT}/api", **guarded}):
        yield TestClient(server.create_app(), base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "prefect"])
def test_a_server_answers_under_its_own_names(pages, host):
    assert pages.get("/api/health", headers={"Host": f"{host}:{PORT}"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1.evil.example", "localhost@evil.example", "127.0.0.2", ""],
)
@pytest.mark.parametrize("path", ["/api/health", "/api/admin/settings", "/", "/ui-settings", "/docs"])
def test_under_a_foreign_host_nothing_is_answered_even_to_who_is_signed_in(pages, host, path):
    assert pages.get(path, headers={"Host": host, **SIGNED_IN}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"http://evil.example:{PORT}", "http://localhost:1"]
)
def test_a_foreign_page_may_not_read_and_may_not_ask_to_write(pages, origin):
    read = pages.get("/api/health", headers={"Origin": origin})
    assert "access-control-allow-origin" not in read.headers
    asked = pages.options("/api/deployments/", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_its_own_pages_may_ask(pages, host):
    """They call the API under one of the names, under whichever they were opened."""
    origin = f"http://{host}:{PORT}"
    asked = pages.options(
        "/api/flow_runs/filter",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,prefect-csrf-token",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("sign_in", [{}, {"Authorization": "Basic bm8="}, {"Authorization": f"Bearer {AUTH}"}])
def test_without_the_sign_in_it_tells_only_that_it_is_there(pages, sign_in):
    assert pages.get("/api/health", headers=sign_in).status_code == 200
    assert pages.get("/api/admin/settings", headers=sign_in).status_code == 401
    assert pages.get("/api/csrf-token?client=page", headers=sign_in).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/deployments/"),
        ("POST", "/api/flow_runs/"),
        ("POST", "/api/block_documents/filter"),
        ("PATCH", "/api/work_pools/cpu"),
        ("DELETE", "/api/flows/0"),
    ],
)
def test_nothing_is_changed_without_a_token_against_forged_requests(pages, method, path):
    assert pages.request(method, path, json={}, headers=SIGNED_IN).status_code == 403


def test_the_settings_that_it_shows_do_not_hold_the_sign_in(pages):
    shown = pages.get("/api/admin/settings", headers=SIGNED_IN)
    assert shown.status_code == 200
    assert AUTH not in shown.text
    assert "a-secret" not in shown.text


def test_the_sign_in_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    path = tmp_path / "stack" / "auth"
    made = server.keep_auth_string(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made == server.keep_auth_string(path) != server.keep_auth_string(tmp_path / "other")
    assert len(made.removeprefix("bincount:")) >= 32
    assert list(path.parent.iterdir()) == [path]


def test_a_sign_in_that_others_may_read_or_that_was_cut_off_is_repaired(tmp_path):
    path = tmp_path / "auth"
    path.write_text("me:mine\n")
    path.chmod(0o644)
    assert server.keep_auth_string(path) == "me:mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("")
    assert server.keep_auth_string(path) == path.read_text().strip() != ""


# The database


@pytest.fixture
def begins_as_writer(request) -> Iterator[None]:
    """With or without what `create_app` adds to SQLAlchemy."""
    if contains := event.contains(*LISTENER):
        event.remove(*LISTENER)
    if request.param:
        server.lock_sqlite_early()
        server.lock_sqlite_early()  # a second app in the process adds nothing
    yield
    if event.contains(*LISTENER):
        event.remove(*LISTENER)
    if contains:
        server.lock_sqlite_early()


async def read_and_write_at_once(database: AioSqliteConfiguration) -> list[int]:
    """Two transactions of Prefect's, of which each reads a row and then writes it, as its automations do."""
    first_has_read, value = asyncio.Event(), sqlalchemy.text("SELECT value FROM counted")
    add = sqlalchemy.text("UPDATE counted SET value = value + 1")
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sqlalchemy.text("CREATE TABLE counted (value INTEGER)"))
        await connection.execute(sqlalchemy.text("INSERT INTO counted VALUES (0)"))

    async def first() -> None:
        async with await database.session(engine) as session, database.begin_transaction(session):
            await session.execute(value)
            first_has_read.set()
            await asyncio.wait([other], timeout=0.5)  # it is through before that where nothing makes it wait
            await session.execute(add)

    async def second() -> None:
        await first_has_read.wait()
        async with await database.session(engine) as session, database.begin_transaction(session):
            await session.execute(value)
            await session.execute(add)

    other = asyncio.create_task(second())
    await first()
    await other
    async with await database.session(engine) as session:
        return list((await session.execute(value)).scalars())


@pytest.mark.parametrize("begins_as_writer", [True], indirect=True)
@pytest.mark.usefixtures("begins_as_writer")
def test_who_writes_after_another_has_written_waits_for_its_turn(tmp_path):
    database = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/prefect.db")
    assert asyncio.run(read_and_write_at_once(database)) == [2]


@pytest.mark.parametrize("begins_as_writer", [False], indirect=True)
@pytest.mark.usefixtures("begins_as_writer")
def test_prefect_by_itself_finds_the_database_locked(tmp_path):
    """Once this does not happen any more, `lock_sqlite_early` can go."""
    database = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{tmp_path}/prefect.db")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="database is locked"):
        asyncio.run(read_and_write_at_once(database))
