"""All that a learner of Stable-Baselines3 is, to disk and back: one that was killed goes on to the same bits.

    state.pt     networks, optimisers, temperature, normaliser, random numbers, counters, where the simulations are
    replay.npz   the replay buffer, where there is one

Taken between two rollouts. Both are plain numbers; neither runs code when it is read.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2robot import files, seals
from s2robot.adapters.sb3_worlds import Worlds
from s2robot.errors import CorruptFile, InvalidInput, require

_PURPOSE = "Reinforcement learning"
require("stable_baselines3", extra="rl", purpose=_PURPOSE)
_saving: Any = require("stable_baselines3.common.save_util", extra="rl", purpose=_PURPOSE)

COUNTS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")
LAST = ("_last_obs", "_last_original_obs", "_last_episode_starts")
STATE, REPLAY = "state.pt", "replay.npz"


def save(folder: Path, model: Any, worlds: Worlds, more: dict[str, Any]) -> None:
    """Write a checkpoint, all at once or not at all; others beside it are removed.

    Args:
        folder: of checkpoints; each is one in it, named by its decision.
        more: plain JSON that `restore` gives back.
    """
    modules, variables = model._get_torch_save_params()
    memory = worlds.remember()
    state = {
        "modules": {name: _saving.recursive_getattr(model, name).state_dict() for name in modules},
        "variables": {name: _saving.recursive_getattr(model, name).detach() for name in variables},
        "last": {name: _tensors(getattr(model, name)) for name in LAST},
        "normaliser": {
            key: {"mean": torch.from_numpy(rms.mean), "var": torch.from_numpy(rms.var), "count": float(rms.count)}
            for key, rms in model.get_vec_normalize_env().obs_rms.items()
        },
        "pasts": [torch.from_numpy(actions) for actions in memory["actions"]],
        "torch": torch.get_rng_state(),
        "plain": json.dumps(
            files.plain({
                "counts": {name: getattr(model, name) for name in COUNTS},
                "worlds": {key: value for key, value in memory.items() if key != "actions"},
                "episodes": list(model.ep_info_buffer or ()), "successes": list(model.ep_success_buffer or ()),
                "numpy": np.random.get_state(), "python": random.getstate(),  # noqa: NPY002 - the ones SB3 draws from
                "actions": model.action_space.np_random.bit_generator.state,
                "more": more,
            })
        ),
    }  # fmt: skip
    target = folder / f"{model.num_timesteps:08}"
    if target.exists():
        return
    with files.atomic_folder(target) as temporary:
        temporary.mkdir(parents=True)
        torch.save(state, temporary / STATE)
        if buffer := getattr(model, "replay_buffer", None):
            buffer.save(temporary / REPLAY)
    for old in checkpoints(folder)[:-1]:
        _remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit())


def restore(folder: Path, model: Any, worlds: Worlds) -> dict[str, Any] | None:
    """Bring a new model to its newest checkpoint, if there is one; what `more` was.

    Raises:
        CorruptFile: it cannot be read, or is of another model.
    """
    found = checkpoints(folder)
    if not found:
        return None
    path, remedy = found[-1], f"Delete {found[-1]} to begin from the start"
    try:
        seals.check_zip(path / STATE, remedy)  # torch does not look at its sums
        state = torch.load(path / STATE, weights_only=True, map_location="cpu")
        told = json.loads(state["plain"])
        model.set_parameters(state["modules"], exact_match=True)
        for name, value in state["variables"].items():
            _saving.recursive_getattr(model, name).data.copy_(value)
        for key, kept in state["normaliser"].items():
            rms = model.get_vec_normalize_env().obs_rms[key]
            rms.mean, rms.var, rms.count = kept["mean"].numpy(), kept["var"].numpy(), kept["count"]
        for name in LAST:
            setattr(model, name, _arrays(state["last"][name]))
        for name in COUNTS:
            setattr(model, name, told["counts"][name])
        if buffer := getattr(model, "replay_buffer", None):
            buffer.load(path / REPLAY)
        pasts = [past.numpy() for past in state["pasts"]]
    except MemoryError:  # says nothing of the file
        raise
    except (CorruptFile, InvalidInput) as error:
        raise CorruptFile(path, str(error), remedy) from error
    except Exception as error:  # torch and json raise many kinds for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CorruptFile(path, reason, remedy) from error
    worlds.recall({**told["worlds"], "actions": pasts})  # what fails here is the simulation, not the file
    _put_back(model, told)
    torch.set_rng_state(state["torch"])
    more: dict[str, Any] = told["more"]
    return more


def _put_back(model: Any, told: dict[str, Any]) -> None:
    """Random numbers, and what rates of success are averaged over."""
    from collections import deque

    model.ep_info_buffer = deque(told["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(told["successes"], maxlen=model._stats_window_size)
    kind, words, position, has_gauss, gauss = told["numpy"]
    np.random.set_state((kind, np.array(words, np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, following = told["python"]
    random.setstate((version, tuple(internal), following))
    model.action_space.np_random.bit_generator.state = told["actions"]


def _tensors(value: Any) -> Any:
    """Arrays as tensors, by key where they have keys."""
    if isinstance(value, dict):
        return {key: _tensors(each) for key, each in value.items()}
    return None if value is None else torch.from_numpy(np.array(value))


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(each) for key, each in value.items()}
    if isinstance(value, Tensor):
        array: NDArray[Any] = value.numpy()
        return array
    return value


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
