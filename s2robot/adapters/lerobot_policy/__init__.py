"""Our encoder and policies for LeRobot's own `lerobot-train` and `lerobot-eval`, and our tasks for its rollouts.

LeRobot finds them by `--discover_packages_path=s2robot.adapters.lerobot_policy`, or by itself where the distribution in
examples/lerobot_policy_s2robot is installed. It fixes the names of modules and classes: `configuration_`, `modeling_`,
`processor_`. See docs/lerobot.md.
"""

from s2robot.errors import require

require("lerobot", extra="lerobot", purpose="The LeRobot policy")  # before what follows imports it

from s2robot.adapters.lerobot_policy.configuration_s2robot import S2RobotConfig  # noqa: E402
from s2robot.adapters.lerobot_policy.environment import LeRobotEnv, S2RobotEnv  # noqa: E402
from s2robot.adapters.lerobot_policy.modeling_s2robot import S2RobotPolicy  # noqa: E402
from s2robot.adapters.lerobot_policy.processor_s2robot import make_s2robot_pre_post_processors  # noqa: E402

__all__ = ["LeRobotEnv", "S2RobotConfig", "S2RobotEnv", "S2RobotPolicy", "make_s2robot_pre_post_processors"]
