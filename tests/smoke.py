"""Does an installed s2robot work? Run by `make build` in a fresh environment, far from the checkout.

python -I tests/smoke.py SITE_PACKAGES
"""

from __future__ import annotations

import importlib
import sys
from importlib import resources
from pathlib import Path

import numpy as np

import s2robot

MODULES = ("s2robot.cli", "s2robot.configs", "s2robot.envs", "s2robot.policies", "s2robot.doctor")


def main(site: Path) -> None:
    """Import everything from `site`, see the data files, encode a frame with the shipped weights."""
    for name in ("s2robot", *MODULES):
        module = importlib.import_module(name)
        homes = [Path(folder).resolve() for folder in getattr(module, "__path__", [str(module.__file__)])]
        assert all(site in home.parents for home in homes), f"{name} comes from {homes}, not from {site}"
    for name in s2robot.__all__:
        getattr(s2robot, name)
    package = resources.files("s2robot")
    assert (package / "py.typed").is_file()
    assert any(file.name.endswith(".yaml") for file in resources.files("s2robot.configs").iterdir())
    encoder = s2robot.load_encoder("s2robot-tiny")
    features = encoder(np.zeros((128, 128, 3), np.uint8))
    assert np.isfinite(features.tokens.cpu().numpy()).all()
    sys.stdout.write(f"s2robot {s2robot.__version__} in {site}: tokens {tuple(features.tokens.shape)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
