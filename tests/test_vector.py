"""Environments in processes of their own: the bits of a single one, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import s2robot
from s2robot.envs import served
from s2robot.envs.bridge import RobosuiteEnv
from s2robot.envs.vector import DEATHS, VectorEnv
from s2robot.errors import InvalidInput, S2RobotError, UnknownName, UsageError
from s2robot.types import FRAMES, PROPRIOCEPTION

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, Any] = {"fidelity": "fast", "frame_size": 64}  # those of `lift_env`
N = 3

Rows = list[tuple[bytes, ...]]


@pytest.fixture(scope="module")
def shared() -> Iterator[VectorEnv]:
    env = s2robot.make_vec_env("Lift", N, **OPTIONS)
    yield env
    env.close()


@pytest.fixture
def vector(shared: VectorEnv) -> Iterator[VectorEnv]:
    yield shared
    shared.mode, shared.copy = AutoresetMode.NEXT_STEP, True


def actions(length: int, seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (length, n, 4)).astype(np.float32)


def play(vector: VectorEnv, seed: int, plan: np.ndarray) -> list[Rows]:
    """What each environment shows: frames, proprioception, reward, state, step by step."""
    observation, _ = vector.reset(seed=seed)
    rows: list[Rows] = [[] for _ in range(vector.num_envs)]
    _note(rows, vector, observation, np.zeros(vector.num_envs))
    for action in plan:
        observation, reward, *_ = vector.step(action)
        _note(rows, vector, observation, reward)
    return rows


def _note(rows: list[Rows], vector: VectorEnv, observation: Any, reward: np.ndarray) -> None:
    for k, state in enumerate(vector.call("state")):
        rows[k].append((*_bits({key: observation[key][k] for key in observation}, reward[k]), state.tobytes()))


def _bits(observation: Any, reward: float) -> tuple[bytes, ...]:
    return observation[FRAMES].tobytes(), observation[PROPRIOCEPTION].tobytes(), np.float64(reward).tobytes()


def alone(env: RobosuiteEnv, seed: int, plan: np.ndarray) -> Rows:
    """The same of a single environment; plan (L, M). It resets as the next step would."""
    observation, _ = env.reset(seed=seed)
    rows, over = [(*_bits(observation, 0.0), env.state().tobytes())], False
    for action in plan:
        if over:
            observation, reward, over = env.reset()[0], 0.0, False
        else:
            observation, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        rows.append((*_bits(observation, reward), env.state().tobytes()))
    return rows


def kill(vector: VectorEnv, k: int, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(vector.pids[k], how)


# -- the same bits ---------------------------------------------------------------------------------------------------


def test_each_is_a_single_environment(vector: VectorEnv, lift_env: RobosuiteEnv) -> None:
    plan = actions(15)
    together = play(vector, 40, plan)
    for k in range(N):
        assert together[k] == alone(lift_env, 40 + k, plan[:, k])
    assert len({rows[0] for rows in together}) == N


def test_episodes_follow_one_another_as_a_single_environments_do(vector: VectorEnv, lift_env: RobosuiteEnv) -> None:
    chunk, after = actions(vector.task.horizon, 1), actions(2, 2)
    vector.reset(seed=7)
    *_, truncated, info = vector.step_chunk(chunk.swapaxes(0, 1))
    assert truncated.all() and (info["steps"] == vector.task.horizon).all()
    first, reward, terminated, truncated, info = vector.step(after[0])
    assert not (reward.any() or terminated.any() or truncated.any() or info["steps"].any())
    second, *_ = vector.step(after[1])
    for k in range(N):
        lift_env.reset(seed=7 + k)
        lift_env.step_chunk(chunk[:, k])
        for seen, single in ((first, lift_env.reset()[0]), (second, lift_env.step(after[1, k])[0])):
            np.testing.assert_array_equal(seen[FRAMES][k], single[FRAMES])
            np.testing.assert_array_equal(seen[PROPRIOCEPTION][k], single[PROPRIOCEPTION])


def test_a_chunk_is_its_actions(vector: VectorEnv) -> None:
    plan = actions(4)
    vector.reset(seed=3)
    at_once, reward, *_ = vector.step_chunk(plan.swapaxes(0, 1))
    vector.reset(seed=3)
    singly = [vector.step(action) for action in plan]
    np.testing.assert_array_equal(at_once[FRAMES], singly[-1][0][FRAMES])
    np.testing.assert_allclose(reward, sum(step[1] for step in singly))


@pytest.mark.slow
def test_frames_are_ones_own_over_two_thousand_steps() -> None:
    vector, single = s2robot.make_vec_env("PickColor", 4, **OPTIONS), s2robot.make_env("PickColor", **OPTIONS)
    try:
        plan = actions(500, n=4)
        together = play(vector, 0, plan)
        for k in range(4):
            assert together[k] == alone(single, k, plan[:, k])
    finally:
        vector.close()
        single.close()


@pytest.mark.slow
def test_whatever_an_environment_shows_comes_through() -> None:
    options = OPTIONS | {"extras": ("depth", "segmentation", "privileged"), "shift": "all"}
    vector, single = s2robot.make_vec_env("PickColorSmall", 2, **options), s2robot.make_env("PickColorSmall", **options)
    try:
        assert vector.single_observation_space == single.observation_space
        together = vector.reset(seed=3)[0], vector.reset()[0]
        for k in range(2):
            for seen, alone in zip(together, (single.reset(seed=3 + k)[0], single.reset()[0]), strict=True):
                assert seen.keys() == alone.keys()
                for key, value in alone.items():
                    np.testing.assert_array_equal(seen[key][k], value)
    finally:
        vector.close()
        single.close()


# -- Gymnasium's contract --------------------------------------------------------------------------------------------


def test_spaces_and_modes(vector: VectorEnv) -> None:
    observation, info = vector.reset(seed=0)
    assert vector.observation_space.contains(observation)
    assert vector.action_space.shape == (N, 4)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert info["success"].tolist() == [False] * N and info["seed"].tolist() == [0, 1, 2]
    assert [frame.shape for frame in vector.render()] == [(64, 64, 3)] * N
    np.testing.assert_array_equal(vector.render()[1], observation[FRAMES][1, 0])


def test_seeds_are_a_number_or_a_list(vector: VectorEnv) -> None:
    counted, _ = vector.reset(seed=4)
    listed, _ = vector.reset(seed=np.array([4, 5, 6]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(counted[FRAMES], listed[FRAMES])
    on, _ = vector.reset()
    assert not np.array_equal(on[PROPRIOCEPTION], listed[PROPRIOCEPTION])
    with pytest.raises(InvalidInput, match="2 seeds came for 3 environments"):
        vector.reset(seed=[1, 2])


def test_copies_stay_and_views_are_written_over(vector: VectorEnv) -> None:
    plan = actions(2)
    first, _ = vector.reset(seed=1)
    kept = first[FRAMES].copy()
    vector.copy = False
    view, *_ = vector.step(plan[0])
    next_view, *_ = vector.step(plan[1])
    assert not np.shares_memory(view[FRAMES], next_view[FRAMES])  # one step and the next can be held against each other
    before = view[FRAMES].copy()
    vector.reset(seed=2)
    assert not np.array_equal(view[FRAMES], before)
    np.testing.assert_array_equal(first[FRAMES], kept)


def test_same_step_mode_has_the_last_observation_in_info(vector: VectorEnv) -> None:
    chunk = np.zeros((N, vector.task.horizon, 4), np.float32)
    vector.reset(seed=0)
    last, *_ = vector.step_chunk(chunk)
    vector.mode = AutoresetMode.SAME_STEP
    vector.reset(seed=0)
    new, _, _, truncated, info = vector.step_chunk(chunk)
    assert truncated.all() and info["_final_obs"].all() and info["_final_info"].all()
    assert (info["final_info"]["steps"] == vector.task.horizon).all()
    for k in range(N):
        np.testing.assert_array_equal(info["final_obs"][k][FRAMES], last[FRAMES][k])
    assert not np.array_equal(new[FRAMES], last[FRAMES])
    *_, truncated, info = vector.step(chunk[:, 0])
    assert not truncated.any() and (info["steps"] == 1).all()


def test_disabled_mode_leaves_resets_to_the_caller(vector: VectorEnv) -> None:
    vector.mode = AutoresetMode.DISABLED
    vector.reset(seed=0)
    chunk = np.zeros((N, vector.task.horizon, 4), np.float32)
    last, *_ = vector.step_chunk(chunk)
    with pytest.raises(UsageError, match="reset"):
        vector.step(chunk[:, 0])
    mask = np.array([False, True, False])
    observation, _ = vector.reset(seed=9, options={"reset_mask": mask})
    np.testing.assert_array_equal(observation[FRAMES][~mask], last[FRAMES][~mask])
    fresh, _ = vector.reset(seed=9)
    np.testing.assert_array_equal(observation[FRAMES][1], fresh[FRAMES][1])
    with pytest.raises(InvalidInput, match="reset_mask"):
        vector.reset(options={"reset_mask": np.zeros(N, bool)})


def test_wrong_actions_move_nobody(vector: VectorEnv) -> None:
    vector.reset(seed=0)
    before = vector.call("state")
    for wrong in (np.zeros((N, 7)), np.full((N, 4), 2.0), np.full((N, 4), np.nan)):
        with pytest.raises(InvalidInput, match="Action"):
            vector.step(wrong)
    with pytest.raises(InvalidInput, match="Action"):
        vector.step_chunk(np.zeros((N, 0, 4)))
    for was, now in zip(before, vector.call("state"), strict=True):
        np.testing.assert_array_equal(was, now)


def test_errors_keep_their_type_and_the_others_their_place(vector: VectorEnv) -> None:
    vector.reset(seed=0)
    with pytest.raises(S2RobotError, match=r"^These environments have no 'nonsense'$"):
        vector.call("nonsense")
    _, _, _, _, info = vector.step(actions(1)[0])
    assert (info["steps"] == 1).all()


def test_what_cannot_be_made_is_said_and_leaves_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'agentview'"):
        s2robot.make_vec_env("Lift", 1, cameras=("agentveiw",))
    with pytest.raises(UnknownName, match="Did you mean 'Lift'"):
        s2robot.make_vec_env("Lfit", 1)
    with pytest.raises(UnknownName, match="NextStep"):
        s2robot.make_vec_env("Lift", 1, autoreset_mode="NxtStep")
    for count in (0, "2"):
        with pytest.raises(InvalidInput, match="at least 1"):
            s2robot.make_vec_env("Lift", count)  # type: ignore[arg-type]
    assert "Traceback" not in capfd.readouterr().err


# -- processes -------------------------------------------------------------------------------------------------------


def test_a_death_costs_its_own_episode_and_no_other(
    vector: VectorEnv, lift_env: RobosuiteEnv, caplog: pytest.LogCaptureFixture
) -> None:
    plan = actions(12)
    undisturbed = play(vector, 20, plan)
    observation, _ = vector.reset(seed=20)
    rows: list[Rows] = [[] for _ in range(N)]
    _note(rows, vector, observation, np.zeros(N))
    for t, action in enumerate(plan):
        if t == 5:
            kill(vector, 1)
        before = observation
        observation, reward, terminated, truncated, info = vector.step(action)
        _note(rows, vector, observation, reward) if t != 5 else None
        assert truncated.tolist() == [False, t == 5, False] and not terminated.any()
        if t == 5:
            said = info["worker_died"][1]
            assert "Environment 1 (reset(seed=21), episode 0 from there, step 5)" in said and "SIGKILL" in said
            assert said in caplog.text
            assert info["_worker_died"].tolist() == [False, True, False]
            np.testing.assert_array_equal(observation[FRAMES][1], before[FRAMES][1])
        if t == 6:
            assert reward[1] == 0 and info["steps"].tolist() == [1, 0, 1]
            again, _ = lift_env.reset(seed=int(info["seed"][1]))
            np.testing.assert_array_equal(observation[FRAMES][1], again[FRAMES])
    for k in (0, 2):
        assert rows[k] == undisturbed[k][:6] + undisturbed[k][7:]


def test_a_death_between_questions_is_noticed_by_the_next(vector: VectorEnv) -> None:
    vector.reset(seed=0)
    kill(vector, 2)
    with pytest.raises(S2RobotError, match=r"Environment 2 .* SIGKILL"):
        vector.call("state")
    *_, truncated, info = vector.step(actions(1)[0])
    assert truncated.tolist() == [False, False, True] and info["worker_died"][2]
    kill(vector, 0)
    fresh, _ = vector.reset(seed=0)  # nobody's episode: started again from the same seed
    again, _ = vector.reset(seed=0)
    np.testing.assert_array_equal(fresh[FRAMES], again[FRAMES])


def test_a_hung_process_is_replaced(vector: VectorEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    vector.reset(seed=0)
    vector.step(actions(1)[0])
    kill(vector, 0, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(served, "PATIENCE", 5.0)
        *_, truncated, info = vector.step(actions(1)[0])
    assert truncated.tolist() == [True, False, False] and info["worker_died"][0]
    *_, truncated, info = vector.step(actions(1)[0])
    assert not truncated.any()


def test_answers_to_a_question_nobody_waited_for_are_dropped(vector: VectorEnv) -> None:
    vector.reset(seed=0)
    vector._processes[1].ask("state")  # as Ctrl-C leaves it
    *_, info = vector.step(actions(1)[0])
    assert (info["steps"] == 1).all()


@pytest.mark.slow
def test_processes_that_keep_dying_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    env = s2robot.make_vec_env("Reach", 1, render_frames=False, fidelity="fast")
    still = np.zeros((1, *env.single_action_space.shape), np.float32)
    env.reset(seed=0)
    for _ in range(DEATHS - 1):
        kill(env, 0)
        env.step(still)
        env.step(still)
    kill(env, 0)
    with pytest.raises(S2RobotError, match=f"last of {DEATHS}"):
        env.step(still)
    assert env.closed


def test_children_have_one_thread_each_and_no_torch(vector: VectorEnv) -> None:
    for process in vector._processes:
        folder = Path(f"/proc/{process.pid}")
        assert b"OMP_NUM_THREADS=1" in folder.joinpath("environ").read_bytes().split(b"\0")
    code = "import sys, s2robot.envs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import numpy as np
import s2robot

if __name__ == "__main__":
    env = s2robot.make_vec_env("Lift", 1, frame_size=32, fidelity="fast", copy=False)
    observation, _ = env.reset(seed=0)
    env.step(np.zeros((1, 4), np.float32))
    print(*[each.process.pid for each in env._processes], flush=True)
    {end}
    print(observation["frames"].mean(), flush=True)  # still there
"""


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "pass",
        pytest.param("env.close()", marks=pytest.mark.slow),
        pytest.param("del env", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left(end: str, tmp_path: Path) -> None:
    """Neither processes nor shared memory, and nothing said about either, however it ends."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), end=end))
    memory = Path("/dev/shm")
    before = set(memory.iterdir()) if memory.exists() else set()
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == (-signal.SIGKILL if "SIGKILL" in end else 0), done.stderr
    said = [line for line in done.stderr.splitlines() if "robosuite" not in line]
    assert not said
    deadline = time.monotonic() + 20
    while alive := [pid for pid in done.stdout.splitlines()[0].split() if _alive(int(pid))]:
        assert time.monotonic() < deadline, f"{alive} outlived their parent"
        time.sleep(0.1)
    mine = {file for file in (set(memory.iterdir()) if memory.exists() else set()) - before if "pym-" in file.name}
    assert not mine


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
