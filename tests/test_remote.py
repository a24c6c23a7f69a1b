"""Demonstrations and features behind an address: fetched once while they stay the same, stored when all is done."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from test_store import FakeConfig, content, make_dataset

from s2robot import cli, locks, remote, rerender, shards
from s2robot.datasets import DemoDataset
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError
from s2robot.store import FeatureStore, encode_dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copies(cache: Path) -> int:
    return len(list((cache / "remote").glob("*/*")))


@pytest.fixture(params=["memory", "file", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Iterator[str]:
    """An address to write below: of a real store each."""
    if request.param == "s3":
        yield from _s3()
        return
    where = "/test-remote" if request.param == "memory" else str(tmp_path / "there")
    address = f"{request.param}://{where}"
    yield address
    fsspec.filesystem(request.param).rm(where, recursive=True)


def _s3() -> Iterator[str]:
    """A server that speaks S3, in this process."""
    pytest.importorskip("s3fs", reason="pip install 's2robot[s3]'")
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[s3]' flask flask-cors, a local S3")
    import s3fs

    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    said = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)
        yield "s3://bucket/deep"
        s3fs.S3FileSystem().rm("bucket/deep", recursive=True)
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_dataset_is_fetched_once_and_again_when_it_changes(bucket: str, cache: Path, tmp_path: Path) -> None:
    first, second = (make_dataset(tmp_path / f"{seed}.hdf5", seed=seed) for seed in (0, 1))
    address = f"{bucket}/lift.hdf5"
    with pytest.raises(InvalidInput, match=r"There is nothing at .*lift\.hdf5"):
        DemoDataset(address)
    remote.store(first.path, address)
    assert remote.exists(address)
    for _ in range(2):
        dataset = DemoDataset(address)
        assert dataset.fingerprint == first.fingerprint and copies(cache) == 1
    assert pickle.loads(pickle.dumps(dataset)).address == address
    remote.store(second.path, address)
    assert DemoDataset(address).fingerprint == second.fingerprint


def test_a_store_is_stored_when_done_found_again_and_read_piece_by_piece(
    bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path / "a.hdf5")
    plain = encode_dataset(dataset.path, FakeConfig(), tmp_path / "here", workers=1)
    monkeypatch.setattr(shards, "SHARD", 4000)
    root = f"{bucket}/features"
    made = encode_dataset(dataset.path, FakeConfig(), root, workers=1)
    assert len(shards.shards(made.index, "map")) > 2
    np.testing.assert_array_equal(made.map[:], plain.map)
    before = copies(cache)
    again = encode_dataset(dataset.path, FakeConfig(trouble="overflow"), root)  # would raise if it encoded
    assert again.address == f"{root}/{plain.folder.name}" and copies(cache) == before + 1  # its words, no array yet
    last = again.rows(4)[0]
    np.testing.assert_array_equal(again.map[last], plain.map[last])
    assert copies(cache) == before + 2
    np.testing.assert_array_equal(again.map[:], plain.map)
    np.testing.assert_array_equal(again.cls[:], plain.cls)
    again.verify()
    moved = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(moved.map[[3, 0, 20]], plain.map[[3, 0, 20]])
    with pytest.raises(InvalidInput, match=r"The feature store .*/none is not there"):
        FeatureStore(f"{root}/none")


def test_the_command_line_takes_addresses(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "memory://verbs/lift.hdf5"
    remote.store(make_dataset(tmp_path / "a.hdf5", [9, 8, 7]).path, address)
    words = ["--name", "timm:test_vit", "--random_weights", "true", "--sizes", "16"]
    assert cli.main(["encode", address, "--workers", "1", *words]) == 0
    (done,) = fsspec.filesystem("memory").glob("verbs/features/*/done")
    settings = ["--steps", "3", "--train.batch", "4", "--encode.workers", "1", "--policy.components", "4"]
    dotted = [word.replace("--", "--encoder.") for word in words]
    assert cli.main(["train", address, "--out", str(tmp_path / "run"), *settings, *dotted]) == 0
    assert (tmp_path / "run/policy/done").exists()
    assert fsspec.filesystem("memory").glob("verbs/features/*/done") == [done]  # both commands take the same steps
    fsspec.filesystem("memory").rm("verbs", recursive=True)


def _drawn(todo: list[int]) -> Iterator[tuple[int, str]]:
    """What drawing episodes says of each, where it cannot be done."""
    yield from ((k, "it cannot be drawn here") for k in todo)


def test_datasets_at_addresses_are_viewed_converted_and_drawn(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "memory://views/lift.hdf5"
    made = make_dataset(tmp_path / "a.hdf5", [9, 8, 7])
    remote.store(made.path, address)
    assert cli.main(["view", address, "--out", str(tmp_path / "view")]) == 0
    assert "3" in capsys.readouterr().out and list((tmp_path / "view").iterdir())
    assert cli.main(["convert", address, "--to", "s2robot", "--out", str(tmp_path / "b.hdf5")]) == 0
    assert DemoDataset(tmp_path / "b.hdf5").lengths == made.lengths
    monkeypatch.setattr(rerender.workers, "work", lambda make, answer, todo, count: _drawn(todo))
    assert cli.main(["render", address, "--out", str(tmp_path / "c.hdf5")]) == 1
    assert "None of the 3 episodes" in capsys.readouterr().err  # they were found
    fsspec.filesystem("memory").rm("views", recursive=True)


@pytest.mark.sim
def test_what_is_collected_to_an_address_is_what_lies_there(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "memory://collected/demos.hdf5"
    words = ["collect", "Reach", "--out", address, "--frame_size", "32", "--workers", "1", "--demos"]
    for count, there in ((2, 2), (1, 2)):
        assert cli.main([*words, str(count)]) == 0
        assert len(DemoDataset(address)) == there and f"{there} demonstrations" in capsys.readouterr().out
    assert cli.main([*words, "2", "--seed", "3"]) == 2
    assert "holds other demonstrations (seed 0, not 3)" in capsys.readouterr().err
    fsspec.filesystem("memory").rm("collected", recursive=True)
    assert cli.main([*words, "1"]) == 0
    assert len(DemoDataset(address)) == 1 and not list((cache / "outgoing").glob("*/*"))
    fsspec.filesystem("memory").rm("collected", recursive=True)


def test_a_store_in_several_files_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path / "a.hdf5")
    one = encode_dataset(dataset.path, FakeConfig(), tmp_path / "one", workers=1)
    monkeypatch.setattr(shards, "SHARD", 1)
    many = encode_dataset(dataset.path, FakeConfig(), tmp_path / "many", workers=1)
    assert many.folder.name == one.folder.name and len(list(many.folder.glob("map-*.npy"))) == len(dataset)
    many.verify()
    assert many.map.shape == one.map.shape and len(many.map) == len(one.map) and many.map.dtype == one.map.dtype
    rng = np.random.default_rng(0)
    for rows in (slice(None), slice(2, 9, 3), [0], rng.integers(0, len(one), 40), np.arange(len(one)) % 2 == 0, -1):
        np.testing.assert_array_equal(many.map[rows], one.map[rows])
        np.testing.assert_array_equal(many.cls[rows], one.cls[rows])
    with pytest.raises(IndexError):
        many.map[len(one)]
    monkeypatch.setattr(shards, "SHARD", 1 << 30)  # however it was cut, it is read
    assert content(one)["episode"] == FeatureStore(many.folder).index["episode"]


def test_a_web_server_will_do_for_reading(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="pip install 'fsspec[http]'")
    dataset = make_dataset(tmp_path / "a.hdf5")
    handler: Any = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.hdf5"
        assert DemoDataset(address).fingerprint == dataset.fingerprint
        server.shutdown()


def test_what_a_web_address_is_let_in_by_is_neither_shown_nor_kept(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signed address: its query opens the file to whoever reads it. Features of it stay on this machine."""
    pytest.importorskip("aiohttp", reason="pip install 'fsspec[http]'")
    (tmp_path / "web").mkdir()
    dataset = make_dataset(tmp_path / "web" / "a.hdf5", [9, 8])
    handler: Any = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        address = f"http://{host}/a.hdf5?X-Amz-Signature=SECRET/1"
        opened = DemoDataset(address)
        assert opened.fingerprint == dataset.fingerprint and opened.path.name == "a.hdf5"
        assert pickle.loads(pickle.dumps(opened)).fingerprint == dataset.fingerprint
        words = ["--name", "timm:test_vit", "--random_weights", "true", "--sizes", "16", "--workers", "1"]
        assert cli.main(["encode", address, *words]) == 0
        (done,) = cache.glob("features/*/*/done")
        assert FeatureStore(done.parent).index["dataset"] == f"http://{host}/a.hdf5"
        assert cli.main(["encode", address.replace("a.hdf5", "none.hdf5"), *words]) == 2
        server.shutdown()
    with pytest.raises(S2RobotError, match="cannot be reached") as refused:  # nobody is there by now
        DemoDataset(address.replace("//", "//me:SECRET@"))
    told = capsys.readouterr()
    assert f"There is nothing at http://{host}/none.hdf5" in told.err.replace("\n", "")
    kept = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert not any("SECRET" in text for text in (told.out, told.err, str(refused.value), *map(str, cache.rglob("*"))))
    assert b"SECRET" not in kept


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h.org/a/b.hdf5?sig=x/y#part", "https://h.org/a/b.hdf5"),
        ("HTTPS://me:word@h.org:8?sig=x/y", "HTTPS://h.org:8"),
        ("https://h.org/a#token=x", "https://h.org/a"),
        ("https://h.org/a b.hdf5?sig=x", "https://h.org/a b.hdf5"),
        ("--data=https://h.org/a(1).hdf5?sig=x", "--data=https://h.org/a(1).hdf5"),
        ("simplecache::https://h.org/a?sig=x", "simplecache::https://h.org/a"),
        ("403, url='https://h.org/a?sig=x' (no)", "403, url='https://h.org/a' (no)"),
        ("sftp://me:word@host/a b?.hdf5", "sftp://me@host/a b?.hdf5"),
        ("s3://bucket/a@b/c?d.hdf5", "s3://bucket/a@b/c?d.hdf5"),
        ("abfs://box@account/a.hdf5", "abfs://box@account/a.hdf5"),
        ("memory://x", "memory://x"),
        ("runs/a@b?c", "runs/a@b?c"),
    ],
)
def test_text_is_shown_without_the_secrets_of_addresses(text: str, shown: str) -> None:
    assert remote.shown(text) == shown


