"""Found and imported by LeRobot for its name alone; all there is lies in `s2robot.adapters.lerobot_policy`."""

from s2robot.adapters.lerobot_policy import S2RobotConfig, S2RobotEnv, S2RobotPolicy, make_s2robot_pre_post_processors

__all__ = ["S2RobotConfig", "S2RobotEnv", "S2RobotPolicy", "make_s2robot_pre_post_processors"]
