"""Images and state in, action chunks out at a fixed rate: a ROS 2 node around a trained policy (`s2robot ros2 act`).

    in    <images>            one a camera of the policy, in its order: Image, or CompressedImage (ends in /compressed)
          joint_states        sensor_msgs/JointState: the fields of the proprioception that `joints` maps
          ~/proprioception    std_msgs/Float32MultiArray: the other fields, in order; all Q where none is mapped
          ~/goal              std_msgs/Float32MultiArray: what to do, for policies that take a goal
    out   ~/chunk             std_msgs/Float32MultiArray (A, M) in [-1, 1], stamped with its oldest input's stamp
          /diagnostics
    do    ~/reset             std_srvs/Trigger: a new episode begins

While an input is missing, stale, unreadable or blank (`camera_watch`) nothing is published. When all are back the
policy begins a new episode: what it remembers is of another time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import registry
from s2robot.adapters.ros2_contract import Contract, contract_of
from s2robot.adapters.ros2_diagnostics import Diagnostics, Watched, status
from s2robot.adapters.ros2_inputs import Complaints, Tally, different, picture_type
from s2robot.adapters.ros2_messages import Stamp, array_message, messages, numbers_of
from s2robot.adapters.ros2_observing import CameraInput, Clock, StateInput, Value, stacked
from s2robot.adapters.ros2_running import newest, offered, run
from s2robot.adapters.ros2_state import parse_joints
from s2robot.camera_watch import WatchConfig
from s2robot.errors import InvalidInput, S2RobotError, require
from s2robot.types import FRAMES, GOAL, PROPRIOCEPTION, Policy

NAME = "s2robot_act"
MOMENT = 0.2  # seconds between two looks at whether the node is to end


@dataclass(frozen=True)
class ActConfig:
    """Which policy, from what, how often.

    run: the run folder, or its policy/
    images: topics, one a camera of the policy and in its order; by itself <camera>/image_raw
    joints: fields of the proprioception from joint_states: field=joint.position, velocity or effort; =-joint turns
        the sign
    goal: what to do, where the policy takes a goal; ~/goal overrides it
    rate: chunks a second [Hz]; 0: the task's control rate over the policy's execute
    execute: actions of a chunk that are executed before the next look; 0: as the policy was trained
    stale_after: seconds after which a frame or a field of the state is too old to act by
    check_stamps: whether stamps count for that, besides arrival; not where clocks are not synchronised
    reliable: lost parts of images are asked for again; a camera that does not publish reliably is then not heard
    engine, precision: who computes the features
    device: cuda or cpu; by itself CUDA where there is one
    watch: what is done about blank and frozen frames; by themselves blank ones hold, frozen ones are reported
    """

    run: str = ""
    images: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()
    goal: tuple[float, ...] = ()
    rate: float = 0.0
    execute: int = 0
    stale_after: float = 0.5
    check_stamps: bool = True
    reliable: bool = False
    engine: str = "auto"
    precision: str | None = None
    device: str | None = None
    watch: WatchConfig = field(default_factory=lambda: WatchConfig(blank="hold"))

    def __post_init__(self) -> None:
        if self.rate < 0 or self.stale_after <= 0:
            raise InvalidInput(
                f"rate is {self.rate}, stale_after {self.stale_after}; expected a rate from 0 on and seconds above 0"
            )


class ActNode:
    """See this file's head; `step` is one look."""

    def __init__(self, node: Any, config: ActConfig) -> None:
        if not config.run:
            raise InvalidInput("Which policy? s2robot ros2 act RUN, or --ros-args -p run:=RUN")
        self.node, self.config, self.contract = node, config, contract_of(config.run)
        topics = _topics(config, self.contract)
        self.policy = _policy(config)
        self._period = 1 / _rate(config, self.contract, self.policy.execute)
        self._wake, self._busy = threading.Condition(), threading.Lock()
        self._ticks = 0
        self._silent: dict[str, str] = {"everything": "starting"}
        self._tally, self._complaints = Tally(), Complaints(node.get_logger().warning)
        self._clock = Clock(config.stale_after, config.check_stamps, lambda: node.get_clock().now().nanoseconds)
        pairs = zip(self.contract.cameras, topics, strict=True)
        order = config.stale_after if config.check_stamps else 0.0
        self.cameras = [CameraInput(*pair, self._wake, config.watch, order) for pair in pairs]
        joints = parse_joints(config.joints, self.contract.fields)
        where = ("joint_states", "~/proprioception")
        self.state = StateInput(self.contract.fields, joints, self._complaints, where, order)
        self._goal_tally = Tally()
        self._goal = _goal(config, self.contract)
        self._warm_up()
        self._connect()
        cameras = ", ".join(f"{camera.name} from {camera.latest.topic}" for camera in self.cameras)
        node.get_logger().info(
            f"{config.run}: {1 / self._period:g} chunks a second; {cameras}; joint_states gives"
            f" {', '.join(joint.field for joint in joints) or 'nothing'}, ~/proprioception"
            f" {', '.join(self.state.others) or 'nothing'}; out: {', '.join(self.contract.actions)}"
        )

    def _connect(self) -> None:
        """Topics, the service and the timer."""
        node, std = self.node, messages("std_msgs")
        for camera in self.cameras:
            topic = camera.latest.topic
            node.create_subscription(
                picture_type(topic), topic, camera.latest.put, newest(reliable=self.config.reliable)
            )
        if self.state.joints:  # arm and gripper may speak in turn: one place would lose one of them
            joint_state = messages("sensor_msgs").JointState
            node.create_subscription(joint_state, self.state.joint_topic, self.state.on_joints, newest(10))
        if self.state.others:
            node.create_subscription(std.Float32MultiArray, self.state.array_topic, self.state.on_array, newest())
        if self.contract.goals:
            node.create_subscription(std.Float32MultiArray, "~/goal", self._on_goal, 1)
        trigger = require("std_srvs.srv", extra="ros2", purpose="The service ~/reset").Trigger
        node.create_service(trigger, "~/reset", self._on_reset)
        self._chunks = node.create_publisher(std.Float32MultiArray, "~/chunk", offered())
        self._watched = [Watched(camera.latest.topic, camera.latest.tally) for camera in self.cameras]
        used = [(self.state.joint_topic, self.state.joints), (self.state.array_topic, self.state.others)]
        self._watched += [Watched(topic, self.state.tallies[topic]) for topic, fields in used if fields]
        self._watched += [Watched("~/goal", self._goal_tally)] if self.contract.goals else []
        self._all = Watched("policy", self._tally)
        self._diagnostics = Diagnostics(node, self.config.run, self.statuses)
        self._timer = node.create_timer(self._period, self._on_tick)

    def _warm_up(self) -> None:
        """One look at nothing: a first look compiles, and would be late."""
        if not self.contract.frame:
            return
        shape = (len(self.contract.cameras), *self.contract.frame, 3)
        nothing: dict[str, NDArray[Any]] = {FRAMES: np.zeros(shape, np.uint8)}
        for key, count in ((PROPRIOCEPTION, len(self.contract.fields)), (GOAL, self.contract.goals)):
            nothing |= {key: np.zeros(count, np.float32)} if count else {}
        self.policy.act(nothing)
        self.policy.reset()

    def _on_tick(self) -> None:
        with self._wake:
            self._ticks += 1
            self._tally.count("received")
            if self._ticks > 1:  # the last look is not over
                self._ticks = 1
                self._tally.count("dropped")
            self._wake.notify_all()

    def _on_goal(self, message: Any) -> None:
        self._goal_tally.count("received")
        try:
            self._goal = numbers_of(message, self.contract.goals, "A goal")
            self._goal_tally.took()
        except InvalidInput as error:
            self._goal_tally.refuse(str(error))
            self._complaints.about("~/goal", str(error), self._goal_tally)

    def _on_reset(self, _: Any, answer: Any) -> Any:
        with self._busy:  # between two looks
            self.policy.reset()
            for camera in self.cameras:
                camera.watch.reset()
        answer.success, answer.message = True, "a new episode begins"
        self.node.get_logger().info("reset: a new episode begins")
        return answer

    def statuses(self) -> list[Any]:
        """The policy first, then its inputs."""
        silent = dict(self._silent)
        text = "silent: " + "; ".join(f"{name}: {why}" for name, why in silent.items())
        whole = self._all.status()
        if silent:
            whole = status("policy", "ERROR", text, {pair.key: pair.value for pair in whole.values})
        stale = {camera.latest.topic: silent.get(camera.name, "") for camera in self.cameras}
        doubt = {camera.latest.topic: camera.watch.fault for camera in self.cameras}
        names = [(watched, watched.name) for watched in self._watched]
        return [whole, *(each.status(stale.get(name, ""), doubt=doubt.get(name, "")) for each, name in names)]

    def step(self) -> None:
        """Wait for the next tick, then look, decide and publish, or fall silent."""
        with self._wake:
            if not self._wake.wait_for(lambda: self._ticks > 0, MOMENT):
                return
        try:
            self._look()
        finally:
            with self._wake:
                self._ticks = max(0, self._ticks - 1)

    def _look(self) -> None:
        start = time.monotonic()
        for camera in self.cameras:
            camera.refresh(self._complaints)
        values, goal = self.state.values(), self._goal
        if problems := self._problems(values):
            self._fall_silent(problems)
            return
        try:
            frames = stacked(camera.frame for camera in self.cameras if camera.frame is not None)
            numbers = np.array([values[field].value for field in self.contract.fields], np.float32)
            observation: dict[str, NDArray[Any]] = {FRAMES: frames, PROPRIOCEPTION: numbers}
            observation |= {} if goal is None else {GOAL: goal}
            with self._busy:
                if self._silent:
                    self.policy.reset()
                chunk = self.policy.act(observation)
        except S2RobotError as error:
            self._fall_silent({"policy": str(error)})
            return
        problems = self._problems(values)  # again: if it took too long, what it saw is past
        if not np.isfinite(chunk).all():
            problems["policy"] = "its chunk is not finite"
        if problems:
            self._fall_silent(problems)
            return
        self._speak(chunk, values, start)

    def _problems(self, values: dict[str, Value]) -> dict[str, str]:
        """{input: what is wrong with it}; empty when one can act."""
        found = {camera.name: camera.problem(self._clock) for camera in self.cameras}
        found |= self.state.problems(values, self._clock)
        if self.contract.goals and self._goal is None:
            found["goal"] = "none yet: -p goal:=[...], or publish on ~/goal"
        return {name: text for name, text in found.items() if text}

    def _fall_silent(self, problems: dict[str, str]) -> None:
        """Publish nothing, and say so once."""
        was, self._silent = self._silent, problems
        if not was or "everything" in was:
            text = "; ".join(f"{name}: {why}" for name, why in problems.items())
            self.node.get_logger().warning(f"No chunks are published. {text}")
        self._tally.refuse("; ".join(problems))

    def _speak(self, chunk: Any, values: dict[str, Value], start: float) -> None:
        arrivals = [camera.arrival for camera in self.cameras if camera.arrival]
        inputs = [(each.came, each.stamp) for each in arrivals] + [(each.came, each.stamp) for each in values.values()]
        stamps = [stamp for _, stamp in inputs if stamp]
        stamp: Stamp = min(stamps) if stamps else self.node.get_clock().now().seconds_nanoseconds()
        frame_id = arrivals[0].message.header.frame_id if arrivals else ""
        self._chunks.publish(array_message(chunk, ("step", ",".join(self.contract.actions)), stamp, frame_id))
        if self._silent:
            self._silent = {}
            self.node.get_logger().info("All inputs are there: chunks are published")
        now = time.monotonic()
        stages = {**self.policy.seconds, "look": now - start, "from arrival": now - min(came for came, _ in inputs)}
        if stamps:
            stages["from stamp"] = self.node.get_clock().now().nanoseconds * 1e-9 - (stamp[0] + stamp[1] * 1e-9)
        self._tally.took(**{name: 1000 * seconds for name, seconds in stages.items()})


