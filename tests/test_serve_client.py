"""`RemotePolicy`: the contract of a policy, over the wire, and what it says when the wire breaks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from small_policies import observations, small_policy
from small_servers import PATIENCE, address, server_thread, wait_until

import s2robot
from s2robot import RemotePolicy, files, seals
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError
from s2robot.policies.wrappers import TemporalEnsemble
from s2robot.rollouts import rollout
from s2robot.trained import SUM
from s2robot.types import FRAMES, PRIVILEGED, PROPRIOCEPTION, Policy

pytest.importorskip("websockets")
pytest.importorskip("msgpack")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: small_policy(folder / kind, kind) for kind in ("bc-mlp", "bc-rnn")}


@pytest.fixture(scope="module")
def server(runs: dict[str, Path]) -> Iterator[Any]:
    with server_thread(runs["bc-rnn"]) as made:
        yield made


@pytest.fixture
def local(runs: dict[str, Path]) -> Any:
    return s2robot.load_policy(runs["bc-rnn"], engine="torch")


def test_it_is_the_policy_itself(server: Any, local: Any) -> None:
    with RemotePolicy(server.url) as remote:
        assert isinstance(remote, Policy) and remote.execute == local.execute == 4
        for episode in range(2):
            for policy in (remote, local):
                policy.reset()
            for row in observations(5, seed=episode):
                chunk = remote.act({**row, PRIVILEGED: np.zeros(3, np.float32)})  # which is not sent
                np.testing.assert_array_equal(chunk, local.act(row))
                assert chunk.flags.writeable and chunk.dtype == np.float32
                assert set(remote.seconds) == {"encode", "act", "wire"} and min(remote.seconds.values()) >= 0


def test_execute_may_be_changed_and_is_the_servers_to_refuse(server: Any, local: Any) -> None:
    with RemotePolicy(server.url) as remote, RemotePolicy(server.url) as other:
        remote.execute = local.execute = 2
        for row in observations(6):
            np.testing.assert_array_equal(remote.act(row), local.act(row))
        with pytest.raises(S2RobotError, match="it must divide 4"):
            remote.execute = 3
        assert (remote.execute, other.execute) == (2, 4)  # another client's is its own
        ensemble, own = TemporalEnsemble(remote), TemporalEnsemble(local)
        for row in observations(4, seed=1):
            np.testing.assert_array_equal(ensemble.act(row), own.act(row))


@pytest.mark.sim
def test_rollouts_against_a_server_are_those_in_process(server: Any, local: Any, lift_env: Any) -> None:
    with RemotePolicy(server.url) as remote:
        for seed in (100_000, 100_001):
            (near,), (far,) = (rollout(policy, lift_env, 1, seed) for policy in (local, remote))
            assert (near.steps, near.reward, near.success) == (far.steps, far.reward, far.success)
            assert len(far.ms["encode"]) == len(far.ms["act"]) == len(near.ms["act"])


def test_what_the_server_refuses_is_said_in_its_words_and_changes_nothing(server: Any, local: Any) -> None:
    row = observations(1)[0]
    with RemotePolicy(server.url) as remote:
        with pytest.raises(S2RobotError, match=r"ws://.* says: .*this policy takes \(7,\)"):
            remote.act({**row, PROPRIOCEPTION: np.zeros(3, np.float32)})
        with pytest.raises(InvalidInput, match="NaN"):  # this never left
            remote.act({**row, PROPRIOCEPTION: np.full(7, np.nan, np.float32)})
        with pytest.raises(S2RobotError, match="trained on 64x64"):
            remote.act({**row, FRAMES: row[FRAMES][:, :48]})
        np.testing.assert_array_equal(remote.act(row), local.act(row))


def test_after_a_broken_connection_act_says_so_and_reset_connects_again(runs: dict[str, Path], local: Any) -> None:
    rows = observations(3)
    expected = [local.act(row) for row in rows]
    with server_thread(runs["bc-rnn"]) as first:
        port = address(first.url)[1]
        remote = RemotePolicy(first.url)
        remote.act(rows[0])
    with pytest.raises(S2RobotError, match=r"the server is stopping.*reset\(\) begins another"):
        remote.act(rows[1])
    with pytest.raises(S2RobotError, match="Not connected"):
        remote.act(rows[1])
    with pytest.raises(S2RobotError, match=r"Nobody listens .* s2robot serve RUN"):
        remote.reset()
    with server_thread(runs["bc-rnn"], port=port):
        remote.reset()
        for row, right in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(remote.act(row), right)
        remote.close()
    with server_thread(runs["bc-mlp"], port=port):
        for _ in range(2):  # whoever tries again is not driven by the other either
            with pytest.raises(S2RobotError, match=r"Another policy .*bc-rnn -> bc-mlp"):
                remote.reset()


def test_the_same_kind_with_other_weights_is_another_policy(tmp_path: Path) -> None:
    """As after training again into the folder that is served."""
    served = [small_policy(tmp_path / name) for name in "ab"]
    for scale, run in zip((1.0, 0.5), served, strict=True):
        weights, about = run / "policy" / "policy.safetensors", run / "policy" / "policy.json"
        save_file({key: scale * value for key, value in load_file(weights).items()}, weights)
        files.write_json(about, {**files.read_json(about), SUM: seals.digest(weights)})
    with server_thread(served[0]) as first:
        port, remote = address(first.url)[1], RemotePolicy(first.url)
        assert remote.metadata["weights"] == seals.digest(served[0] / "policy" / "policy.safetensors")
    with server_thread(served[1], port=port), pytest.raises(S2RobotError, match=r"Another policy .*\(weights: "):
        remote.reset()


def test_an_answer_that_ctrl_c_left_behind_is_nobody_elses(
    server: Any, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = observations(3)
    with RemotePolicy(server.url) as remote:
        connection = remote._connection
        with monkeypatch.context() as patch:
            patch.setattr(type(connection), "recv", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                remote.act(rows[0])
        remote.reset()
        local.reset()
        for row in rows[1:]:
            np.testing.assert_array_equal(remote.act(row), local.act(row))


def _interrupt(*_: Any, **__: Any) -> bytes:
    raise KeyboardInterrupt


def test_reset_connects_again_where_the_server_closed_between_two_episodes(runs: dict[str, Path], local: Any) -> None:
    row = observations(1)[0]
    with server_thread(runs["bc-rnn"]) as first:
        port = address(first.url)[1]
        remote = RemotePolicy(first.url)
        remote.act(row)
    with server_thread(runs["bc-rnn"], port=port):
        wait_until(lambda: not remote._is_open())
        remote.reset()
        np.testing.assert_array_equal(remote.act(row), local.act(row))
        remote.close()


def test_an_episode_begins_though_the_server_closed_just_after_reset(runs: dict[str, Path], local: Any) -> None:
    rows = observations(2)
    with server_thread(runs["bc-rnn"]) as first:
        port = address(first.url)[1]
        remote = RemotePolicy(first.url)
        remote.reset()
    with server_thread(runs["bc-rnn"], port=port):
        for row in rows:
            np.testing.assert_array_equal(remote.act(row), local.act(row))
    with pytest.raises(S2RobotError, match="closed the connection"):  # in the midst of an episode
        remote.act(rows[0])
    with pytest.raises(S2RobotError, match="Nobody listens"):
        remote.reset()


def test_a_changed_execute_outlives_the_connection(server: Any, local: Any) -> None:
    remote, rows = RemotePolicy(server.url), observations(6)
    remote.execute = local.execute = 1
    remote.close()
    remote.reset()
    for row in rows:
        np.testing.assert_array_equal(remote.act(row), local.act(row))
    assert remote.execute == 1
    remote.close()


def test_it_waits_for_a_server_that_is_still_loading(runs: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made: list[RemotePolicy] = []
    thread = threading.Thread(target=lambda: made.append(RemotePolicy(f"ws://127.0.0.1:{port}", wait=PATIENCE)))
    thread.start()
    with server_thread(runs["bc-mlp"], port=port):
        thread.join(PATIENCE)
        assert made and made[0].act(observations(1)[0]).shape == (8, 4)
        made[0].close()


def test_wrong_addresses_and_tokens_are_explained(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("127.0.0.1:8000", "http://127.0.0.1:8000", "", "ws://", "ws://127.0.0.1:99999", "ws://127.0.0.1:x"):
        with pytest.raises(InvalidInput, match="expected ws://host:port"):
            RemotePolicy(url)
    with pytest.raises(S2RobotError, match=r"Cannot reach ws://no\.such\.host\.invalid"):
        RemotePolicy("ws://no.such.host.invalid:1")
    with server_thread(runs["bc-mlp"], token="right") as server:
        with pytest.raises(S2RobotError, match="says: 401 This server wants a token"):
            RemotePolicy(server.url, token="wrong")
        RemotePolicy(server.url, token="right").close()
        monkeypatch.setenv("S2ROBOT_TOKEN", "right")
        RemotePolicy(server.url).close()


def test_what_is_no_policy_server_is_explained(runs: dict[str, Path]) -> None:
    from websockets.sync.server import serve

    from s2robot.adapters import wire

    hellos = iter([wire.pack({"model": "another"}), wire.pack([1]), "not today", b"\xc1"])

    def hello(connection: Any) -> None:
        connection.send(next(hellos))
        connection.recv(PATIENCE)

    with serve(hello, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        for says in ("does not tell chunk, execute", "sent a list", "says: not today", "no msgpack"):
            with pytest.raises(S2RobotError, match=says):
                RemotePolicy(url)
        server.shutdown()
        thread.join(PATIENCE)


def test_a_server_that_does_not_answer_is_left(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    look = server.policy.network.look
    monkeypatch.setattr(server.policy.network, "look", lambda *a: (gate.wait(PATIENCE), look(*a))[1])
    with RemotePolicy(server.url, timeout=3.0) as remote:
        with pytest.raises(S2RobotError, match=r"did not answer within 3 s"):
            remote.act(observations(1)[0])
        gate.set()
        wait_until(lambda: server.metrics.clients == 0)
        remote.reset()
        assert remote.act(observations(1)[0]).shape == (8, 4)


def test_without_the_extra_its_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("websockets", "websockets.sync", "websockets.sync.client"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 's2robot\[serve\]'"):
        RemotePolicy()
