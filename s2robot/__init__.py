"""s2robot: frozen multi-scale (S2) vision features for robot manipulation.

    encoder = s2robot.load_encoder("s2robot-tiny")
    features = encoder(frames)            # uint8 (B, V, H, W, 3) -> features.map, .tokens, .cls

Names are imported on first use, so that `import s2robot` stays as quick as torch itself and never
pulls in a simulator.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "s2robot.encoder",
    "Features": "s2robot.types",
    "FeatureStore": "s2robot.store",
    "RemotePolicy": "s2robot.adapters.serve_client",
    "S2RobotError": "s2robot.errors",
    "list_encoders": "s2robot.backbones",
    "load_encoder": "s2robot.encoder",
    "load_policy": "s2robot.registry",
    "make_env": "s2robot.registry",
    "make_vec_env": "s2robot.registry",
    "multiscale_forward": "s2robot.multiscale",
    "rollout": "s2robot.rollouts",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 's2robot' has no attribute {name!r}. It has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
