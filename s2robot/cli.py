"""The `s2robot` command: one verb, its options, a clear error, an exit code.

    0 done    1 failed or stopped    2 wrong usage

`--debug` before or after the verb shows the whole traceback of an error.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from rich.console import Console

from s2robot import __version__
from s2robot.errors import S2RobotError, UnknownName, in_words

VERBS = {
    "demo": "everything once: demonstrations, features, policy, rollouts, a page to look at",
    "doctor": "what works on this machine, and what to install",
    "list": "encoders, tasks, policies, configs, datasets",
    "collect": "scripted demonstrations of a task",
    "view": "a dataset as a table, a contact sheet and videos",
    "render": "a dataset's frames from its simulator states, at any size",
    "convert": "a dataset to LeRobot's layout and back",
    "encode": "demonstrations to stored features, once",
    "train": "a policy on stored features",
    "rl": "a policy by reinforcement learning, on features, pixels or privileged state",
    "eval": "rollouts of a trained policy on unseen seeds",
    "compare": "runs on the same seeds: the difference, and whether it is resolved",
    "study": "arms of a question, each trained and judged on the same seeds, as one table and page",
    "report": "a run folder as one page",
    "pretrain": "an encoder by masked autoencoding on randomised scenes",
    "probe": "what frozen features know, against the simulator's truth on held-out scenes",
    "bench": "how fast an encoder is here, and how much of the machine it uses; how fast a task is",
    "serve": "a policy over a websocket, to openpi-client and to s2robot.RemotePolicy",
    "export": "an encoder as one file for ONNX Runtime, OpenVINO or torch.export",
    "ros2": "ROS 2 nodes: images to features, images and state to action chunks",
}
_HOMES = {  # the others are in s2robot.verbs
    "view": "s2robot.dataset_verbs",
    "render": "s2robot.dataset_verbs",
    "convert": "s2robot.dataset_verbs",
    "train": "s2robot.policy_verbs",
    "eval": "s2robot.policy_verbs",
    "rl": "s2robot.rl_verb",
    "probe": "s2robot.probe_verb",
    "bench": "s2robot.encoder_verbs",
    "export": "s2robot.encoder_verbs",
    "pretrain": "s2robot.pretrain_verb",
    "compare": "s2robot.compare_verb",
    "study": "s2robot.study_verb",
    "serve": "s2robot.serve_verb",
    "ros2": "s2robot.ros2_verb",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    # OpenMP's threads spin while they wait; beside any other busy process torch then runs ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logger = logging.getLogger("s2robot")
    before = logger.level
    logger.setLevel(logging.DEBUG if debug else before)
    try:
        return _run(words)
    except BrokenPipeError:  # `s2robot list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence: one line for the user
        if debug:
            traceback.print_exc()
        code, message = _explain(error)
        Console(stderr=True, soft_wrap=True).print(f"[red bold]s2robot:[/] {_escape(message)}", highlight=False)
        return code
    finally:
        logger.setLevel(before)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of whatever came up."""
    from s2robot.files import is_full_disk

    if isinstance(error, S2RobotError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 1, "Stopped. What was finished is kept: the same command goes on from there"
    words = in_words(error, 300)
    if is_full_disk(error):
        return 1, f"The disk is full ({words}). Free some space and run the same command again: it goes on from there"
    return 1, f"{type(error).__name__}: {words}. This is a bug: please report it with the output of --debug"


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"s2robot {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UnknownName("command", verb, VERBS, "s2robot --help")
    if verb == "doctor":
        return int(importlib.import_module("s2robot.doctor").main(rest))
    run = getattr(importlib.import_module(_HOMES.get(verb, "s2robot.verbs")), f"do_{verb}")
    return int(run(rest))


def _help() -> str:
    lines = ["usage: s2robot VERB [options]        s2robot VERB --help", ""]
    lines += [f"  {name:<10} {purpose}" for name, purpose in VERBS.items()]
    return "\n".join([*lines, "", "Example: s2robot demo --quick", "--debug shows the traceback of an error."])


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
