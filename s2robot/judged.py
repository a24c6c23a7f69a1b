"""What an evaluation leaves to look at: a summary, videos of a success and a failure, what each scale sees.

<out>/summary.json                  counts, interval, latencies, machine (`s2robot.runs.SUMMARY`)
      videos/success.mp4, failure.mp4, where there was one
      pictures/strip.png            stills of the first of them
      pictures/features.png         two of its frames, each scale's tokens as colours
      metrics.jsonl                 the policy's training curve
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2robot import files, machine, pictures, statistics, video
from s2robot.encoder import EncoderConfig
from s2robot.rollouts import STAGES, EpisodeResult, EvalConfig, load_actor, make_env_for, record_episode


def show(policy: Path, results: Sequence[EpisodeResult], config: EvalConfig, out: Path) -> None:
    """Play the first success and the first failure again, and draw what there is to see."""
    description = files.read_json(policy / "policy.json")
    actor, env = load_actor(policy, config), make_env_for(description, config.fidelity, config.shift)
    stills: NDArray[np.uint8] | None = None
    for kind in ("success", "failure"):
        (out / "videos" / f"{kind}.mp4").unlink(missing_ok=True)  # of another evaluation
        seeds = [r.seed for r in results if r.success is (kind == "success")]
        if seeds:
            frames = record_episode(actor, env, seeds[0])  # (L, V, H, W, 3)
            wide = np.concatenate(list(frames.swapaxes(0, 1)), axis=2)
            video.write_video(out / "videos" / f"{kind}.mp4", wide, env.task.control_hz)
            stills = frames if stills is None else stills
    env.close()
    assert stills is not None
    with files.atomic(out / "pictures" / "strip.png") as temporary:
        video.contact_sheet(stills[:, 0], columns=6).save(temporary, "PNG")
    if description["encoder_fingerprint"]:  # a frozen encoder has features to show
        _show_features(
            {**description["encoder"], "engine": config.engine},
            stills[[0, len(stills) // 2]],
            out / "pictures" / "features.png",
        )
    if (policy / "metrics.jsonl").exists():
        shutil.copyfile(policy / "metrics.jsonl", out / "metrics.jsonl")


def _show_features(encoder: Mapping[str, Any], moments: NDArray[np.uint8], path: Path) -> None:
    """What each scale makes of frames (n, V, H, W, 3)."""
    finest = EncoderConfig(**{**encoder, "grid": "finest", "fusion": "concat", "width": None})
    maps = finest.build()(moments).map.flatten(0, 1).cpu().numpy()  # (nV, D*S, h, w)
    with files.atomic(path) as temporary:
        scales = pictures.split_scales(maps, finest.scale_names)
        pictures.feature_picture(moments.reshape(-1, *moments.shape[2:]), scales).save(temporary, "PNG")


def summarise(
    policy: Path, results: Sequence[EpisodeResult], config: EvalConfig, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `s2robot.runs.SUMMARY` asks for, of these episodes; more: what the caller knows besides."""
    wins, n = sum(r.success for r in results), len(results)
    description = files.read_json(policy / "policy.json")
    frozen = bool(description["encoder_fingerprint"])
    encoder = _frozen_encoder(description) if frozen else {}
    features = "frozen S2 features" if len(encoder.get("sizes") or encoder.get("scales", ())) > 1 else "frozen features"
    sees = features if frozen else "privileged state" if description.get("privileged") else "frames"
    learned = dict(description.get("learned_from") or {})
    contribution = policy / "scales.json"
    summary = {
        "title": f"{description['task']}: {description['kind']} on {sees}",
        "task": description["task"],
        "success_rate": wins / n,
        "successes": wins,
        "episodes": n,
        "interval": list(statistics.wilson(wins, n)),
        "control_hz": description.get("control_hz"),
        "evaluation_seeds": [results[0].seed, results[-1].seed],
        "encoder": encoder or None,
        "demos": learned.pop("demonstrations", None),
        "dataset": learned,
        "policy": {
            "kind": description["kind"],
            "parameters": description["parameters"],
            "execute": config.execute or (1 if config.ensemble else description["config"]["execute"]),
        },
        "latency_ms": {stage: statistics.quantiles([ms for r in results for ms in r.ms[stage]]) for stage in STAGES},
        "steps_to_success": {"p50": float(np.median([r.steps for r in results if r.success]))} if wins else None,
        "scales": files.read_json(contribution) if contribution.exists() else None,
        "fidelity": {"evaluate": config.fidelity},
        "evaluation": dataclasses.asdict(config),
        "command": shlex.join(["s2robot", *sys.argv[1:]]),
        **machine.provenance(),
    }
    return {**summary, **(more or {})}


def _frozen_encoder(description: Mapping[str, Any]) -> dict[str, Any]:
    encoder = EncoderConfig(**{**description["encoder"], "engine": "auto"})  # who trained may have had another
    sizes = ("sizes", "tile") if encoder.sizes else ("scales", "tile") if encoder.tile else ("scales",)
    return {
        **{name: getattr(encoder, name) for name in ("name", *sizes, "grid", "random_weights")},
        "parameters": sum(p.numel() for p in encoder.build().parameters()),
        "fingerprint": description["encoder_fingerprint"],
    }
