"""A learner of Stable-Baselines3 to a policy of ours: the networks of `policies.rl_actor` and its kin.

What is copied decides the same: first-layer columns are put into the order of `Neck.look`, the normaliser's statistics
become the neck's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from s2robot import registry
from s2robot.adapters.sb3_sight import LOOK, PROPOSAL, Sight
from s2robot.compression import Shapes
from s2robot.rl_config import RLConfig
from s2robot.types import FRAMES, GOAL, PRIVILEGED, PROPRIOCEPTION

KINDS = {"features": "rl", "pixels": "rl-pixels", "privileged": "rl-privileged"}
ORDER = (PROPRIOCEPTION, PRIVILEGED, GOAL, LOOK, PROPOSAL)  # behind what is read


def acting(model: Any, sight: Sight, config: RLConfig, moves: int) -> tuple[str, Any]:
    """The kind of policy, and its network with the weights that were learned."""
    kind = "rl-ibrl" if sight.prior is not None else KINDS[sight.config.see]
    module = registry.policy_module(kind)
    extractor, mlp, last = _parts(model.policy)
    trunk = getattr(extractor, "bottleneck", None)
    inner = extractor.inner if trunk is not None else extractor
    network = module.NETWORK(module.CONFIG(**_config(model, sight, config, trunk)), _shapes(model, sight, inner, moves))
    if sight.config.see == "features" and sight.config.kind != "cls":
        network.readout.load_state_dict(inner.readers[0].readout.state_dict())
    if sight.config.see == "pixels":
        network.eye.load_state_dict(inner.eye.state_dict())
    if sight.prior is not None:
        network.prior.load_state_dict(sight.prior.state_dict())
        network.critic.load_state_dict(model.policy.critic_target.state_dict())
    elif sight.eyes is not None and sight.eyes.compression is not None:
        network.compression.load_state_dict(sight.eyes.compression.state_dict())
    layers = [*(trunk or ()), *mlp, last]
    theirs = [*(network.trunk if trunk is not None else ()), *network.head]
    columns = _columns(model.observation_space, inner)
    for k, (ours, known) in enumerate(zip(theirs, layers, strict=True)):
        ours.load_state_dict(known.state_dict())
        if k == 0:
            ours.weight.data = known.weight.detach()[:, columns].clone()
    _normalise(network, model.get_vec_normalize_env())
    return kind, network.eval()


def _parts(policy: Any) -> tuple[Any, nn.Sequential, nn.Linear]:
    """Features extractor, hidden layers and last layer of what acts."""
    if hasattr(policy, "mlp_extractor"):  # PPO
        return policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net
    return policy.actor.features_extractor, policy.actor.latent_pi, policy.actor.mu


def _config(model: Any, sight: Sight, config: RLConfig, trunk: Any) -> dict[str, Any]:
    learn = config.learn
    words: dict[str, Any] = {
        "chunk": config.world.execute, "execute": config.world.execute, "widths": tuple(learn.widths),
        "activation": learn.activation, "squash": learn.squash, "trunk": learn.trunk if trunk is not None else 0,
        "queries": sight.config.queries, "key_width": sight.config.width, "readout": sight.config.readout,
        "tokens": "map" if sight.config.see == "features" else "mean",
    }  # fmt: skip
    if sight.config.see == "features" and sight.config.kind == "cls":
        words["tokens"] = "cls"
    if sight.eyes is not None:
        compression = sight.eyes.compression
        words["components"] = sight.eyes.channels if compression is None else compression.components
    elif sight.config.see == "pixels":
        words |= {"size": sight.config.size, "components": registry.policy_module("rl-pixels").CHANNELS}
    if sight.prior is not None:
        words |= {"prior": dataclasses.asdict(sight.prior.config), "critics": learn.critics}
        words["critic_widths"] = tuple(learn.widths)
    return words


def _shapes(model: Any, sight: Sight, inner: Any, moves: int) -> Any:
    space = model.observation_space
    fields = {"proprioception": _width(space, PROPRIOCEPTION) + _width(space, PRIVILEGED), "actions": moves}
    fields["goal"] = _width(space, GOAL)
    if sight.eyes is not None:
        encoder, shape = sight.eyes.encoder, inner.shapes[0]
        grid = (1, 1) if sight.config.kind == "cls" else tuple(inner.readers[0].grid)
        return Shapes(shape[0], encoder.config.groups, encoder.channels // encoder.config.groups, grid, **fields)
    if sight.config.see == "pixels":
        views, channels, height, width = inner.shape
        return Shapes(views, 1, channels, (height, width), **fields)
    return Shapes(0, 1, 1, (1, 1), **fields)


def _columns(space: Any, inner: Any) -> torch.Tensor:
    """Where the inputs of our first layer are among those of theirs."""
    others = list(inner.others) if hasattr(inner, "others") else [key for key in space if key != FRAMES]
    read = inner.features_dim - sum(_width(space, key) for key in others)
    firsts, start = {}, read
    for key in others:
        firsts[key] = start
        start += _width(space, key)
    places = [torch.arange(read)]
    places += [torch.arange(firsts[key], firsts[key] + _width(space, key)) for key in ORDER if key in firsts]
    return torch.cat(places)


def _normalise(network: Any, normaliser: Any) -> None:
    kept = [normaliser.obs_rms[key] for key in (PROPRIOCEPTION, PRIVILEGED) if key in normaliser.obs_rms]
    mean = torch.cat([torch.from_numpy(rms.mean) for rms in kept])
    spread = torch.cat([torch.from_numpy(rms.var) for rms in kept]).add(normaliser.epsilon).sqrt()
    network.proprioception_mean.copy_(mean)
    network.proprioception_std.copy_(spread)


def _width(space: Any, key: str) -> int:
    return int(space[key].shape[0]) if key in space.spaces else 0
