"""What a request on the wire is: one map, of which an observation is made, or a clear refusal.

frames                     uint8 (V, H, W, 3)    our own table's keys (`s2robot.types`), or, as openpi's clients say it:
observation/<camera>       uint8 (H, W, 3)       one a camera, by the names of the metadata
proprioception             numbers (Q,)          or
observation/state          numbers (Q,)
goal                       numbers (G,)          or, where the task names its goals:
prompt                     text                  in which exactly one of the goal's names occurs: "pick the red cube"
reset                      true                  begin a new episode, then answer; alone: only begin
execute                    1 to A                with `reset`: how many actions of a chunk this client executes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot.adapters.serve_policy import Interface
from s2robot.errors import InvalidInput, UnknownName
from s2robot.preprocess import check_frames
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Observation

IMAGE, STATE, PROMPT, RESET, EXECUTE = "observation/", "observation/state", "prompt", "reset", "execute"
LARGEST_NUMBER = 1e6  # in metres, radians or shares of a goal; far larger ones overflow within a network
LARGEST_SIDE = 2048  # of a frame [pixels]: beyond, resizing it takes longer than all that is done with it


@dataclass(frozen=True)
class Request:
    """What a client asks: to begin an episode, to act on an observation, or both in this order."""

    observation: Observation | None
    reset: bool
    execute: int | None


def read_request(message: Any, wants: Interface) -> Request:
    """Hold a message against the table above and against what the policy takes.

    Raises:
        InvalidInput: says what came, what is taken, and what to send instead.
    """
    known = _known(wants)
    if not isinstance(message, dict):
        raise InvalidInput(f"The message is a {type(message).__name__}; expected a map of {', '.join(known)}")
    for key in message:
        if key not in known:
            raise UnknownName("key", str(key)[:60], known, "see the metadata")
    reset, execute = message.get(RESET, False), message.get(EXECUTE)
    if not isinstance(reset, bool):
        raise InvalidInput(f"'reset' is {repr(reset)[:40]}; expected true or false")
    if execute is not None and (type(execute) is not int or not reset):
        raise InvalidInput(f"'execute' is {repr(execute)[:40]}; expected a whole number, together with 'reset': true")
    if reset and not message.keys() - {RESET, EXECUTE}:
        return Request(None, reset, execute)
    observation: dict[str, NDArray[Any]] = {FRAMES: _frames(message, wants), PROPRIOCEPTION: _state(message, wants)}
    if wants.goal or GOAL in message or PROMPT in message:
        observation |= _goal(message, wants)
    return Request(observation, reset, execute)


def _known(wants: Interface) -> list[str]:
    images = [IMAGE + camera for camera in wants.cameras]
    return [FRAMES, PROPRIOCEPTION, GOAL, *images, STATE, PROMPT, RESET, EXECUTE]


def _frames(message: Mapping[str, Any], wants: Interface) -> NDArray[np.uint8]:
    """(V, H, W, 3), a copy: arrays off the wire are read-only."""
    keys = [IMAGE + camera for camera in wants.cameras]
    given = [key for key in keys if key in message]
    if (FRAMES in message) == bool(given):
        both, joint = ("Both", "and") if given else ("Neither", "nor")
        raise InvalidInput(f"{both} 'frames' {joint} {' '.join(given or keys)}: send one of them")
    if given and (missing := sorted(set(keys) - set(given))):
        raise InvalidInput(f"The observation lacks {', '.join(missing)}: send all {len(keys)} cameras")
    if given:
        images = [_pixels(message[key], key, ("H", "W", "3")) for key in keys]
        if len({image.shape for image in images}) > 1:
            came = ", ".join(
                f"{key} {image.shape[0]}x{image.shape[1]}" for key, image in zip(keys, images, strict=True)
            )
            raise InvalidInput(f"Cameras of different sizes: {came}. Resize them to one size, such as {_size(wants)}")
        frames = np.stack(images)
    else:
        frames = np.array(_pixels(message[FRAMES], FRAMES, ("V", "H", "W", "3")))
        if len(frames) != len(wants.cameras):
            raise InvalidInput(f"'frames' are {frames.shape}; expected {len(keys)} views: {', '.join(wants.cameras)}")
    height, width = frames.shape[1:3]
    if max(height, width) > LARGEST_SIDE:
        raise InvalidInput(f"Frames are {height}x{width}; the largest side may be {LARGEST_SIDE}. Send {_size(wants)}")
    if not wants.fits((height, width)):
        raise InvalidInput(
            f"Frames are {height}x{width} (rows x columns); this policy was trained on {_size(wants)}, and takes"
            f" {wants.fitting}: crop or resize them first, or openpi_client.image_tools.resize_with_pad"
        )
    return frames


def _pixels(value: Any, key: str, axes: tuple[str, ...]) -> NDArray[np.uint8]:
    if not isinstance(value, np.ndarray) or value.ndim != len(axes):
        came = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise InvalidInput(f"{key!r} is {came}; expected uint8 ({', '.join(axes)}), RGB, top row first")
    try:
        check_frames(value)
    except InvalidInput as error:
        raise InvalidInput(f"{key!r}: {error}") from None
    return value


def _state(message: Mapping[str, Any], wants: Interface) -> NDArray[np.float32]:
    given = [key for key in (PROPRIOCEPTION, STATE) if key in message]
    if len(given) != 1:
        both, joint = ("Both", "and") if given else ("Neither", "nor")
        raise InvalidInput(f"{both} {PROPRIOCEPTION!r} {joint} {STATE!r}: send one of them")
    return _numbers(message[given[0]], given[0], wants.proprioception, wants.proprioception_names)


def _goal(message: Mapping[str, Any], wants: Interface) -> dict[str, NDArray[np.float32]]:
    if GOAL in message and PROMPT in message:
        raise InvalidInput(f"Both {GOAL!r} and {PROMPT!r}: send one of them")
    if GOAL in message:
        goal = _numbers(message[GOAL], GOAL, wants.goal, wants.goal_names)
        return {GOAL: goal} if wants.goal else {}
    if PROMPT not in message:
        raise InvalidInput(f"The observation lacks {GOAL!r} ({wants.goal},){_one_of(wants.goal_names)}, or {PROMPT!r}")
    prompt = message[PROMPT]
    if not isinstance(prompt, str):
        raise InvalidInput(f"{PROMPT!r} is a {type(prompt).__name__}; expected text")
    if not wants.goal:
        if prompt.strip() and not (wants.task and _says(prompt, wants.task)):
            what = wants.task or "one thing"
            raise InvalidInput(f"This policy has no goal and does {what} whatever it is told: leave {PROMPT!r} out")
        return {}
    said = [name for name in wants.goal_names if _says(prompt, name)]
    if len(said) != 1:
        raise InvalidInput(
            f"{PROMPT!r} {prompt[:80]!r} names {', '.join(said) or 'no goal'}; expected exactly one"
            f"{_one_of(wants.goal_names)}, or send {GOAL!r}, numbers ({wants.goal},)"
        )
    return {GOAL: np.eye(wants.goal, dtype=np.float32)[wants.goal_names.index(said[0])]}


def _says(text: str, name: str) -> bool:
    """Does the name occur in the text, as whole words?"""
    plain = [" ".join(re.findall(r"[^\W_]+", each.lower())) for each in (text, name)]
    return bool(plain[1]) and f" {plain[1]} " in f" {plain[0]} "


def _numbers(value: Any, key: str, count: int, names: tuple[str, ...]) -> NDArray[np.float32]:
    """(count,) float32, finite, of any kind of numbers; a plain list too."""
    flat = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
    if not flat and not isinstance(value, np.ndarray):
        raise InvalidInput(f"{key!r} is a {type(value).__name__}; expected numbers ({count},){_one_of(names)}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, which is said below
        try:
            numbers = np.array(value, np.float32)
        except OverflowError:  # an integer of hundreds of digits
            numbers = np.full(len(value), np.inf, np.float32)
    if numbers.shape != (count,):
        raise InvalidInput(f"{key!r} is {numbers.shape}; this policy takes ({count},){_one_of(names)}")
    if not (np.abs(numbers) <= LARGEST_NUMBER).all():  # which NaN is not either
        raise InvalidInput(
            f"{key!r} holds NaN, infinity or a number beyond {LARGEST_NUMBER:g}: {str(numbers.tolist())[:200]}"
        )
    return numbers


def _one_of(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _size(wants: Interface) -> str:
    return f"{wants.frame[0]}x{wants.frame[1]}"
