"""Encoders, tasks and policies of other distributions: found by name, listed, refused with their owner's name."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_plugins import ENCODER, NAMES, POLICY, TASK, Install, install, write_distribution, write_one

from s2robot import catalogue, cli, envs, plugins, registry
from s2robot.backbones import list_encoders, load_backbone
from s2robot.datasets import Episode, write_dataset
from s2robot.encoder import EncoderConfig, load_encoder
from s2robot.errors import BrokenPlugin, InvalidInput, UnknownName
from s2robot.store import encode_dataset
from s2robot.trained import load_policy
from s2robot.training import TrainConfig, train

__all__ = ["install"]
FIND: dict[str, Any] = {
    "encoders": catalogue.find_encoder,
    "tasks": registry.get_task,
    "policies": registry.policy_module,
}
OURS = {"encoders": "s2robot-tiny", "tasks": "Lift", "policies": "bc-mlp"}
GROUPS = pytest.mark.parametrize("group", FIND)


def run(words: list[str], *folders: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with these folders on the path."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", ""), *sys.path])
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def every(group: str) -> list[plugins.Found]:
    """What the tests have installed: a developer may have installed the examples."""
    found = plugins.group(group).every()
    return [each for each in found if each.plugin.distribution.startswith(("acme", "bolt", "sagging"))]


@GROUPS
def test_a_plugin_is_found_by_its_name_and_guessed_from_a_wrong_one(group: str, install: Install) -> None:
    name = NAMES[group]
    with pytest.raises(UnknownName) as without:
        FIND[group](name)
    assert f", {name}" not in str(without.value)
    install(group)
    assert FIND[group](name)
    with pytest.raises(UnknownName, match=f"Did you mean '{name}'"):
        FIND[group](name[:-1])
    assert FIND[group](OURS[group])


def test_ours_are_found_without_reading_what_is_installed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in FIND:
        install(group, source="raise SystemExit('imported')")
    monkeypatch.setattr(importlib.metadata, "entry_points", None)
    for group, name in OURS.items():
        assert FIND[group](name)
    assert load_backbone("timm:test_vit", random_weights=True)


def test_nothing_of_them_is_imported_before_its_name_is_asked_for(tmp_path: Path) -> None:
    folders = [write_one(tmp_path / group, group) for group in FIND]
    code = """
        import sys, s2robot; s2robot.load_encoder, s2robot.list_encoders, s2robot.make_env, s2robot.rollout
        from s2robot import plugins, registry, envs
        assert registry.policy_module("plain").__name__ == "acme_policies"
        assert "Hoist" in plugins.group("tasks").names() and "acme-conv" in plugins.group("encoders").names()
        print([name for name in sys.modules if name.startswith("acme")])
    """
    done = run(["-c", "\n".join(line.strip() for line in code.strip().splitlines())], *folders)
    assert done.stdout.strip() == "['acme_policies']", done.stderr


BREAKS = {
    "import s2robot_no_such_thing": "ModuleNotFoundError: No module named 's2robot_no_such_thing'",
    "raise RuntimeError('no licence\\nkey')": "RuntimeError: no licence key",
    "raise SystemExit(3)": "SystemExit: 3",
    "TASK = ENCODER = CONFIG = NETWORK = 5": "expected",
    "TASKS = 5": "no",
    "import": "SyntaxError",
}


@GROUPS
@pytest.mark.parametrize("source", BREAKS)
def test_a_broken_one_says_whose_it_is_and_why_and_breaks_nothing_else(
    group: str, source: str, install: Install
) -> None:
    install(group, source)
    install(group, name="other", distribution="acme-too", source=_renamed(group, "other"))
    with pytest.raises(BrokenPlugin) as caught:
        FIND[group](NAMES[group])
    said = str(caught.value)
    assert (
        f"acme-{group} 1.0 (acme_{group}" in said and f"pip uninstall acme-{group}" in said and BREAKS[source] in said
    )
    assert FIND[group]("other") and FIND[group](OURS[group])
    assert [each.plugin.name for each in every(group) if not each.error] == ["other"]
    with pytest.raises(UnknownName, match="other"):
        FIND[group]("othr")


def _renamed(group: str, name: str) -> str:
    source = {"encoders": ENCODER, "tasks": TASK, "policies": POLICY}[group]
    return source.replace(f'"{NAMES[group]}"', f'"{name}"')


@pytest.mark.parametrize(
    ("group", "source", "says"),
    [
        ("encoders", ENCODER.replace('"acme-conv"', '"acme-conf"'), "called 'acme-conf'"),
        ("encoders", ENCODER.replace("OwnModel(make, CONTRACT)", "'vit_no_such_size'"), "no model 'vit_no_such_size'"),
        ("tasks", TASK.replace('"Hoist"', '"Hosit"'), "called 'Hosit'"),
        ("policies", POLICY.replace("CONFIG, NETWORK", "CONFIG, NET"), "it has no NETWORK"),
        ("policies", POLICY.replace("= PlainConfig,", "= dict,"), "extends s2robot.policies.neck.NeckConfig"),
        ("policies", POLICY + "NETWORK = PlainNetwork.__base__.__base__", "extends s2robot.policies.neck.Neck"),
        ("policies", POLICY.replace("hidden: int = 16", "hidden: int = 0"), "hidden is 0"),
    ],
)
def test_what_is_wrong_with_it_is_said(group: str, source: str, says: str, install: Install) -> None:
    install(group, source)
    with pytest.raises(BrokenPlugin, match=says):
        FIND[group](NAMES[group])


@GROUPS
def test_two_of_one_name_are_both_refused(group: str, install: Install) -> None:
    install(group)
    install(group, distribution="bolt")
    with pytest.raises(BrokenPlugin, match=rf"acme-{group} 1\.0 \(acme_{group}.* bolt 1\.0 \(bolt"):
        FIND[group](NAMES[group])
    broken = every(group)
    assert [each.plugin.distribution for each in broken] == [f"acme-{group}", "bolt"]
    assert all(each.error and f"has a {each.plugin.kind} of that name" in each.error.why for each in broken)


@pytest.mark.parametrize(
    ("group", "name", "owner"),
    [
        *((group, name, "s2robot") for group, name in OURS.items()),
        ("policies", "bc", "s2robot"),
        ("encoders", "s2robot", "s2robot"),
        ("encoders", "vit_small_patch16_224", "timm"),
        pytest.param("tasks", "Wipe", "robosuite", marks=pytest.mark.sim),
    ],
)
def test_a_name_of_ours_stays_ours(group: str, name: str, owner: str, install: Install) -> None:
    install(group, name=name, source="raise SystemExit('imported')")
    (found,) = every(group)
    assert found.error and found.error.why == f"{owner} has a {found.plugin.kind} of that name"
    assert f"acme-{group} 1.0" in str(found.error) and name in str(found.error)
    if owner == "s2robot" and name in OURS.values():
        assert "acme" not in repr(FIND[group](name))


def test_the_list_has_them_with_their_distribution_and_the_broken_with_the_reason(tmp_path: Path) -> None:
    folders = [write_one(tmp_path / group, group) for group in FIND]
    bad = {"tasks": {"Sag": "sag:TASK"}, "policies": {"bc-mlp": "sag"}}
    folders.append(write_distribution(tmp_path / "bad", "sagging", {"sag": "raise OSError('gone')"}, bad))
    done = run(["-m", "s2robot.cli", "list", "--json"], *folders)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for group, column in (("encoders", "name"), ("tasks", "name"), ("policies", "kind")):
        rows = {row[column]: row for row in found[group]}
        assert rows[NAMES[group]]["distribution"] == f"acme-{group}" and rows[OURS[group]]["distribution"] == "s2robot"
    assert {row["name"]: row["why"] for row in found["broken"]} == {
        "Sag": "OSError: gone", "bc-mlp": "s2robot has a policy of that name",
    }  # fmt: skip
    asked = run(["-m", "s2robot.cli", "collect", "Sag", "--out", str(tmp_path / "sag.hdf5")], *folders)
    assert asked.returncode == 1 and "sagging 1.0 (sag:TASK)" in asked.stderr and "OSError: gone" in asked.stderr


def test_the_list_is_a_table_too(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "policies", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["policies"]
    install("policies")
    install("policies", "raise OSError('gone')", name="sag", distribution="sagging")
    assert cli.main(["list", "policies"]) == 0
    table = capsys.readouterr().out
    assert "acme-policies" in table and "sagging 1.0 (sagging)" in table and "OSError: gone" in table


def test_an_encoder_is_known_by_weights_buffers_and_distribution(install: Install) -> None:
    install("encoders")
    encoder = load_encoder("acme-conv", scales=(1, 2))
    again = load_encoder("acme-conv", scales=(1, 2))
    assert encoder.fingerprint == again.fingerprint and encoder.engine.name == "torch"
    row = next(row for row in list_encoders() if row.name == "acme-conv")
    assert (row.params, row.patch, row.width, row.distribution) == (3 * 6 * 64 + 6 + 12, 8, 6, "acme-encoders")
    prints = {encoder.fingerprint}
    for seed in (0, 2):
        prints.add(load_encoder("acme-conv", scales=(1, 2), random_weights=True, seed=seed).fingerprint)
    again.backbone.model.own.shift.add_(1)  # in no state dict
    again.to("cpu")
    prints.add(again.fingerprint)
    alone = load_backbone(catalogue.PLUGINS.get("acme-conv").value)  # type: ignore[union-attr]
    prints.add(type(encoder)(alone, encoder.config).fingerprint)
    assert len(prints) == 5


def test_processes_of_their_own_find_them(install: Install, tmp_path: Path) -> None:
    """Encoding and training by name: in workers that begin from nothing, and back from what the run folder says."""
    install("encoders")
    install("policies")
    rng = np.random.default_rng(0)
    rows = np.zeros((6, 4), np.float32)
    episodes = [
        Episode(seed, True, rng.integers(0, 256, (6, 2, 64, 64, 3), np.uint8), rows, rows, rows, rows[:, 0], None)
        for seed in range(3)
    ]
    data = write_dataset(tmp_path / "demos.hdf5", episodes, {"task": "Lift"}, ["a", "b"])
    encoder = EncoderConfig("acme-conv", engine="torch")
    alone = encode_dataset(data.path, encoder, tmp_path / "one", workers=1)
    spread = encode_dataset(data.path, encoder, tmp_path / "two", workers=2)
    np.testing.assert_array_equal(alone.map[:], spread.map[:])
    config = registry.policy_module("plain").CONFIG()
    out = train(data, spread, encoder, config, TrainConfig(steps=4, batch=8), tmp_path / "policy")
    assert json.loads((out / "policy.json").read_text())["kind"] == "plain"
    policy = load_policy(out)
    chunk = policy.act({"frames": episodes[0].frames[0], "proprioception": rows[0]})
    assert chunk.shape == (8, 4) and type(policy.network).__module__ == "acme_policies"


def test_a_config_of_nobodys_is_refused_beside_broken_ones(install: Install) -> None:
    install("policies")
    install("policies", source="raise OSError", name="gone", distribution="bolt")
    assert registry.policy_kind(registry.policy_module("plain").CONFIG()) == "plain"
    with pytest.raises(InvalidInput, match="plain"):
        registry.policy_kind(torch.nn.Identity())


@pytest.mark.sim
def test_a_task_in_a_process_of_its_own_is_the_same(install: Install) -> None:
    install("tasks")
    options: dict[str, Any] = {"fidelity": "fast", "frame_size": 32}
    alone = registry.make_env("Hoist", **options)
    elsewhere = registry.make_vec_env("Hoist", 1, **options)
    try:
        one, _ = alone.reset(seed=5)
        other, _ = elsewhere.reset(seed=5)
        np.testing.assert_array_equal(one["frames"], other["frames"][0])
    finally:
        alone.close()
        elsewhere.close()
    with pytest.raises(UnknownName, match="Did you mean 'Hoist'"):
        envs.make_env("Hosit")


@pytest.mark.sim
def test_recordings_of_a_task_are_drawn_in_it(install: Install) -> None:
    from s2robot.envs.replay import TaskReplay, make_replay
    from s2robot.rerender import RenderConfig

    install("tasks")
    replay = make_replay({"task": "Hoist", "fidelity": "fast"}, RenderConfig(frame_size=32))
    assert isinstance(replay, TaskReplay)
    replay.close()