def _topics(config: ActConfig, contract: Contract) -> tuple[str, ...]:
    topics = config.images or tuple(f"{camera}/image_raw" for camera in contract.cameras)
    different(topics, "images")
    if len(topics) != len(contract.cameras):
        raise InvalidInput(
            f"images are {len(topics)} topics; this policy looks through {len(contract.cameras)} cameras, in this"
            f" order: {', '.join(contract.cameras)}"
        )
    return topics


def _policy(config: ActConfig) -> Policy:
    policy = registry.load_policy(config.run, device=config.device, engine=config.engine, precision=config.precision)
    if config.execute:
        policy.execute = config.execute
    return policy


def _rate(config: ActConfig, contract: Contract, execute: int) -> float:
    if not (config.rate or contract.control_hz):
        raise InvalidInput(
            f"{config.run} is of a task whose control rate is not known here. Say how many chunks a second: --rate 5"
            " (control rate over actions executed of a chunk)"
        )
    return config.rate or contract.control_hz / execute


def _goal(config: ActConfig, contract: Contract) -> NDArray[np.float32] | None:
    if config.goal and len(config.goal) != contract.goals:
        raise InvalidInput(f"goal has {len(config.goal)} numbers; this policy takes {contract.goals}")
    return np.array(config.goal, np.float32) if config.goal else None


def act(words: Sequence[str], ros: Sequence[str] = ()) -> None:
    """Run the node until SIGINT or SIGTERM; see `ros2_running.run`."""
    run(NAME, ActConfig, ActNode, words, ros)


def main() -> int:
    """For `ros2 run` and launch files: `python -m s2robot.adapters.ros2_act --ros-args -p run:=RUN`."""
    from s2robot.cli import main as command_line

    return command_line(["ros2", "act", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
