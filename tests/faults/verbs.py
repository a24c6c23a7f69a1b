"""The long verbs at their smallest, and what of their results must be the same bits whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from materials import EYE_WORDS, Materials, train_words

from s2robot import files

Result = dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """prepare: what must lie in its folder; words: its command line; result: all that counts of what it left there."""

    name: str
    words: Callable[[Materials, Path], list[str]]
    result: Callable[[Path], Result]
    prepare: Callable[[Materials, Path], object] = lambda made, out: None


def _collect(made: Materials, out: Path) -> list[str]:
    words = ["collect", "Lift", "--demos", "4", "--frame_size", "64", "--workers", "2", "--seed", "1"]
    return [*words, "--out", str(out / "lift.hdf5")]


def _encode(made: Materials, out: Path) -> list[str]:
    words = ["encode", str(made.dataset), "--out", str(out), "--workers", "1", "--versions", "2"]
    return [*words, *(EYE_WORDS)]


def _pretrain(made: Materials, out: Path) -> list[str]:
    words = ["pretrain", "--out", str(out), "--source", str(made.pictures), "--name", "small", "--steps", "120"]
    sizes = {"batch": 8, "frame_size": 64, "image_size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 2}
    sizes |= {"decoder_width": 16, "decoder_depth": 1, "checkpoint_every": 10, "threads": 1, "workers": 1}
    return [*words, "--device", "cpu", *(word for key, value in sizes.items() for word in (f"--{key}", str(value)))]


def _evaluate(made: Materials, out: Path) -> list[str]:
    return ["eval", str(out / "run"), "--episodes", "5", "--fidelity", "fast", "--workers", "1"]


def _copy_run(made: Materials, out: Path) -> None:
    shutil.copytree(made.run, out / "run", ignore=shutil.ignore_patterns("episodes-*"))


def _study(made: Materials, out: Path) -> list[str]:
    return ["study", str(made.study), "--data", str(made.dataset), "--out", str(out)]


def _rl(made: Materials, out: Path) -> list[str]:
    words = ["rl", "Reach", "--out", str(out), "--algorithm", "sac", "--steps", "240", "--validate_every", "120"]
    words += ["--validate", "1", "--checkpoint_every", "40", "--world.cameras", "agentview", "--world.frame_size", "64"]
    words += ["--sight.fit_frames", "4", "--sight.components", "4", "--sight.queries", "2", "--learn.starts", "6"]
    words += ["--learn.batch", "8", "--learn.buffer", "40", "--learn.widths", "16"]
    return words + [word.replace("--", "--encoder.") for word in EYE_WORDS]


def _bytes(out: Path, *patterns: str) -> Result:
    """sha256 of every file that one of the patterns finds."""
    paths = [path for pattern in patterns for path in sorted(out.glob(pattern)) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _lines(path: Path, order: str, without: tuple[str, ...]) -> list[dict[str, Any]]:
    """Records of a log in order, without what is measured time."""
    rows = [{key: value for key, value in row.items() if key not in without} for row in files.read_jsonl(path)]
    return sorted(rows, key=lambda row: row[order])


def _collected(out: Path) -> Result:
    return _bytes(out, "*") | {"left": sorted(path.name for path in out.iterdir())}


def _encoded(out: Path) -> Result:
    journals = {str(path.parent.name): _lines(path, "episode", ()) for path in out.glob("*/journal.jsonl")}
    return _bytes(out, "*/map.npy", "*/cls.npy", "*/index.json", "*/done") | {"journals": journals}


def _trained(out: Path) -> Result:
    made = _bytes(out, "policy/*.safetensors", "policy/*.json", "policy/snapshots/*/*", "policy/done", "config.yaml")
    return made | {"metrics": _lines(out / "policy/metrics.jsonl", "step", ("seconds",))}


def _pretrained(out: Path) -> Result:
    state = torch.load(out / "state.pt", weights_only=True)
    digest = hashlib.sha256()
    for name, value in sorted(state["model"].items()) + sorted((state["average"] or {}).items()):
        digest.update(name.encode() + value.numpy().tobytes())
    timed = ("seconds", "images_per_second", "percent_of_peak")
    found = _bytes(out, "*.safetensors", "frames.npy", "footage.json", "recipe.json", "pictures/*")
    return found | {"state": digest.hexdigest(), "metrics": _lines(out / "metrics.jsonl", "step", timed)}


def _learned(out: Path) -> Result:
    made = _bytes(out, "policy/*.safetensors", "best/policy/*.safetensors", "eyes.safetensors", "policy/done")
    left = sorted(path.name for path in out.iterdir() if path.name not in ("tensorboard", ".lock"))
    return made | {"left": left, "metrics": _lines(out / "metrics.jsonl", "step", ("seconds",))}


def _evaluated(out: Path) -> Result:
    return {"episodes": _lines(out / "run/episodes-fast.jsonl", "seed", ("ms",))}


def _studied(out: Path) -> Result:
    results = json.loads((out / "results.json").read_text())
    kept = {key: results[key] for key in ("title", "question", "seeds", "dataset", "evaluation")}
    kept["rows"] = [{key: value for key, value in row.items() if "ms" not in key} for row in results["rows"]]
    logs = {str(path): _lines(path, "seed", ("ms",)) for path in sorted(out.glob("*/seed-0/episodes-fast.jsonl"))}
    logs = {str(Path(name).relative_to(out)): rows for name, rows in logs.items()}
    return _bytes(out, "*/seed-0/policy/*.safetensors", "study.yaml") | {"results": kept, "logs": logs}


VERBS = {
    verb.name: verb
    for verb in (
        Verb("collect", _collect, _collected),
        Verb("encode", _encode, _encoded),
        Verb("train", train_words, _trained),
        Verb("pretrain", _pretrain, _pretrained),
        Verb("eval", _evaluate, _evaluated, _copy_run),
        Verb("study", _study, _studied),
        Verb("rl", _rl, _learned),
    )
}
