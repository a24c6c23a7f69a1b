"""Stable-Baselines3 on frozen features (`pip install 's2robot[rl]'`): everything it needs, its algorithms unmodified.

    env = S2VecEnv(DummyVecEnv([make] * 4), FrameFeatures(encoder, compression=small))     frames are encoded once
    model = SAC(
        "MultiInputPolicy", env, replay_buffer_class=FeatureReplayBuffer,
        policy_kwargs={"features_extractor_class": S2FeaturesExtractor},
    )

Who cannot wrap the environment takes `S2ImageExtractor`, which encodes inside the policy and again at every update.
"""

from __future__ import annotations

from s2robot.adapters.features import FrameFeatures, fit_compression
from s2robot.adapters.sb3_buffer import FeatureReplayBuffer, transition_bytes
from s2robot.adapters.sb3_extractor import S2FeaturesExtractor
from s2robot.adapters.sb3_images import S2ImageExtractor
from s2robot.adapters.sb3_vector import GymnasiumVecEnv, S2VecEnv

__all__ = [
    "FeatureReplayBuffer",
    "FrameFeatures",
    "GymnasiumVecEnv",
    "S2FeaturesExtractor",
    "S2ImageExtractor",
    "S2VecEnv",
    "fit_compression",
    "transition_bytes",
]
