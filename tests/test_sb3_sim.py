"""Stable-Baselines3 on the real simulation, and all that the page and the example about it say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoders import small_encoder

import s2robot

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from s2robot.adapters.sb3 import FeatureReplayBuffer, GymnasiumVecEnv, S2FeaturesExtractor, S2VecEnv

pytestmark = pytest.mark.sim
ROOT = Path(__file__).resolve().parents[1]
READER: dict[str, Any] = {  # copied wherever it is given: they write into it
    "features_extractor_class": S2FeaturesExtractor,
    "net_arch": [16],
}
PPO_WORDS: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu"}
SAC_WORDS: dict[str, Any] = {
    "learning_starts": 8, "buffer_size": 60, "batch_size": 8, "seed": 0, "device": "cpu",
    "replay_buffer_class": FeatureReplayBuffer,
}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "words"), [(PPO, PPO_WORDS), (SAC, SAC_WORDS)])
def test_lift(lift_env: Any, tmp_path: Path, algorithm: Any, words: dict[str, Any]) -> None:
    """Under the encoder that ships, to the end of what is usually done with a model."""
    shipped = s2robot.load_encoder("s2robot-tiny", scales=(1.0,), device="cpu", engine="torch")
    before = [value.numpy().tobytes() for value in shipped.state_dict().values()]
    env = VecMonitor(S2VecEnv(DummyVecEnv([lambda: lift_env]), shipped))
    model = algorithm("MultiInputPolicy", env, policy_kwargs={**READER}, **words).learn(24)
    model.save(tmp_path / "model")
    again, seen = algorithm.load(tmp_path / "model", device="cpu"), env.reset()
    assert np.array_equal(model.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])
    assert [value.numpy().tobytes() for value in shipped.state_dict().values()] == before
    assert env.observation_space["features"].shape == (2, 192, 8, 8)


def returned(env: Any, *, cost: float, short: float) -> float:
    """By Reach's expert that is shown the cube so much too high [m]."""
    env.reset(seed=500_003)
    expert, total, is_over = env.task.demonstrator(), 0.0, False
    while not is_over:
        state = env.privileged()
        _, reward, success, late, _ = env.step(expert.act({**state, "cube": state["cube"] + [0, 0, short]}))
        total, is_over = total + reward - cost, success or late
    return total


def test_success_pays_where_steps_cost() -> None:
    """Of rewards in [0, 1] it ends the flow: see `GymnasiumVecEnv`."""
    env = s2robot.make_env("Reach", fidelity="fast", render_frames=False)
    assert returned(env, cost=0.0, short=0.0) < returned(env, cost=0.0, short=0.03)
    assert returned(env, cost=1.0, short=0.0) > returned(env, cost=1.0, short=0.03)
    env.close()
    for name in ("docs/reinforcement.md", "examples/sb3_ppo.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert all("cost=1.0" in line for line in text.splitlines() if re.search(r"= GymnasiumVecEnv\(", line))


def test_our_vector_environment_behind_their_interface() -> None:
    vector = s2robot.make_vec_env("Reach", 2, fidelity="fast", frame_size=64, autoreset_mode="SameStep")
    bridge = GymnasiumVecEnv(vector)
    env = VecMonitor(S2VecEnv(bridge, small_encoder()))
    assert (
        env.render_mode == "rgb_array" and len(bridge.get_images()) == 2 and bridge.get_attr("fidelity", 1) == ["fast"]
    )
    env.seed(3)
    seen = env.reset()
    assert bridge.reset_infos[1]["seed"] == 4 and seen["features"].shape == (2, 2, 32, 4, 4)
    vector.step_chunk(np.zeros((2, 58, 3), np.float32))
    env.step(np.zeros((2, 3), np.float32))
    seen, rewards, dones, infos = env.step(np.zeros((2, 3), np.float32))
    assert dones.all() and rewards.dtype == np.float32
    for info in infos:
        assert info["TimeLimit.truncated"] is True and info["is_success"] is False and info["episode"]["l"] == 2
        assert info["terminal_observation"]["features"].dtype == np.float16
    PPO("MultiInputPolicy", env, policy_kwargs={**READER}, **PPO_WORDS).learn(32)
    env.close()
    assert vector.closed


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/reinforcement.md").read_text(encoding="utf-8"), re.DOTALL)


def program(file: Path, *words: str) -> str:
    """Run one; environments are processes that import it."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", file, *words], cwd=file.parent, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_pages_program_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    short = {
        "20_000": "24", "learning_starts=200": "learning_starts=8, batch_size=8", "buffer_size=100_000":
        "buffer_size=100", '"Reach", 4': '"Reach", 2', "(4, 3)": "(2, 3)", "range(15)": "range(2)",
    }  # fmt: skip
    text = snippets()[0]
    for long, brief in short.items():
        assert long in text
        text = text.replace(long, brief)
    (tmp_path / "page.py").write_text(text, encoding="utf-8")
    program(tmp_path / "page.py")
    assert {file.name for file in (tmp_path / "runs").iterdir()} == {
        "reach-sac.zip", "reach-sac.normalize", "reach-sac.safetensors"
    }  # fmt: skip


def test_the_pages_table_is_what_its_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippets()[1], "reinforcement.md", "exec"), {})
    rows = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 8 and "\n".join(rows) in (ROOT / "docs/reinforcement.md").read_text(encoding="utf-8")
