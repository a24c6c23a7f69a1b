"""Lift's simulated Panda as a ROS 2 robot: it publishes what its cameras and joints say, and does what a policy says.

s2robot ros2 act runs/demo --images /front/image_raw,/wrist/image_raw --stale_after 5 \
    --joints left_finger=finger1.position,right_finger=-finger2.position,left_finger_speed=finger1.velocity,\
right_finger_speed=-finger2.velocity                        in one terminal
python examples/ros2_robot.py 3                             in another: three episodes
"""

import sys
import time
from array import array
from typing import Any

import rclpy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32MultiArray
from std_srvs.srv import Trigger

import s2robot
from s2robot.adapters.ros2_messages import read_array

EXECUTE, EPISODES = 4, int(sys.argv[1]) if len(sys.argv) > 1 else 3

rclpy.init()
node = rclpy.create_node("robot")
cameras = [node.create_publisher(Image, topic, 1) for topic in ("/front/image_raw", "/wrist/image_raw")]
joints = node.create_publisher(JointState, "/joint_states", 1)
place = node.create_publisher(Float32MultiArray, "/s2robot_act/proprioception", 1)
chunks = []
node.create_subscription(Float32MultiArray, "/s2robot_act/chunk", lambda message: chunks.append(read_array(message)), 1)
reset = node.create_client(Trigger, "/s2robot_act/reset")


def publish(observation: Any) -> tuple[int, int]:
    """All that the robot knows of now."""
    now = node.get_clock().now().to_msg()
    for publisher, frame in zip(cameras, observation["frames"], strict=True):
        height, width = frame.shape[:2]
        message = Image(height=height, width=width, step=3 * width, encoding="rgb8")
        message.header.stamp, message.data = now, array("B", frame.tobytes())
        publisher.publish(message)
    x, y, z, left, right, left_speed, right_speed = map(float, observation["proprioception"])
    place.publish(Float32MultiArray(data=[x, y, z]))
    # A real Panda counts both fingers outwards from the middle; the simulated one has the right finger's sign turned.
    message = JointState(name=["finger1", "finger2"], position=[left, -right], velocity=[left_speed, -right_speed])
    message.header.stamp = now
    joints.publish(message)
    return now.sec, now.nanosec


def decided(observation: Any) -> Any:
    """The first chunk made of nothing older than this observation. The simulation stands still meanwhile."""
    first, due = publish(observation), time.monotonic() + 0.2
    chunks.clear()
    while not (chunks and chunks[-1].stamp >= first):
        rclpy.spin_once(node, timeout_sec=0.02)
        if time.monotonic() > due:  # a robot goes on publishing
            publish(observation)
            due += 0.2
    return chunks[-1].values


env = s2robot.make_env("Lift")
print("Waiting for the policy: s2robot ros2 act")
reset.wait_for_service()
for seed in range(100_000, 100_000 + EPISODES):
    observation, _ = env.reset(seed=seed)
    rclpy.spin_until_future_complete(node, reset.call_async(Trigger.Request()))
    over, steps, info = False, 0, {}
    while not over:
        for action in decided(observation)[:EXECUTE]:
            observation, _, terminated, truncated, info = env.step(action)
            over, steps = terminated or truncated, steps + 1
            if over:
                break
    print(f"seed {seed}: {'lifted' if info['success'] else 'not lifted'} after {steps} steps")
env.close()
rclpy.try_shutdown()
