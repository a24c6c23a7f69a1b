"""What the fault suite works on: a small dataset, its features, a policy, pictures, a study; made by the verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from s2robot import cli
from s2robot import config as configuration

EYE = {"name": "timm:test_vit", "random_weights": True, "sizes": [32, 64], "engine": "torch"}
EYE_WORDS = ["--name", "timm:test_vit", "--random_weights", "true", "--sizes", "32,64", "--engine", "torch"]


@dataclass(frozen=True)
class Materials:
    """Paths of what was made."""

    folder: Path

    @property
    def dataset(self) -> Path:
        return self.folder / "lift.hdf5"

    @property
    def run(self) -> Path:
        """A run folder: policy/, config.yaml, episodes-fast.jsonl, summary.json."""
        return self.folder / "run"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def study(self) -> Path:
        return self.folder / "small.yaml"


def make(folder: Path) -> Materials:
    made = Materials(folder)
    _verb("collect", "Lift", "--demos", "3", "--frame_size", "64", "--workers", "1", "--out", made.dataset)
    _verb(*train_words(made, made.run))
    _verb("eval", made.run, "--episodes", "2", "--fidelity", "fast", "--workers", "1")
    made.pictures.mkdir()
    rng = np.random.default_rng(0)
    for k in range(24):
        small = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(made.pictures / f"{k:02d}.png")
    run = {"encoder": EYE, "encode": {"workers": 1}, "train": {"steps": 60, "checkpoint_every": 20, "batch": 16}}
    run |= {"collect": {"task": "Lift"}, "eval": {"episodes": 2, "fidelity": "fast", "workers": 1}}
    tree = {"title": "Small", "question": "Is it so?", "run": run, "seeds": [0]}
    arms = {"one": {"encoder": {"scales": [1], "sizes": [32]}}, "two": {}}
    made.study.write_text(configuration.as_yaml({**tree, "arms": arms}))
    return made


def train_words(made: Materials, out: Path) -> list[str]:
    words = ["train", str(made.dataset), "--out", str(out), "--train.steps", "240", "--train.checkpoint_every", "20"]
    words += ["--encode.stride", "1", "--encode.workers", "1", "--train.snapshots", "2", "--train.batch", "32"]
    return words + [word.replace("--", "--encoder.") for word in EYE_WORDS]


def _verb(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0, words
