"""The actor of reinforcement learning on the simulator's state: an upper bound, which no robot could follow.

It is `policies.rl_actor`'s without anything seen; its proprioception is followed by the privileged fields of
`s2robot.types`.
"""

from __future__ import annotations

from typing import ClassVar

from s2robot.policies.rl_actor import ActorConfig, ActorNetwork


class PrivilegedActor(ActorNetwork):
    """Proprioception and privileged fields to a chunk. `shapes.proprioception` counts both, and there are no views."""

    reads_privileged: ClassVar[bool] = True


CONFIG, NETWORK = ActorConfig, PrivilegedActor
