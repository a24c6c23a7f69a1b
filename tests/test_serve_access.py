"""Who may talk to a server: tokens, addresses, web pages, and how many at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_policies import flat, observations, small_policy
from small_servers import get, plain_client, server_thread, serves, wait_until

from s2robot import cli
from s2robot.adapters import serve_access
from s2robot.errors import InvalidInput, UsageError

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

TOKEN = "0123456789abcdef"
ROW = flat(observations(1)[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Any]:
    with server_thread(run, max_clients=4) as made:
        yield made


def test_a_token_opens_and_nothing_else_does(run: Path) -> None:
    with server_thread(run, token=TOKEN) as server:
        serves(server.url, additional_headers={"Authorization": f"Api-Key {TOKEN}"})
        openpi = pytest.importorskip("openpi_client.websocket_client_policy").WebsocketClientPolicy
        assert "actions" in openpi(server.url, api_key=TOKEN).infer(ROW)
        for said in (None, f"Api-Key {TOKEN[:-1]}", f"Bearer {TOKEN}", TOKEN, "Api-Key", "", f"api-key {TOKEN}"):
            headers = None if said is None else {"Authorization": said}
            with pytest.raises(InvalidStatus, match="401"), connect(server.url, additional_headers=headers):
                pass
        with pytest.raises(InvalidStatus, match="401"):
            openpi(server.url)
        assert server.metrics.errors["unauthorised"] == 8
        assert get(server.url, "/metrics")[0] == 401 and get(server.url, "/metrics", TOKEN)[0] == 200
        assert get(server.url, "/healthz")[0] == 200  # tells nothing but that it lives


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve_access.VARIABLE, raising=False)
    assert serve_access.read_token() is None
    monkeypatch.setenv(serve_access.VARIABLE, TOKEN)
    (tmp_path / "token").write_text("another\n")
    assert serve_access.read_token() == TOKEN and serve_access.read_token(tmp_path / "token") == "another"
    for text in ("", "two words", "tab\tbed", "ümlaut"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InvalidInput, match="openssl rand"):
            serve_access.read_token(tmp_path / "token")
    with pytest.raises(InvalidInput, match="openssl rand"):
        serve_access.read_token(tmp_path / "nowhere")
    assert "Traceback" not in TOKEN and serve_access.admits(TOKEN, ["Api-Key \udcff"]) is False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "robot.local", "not a host"])
def test_an_open_address_wants_a_token_or_a_word(host: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--without-token"):
        serve_access.check_host(host, None, False)
    serve_access.check_host(host, TOKEN, False)
    serve_access.check_host(host, None, True)
    assert cli.main(["serve", str(run), "--host", host]) == 2
    assert "--token-file" in capsys.readouterr().err
    for safe in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        serve_access.check_host(safe, None, False)


def test_a_web_page_may_not_connect(server: Any) -> None:
    """A browser says where it comes from; any page one looks at could talk to this machine."""
    with pytest.raises(InvalidStatus, match="403"), connect(server.url, origin="http://127.0.0.1"):
        pass


def test_more_clients_than_places_are_turned_away_until_one_leaves(server: Any) -> None:
    with plain_client(server.url), plain_client(server.url), plain_client(server.url) as third:
        with plain_client(server.url):
            with pytest.raises(InvalidStatus, match="503"), connect(server.url):
                pass
            assert "actions" in third.ask(ROW)
        wait_until(lambda: server.metrics.clients == 3)
        serves(server.url)
    wait_until(lambda: server.metrics.clients == 0)