def test_errors_of_a_store_say_no_secrets() -> None:
    address = "https://h.org/a b.hdf5?sig=SECRET"
    for words in (f"cannot get {address}", "exceeded with url: /a.hdf5?sig=SECRET (timeout)", "url=https://h?SECRET"):
        assert "SECRET" not in remote._clean(OSError(words), address)


def test_commands_are_kept_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["s2robot", "study", "study-pick", "--data=https://h.org/a?SECRET"])
    assert json.loads(locks._holder())["command"][-1] == "--data=https://h.org/a"


def test_a_web_server_that_does_not_answer_is_not_one_that_has_nothing() -> None:
    """What is stored there would be encoded again, and "there is nothing" sends people to look for a wrong address."""
    pytest.importorskip("aiohttp", reason="pip install 'fsspec[http]'")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.hdf5"
    for ask in (remote.exists, remote.local, lambda address: remote.folder(address, ["done"])):
        with pytest.raises(S2RobotError, match="cannot be reached"):
            ask(address)


@pytest.mark.parametrize(("status", "is_there"), [(404, False), (403, False), (410, False), (500, None), (503, None)])
def test_only_a_server_that_says_so_has_nothing(status: int, is_there: bool | None) -> None:
    pytest.importorskip("aiohttp", reason="pip install 'fsspec[http]'")

    class Answers(_Quiet):
        def do_GET(self) -> None:
            self.send_error(status)

        def do_HEAD(self) -> None:
            self.do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.hdf5"
        if is_there is None:
            with pytest.raises(S2RobotError, match=f"cannot be reached: {status}"):
                remote.exists(address)
        else:
            assert remote.exists(address) is is_there
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_what_cannot_be_reached_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"rubbish://a/b: Protocol not known: rubbish"):
        DemoDataset("rubbish://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # an earlier test's
    fsspec.config.conf.clear()
    with pytest.raises((MissingExtra, S2RobotError), match=r"pip install 's2robot\[s3\]'"):
        DemoDataset("s3://nobody/b.hdf5")
    assert not (cache / "remote").exists()


def test_plain_paths_are_left_alone() -> None:
    assert remote.local("a/b.hdf5") == Path("a/b.hdf5") and not remote.is_remote(Path("/a:/b"))
    assert remote.beside("s3://bucket/a/lift.hdf5", "features") == "s3://bucket/a/features"


def test_a_cache_before_a_web_server_makes_it_no_place_to_write() -> None:
    assert not remote.is_writable("simplecache::https://host/lift.hdf5") and not remote.is_writable("HTTP://host/a")
    assert remote.is_writable("simplecache::s3://bucket/lift.hdf5") and remote.is_writable("runs/lift.hdf5")
