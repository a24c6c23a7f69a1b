"""What a study's folder holds it to, and what it does not do twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_study import ARMS, written

from s2robot import cli, files, study_data
from s2robot import config as configuration
from s2robot import study as studies
from s2robot.errors import InvalidInput
from s2robot.study import cells, read_study


@pytest.mark.sim
@pytest.mark.usefixtures("in_this_process")
def test_what_could_not_begin_binds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend what was wrong, and the same folder takes it; of what has begun only who works is free."""
    source, out = written(tmp_path / "a.yaml", seeds=[0]), tmp_path / "out"
    assert cli.main(["study", source, "--out", str(tmp_path / "first"), "--arms", "s2"]) == 0
    words = ["study", source, "--out", str(out), "--data", str(tmp_path / "first" / "demos.hdf5")]
    assert cli.main([*words, "--train.demos", "99"]) == 2  # there are 3
    assert (out / "study.yaml").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise InvalidInput("not so")

    with monkeypatch.context() as patch:
        patch.setattr("s2robot.study.train", fail)
        assert cli.main([*words, "--train.demos", "1"]) == 2
    assert not list(out.rglob("config.yaml"))
    assert cli.main([*words, "--train.demos", "2", "--arms", "s2"]) == 0
    assert cli.main([*words, "--train.demos", "3"]) == 2
    assert list(configuration.read(str(out / "study.yaml"))["arms"]) == ["s2", "base"]  # also those not named now
    changed = written(tmp_path / "a.yaml", seeds=[0], arms={**ARMS, "base": {"encoder": {"scales": [2]}}})
    assert changed == source  # an arm that has not begun may still change
    more = ["--train.demos", "2", "--eval.workers", "2", "--train.checkpoint_every", "3"]
    assert cli.main([*words, *more]) == 0
    assert files.read_json(out / "results.json")["rows"][1]["arm"] == "base"


def test_an_arm_may_be_called_like_a_key_that_binds_nobody(tmp_path: Path) -> None:
    for scales in ([1], [2]):
        arms = {"s2": {}, "workers": {"encoder": {"scales": scales}}}
        study = read_study(written(tmp_path / "a.yaml", arms=arms))
        if scales == [1]:
            studies._keep(study, tmp_path)
            (tmp_path / "workers" / "seed-0").mkdir(parents=True)
            (tmp_path / "workers" / "seed-0" / "config.yaml").touch()
    with pytest.raises(InvalidInput, match=r"arms\.workers\.encoder"):
        studies._keep(study, tmp_path)


@pytest.mark.sim
@pytest.mark.usefixtures("in_this_process")
def test_another_number_of_demonstrations_than_were_collected_is_refused(tmp_path: Path) -> None:
    study = read_study(written(tmp_path / "a.yaml"), ["--collect.demos", "1"])
    first = next(cells(study)).config
    arguments: Any = (tmp_path, Console(quiet=True), None, studies.LOCAL)
    assert len(study_data.demonstrations(first, *arguments)) == 1
    more = dataclasses.replace(first, collect=dataclasses.replace(first.collect, demos=2))
    with pytest.raises(InvalidInput, match=r"has 1 demonstrations, and collect\.demos is 2"):
        study_data.demonstrations(more, *arguments)


def test_features_of_a_finished_run_are_not_made_again_for_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(cells(read_study(written(tmp_path / "a.yaml"))))
    for cell in every[:3]:
        (tmp_path / cell.folder / "policy").mkdir(parents=True)
        (tmp_path / cell.folder / "policy" / "done").touch()
    asked = []
    monkeypatch.setattr(studies, "everywhere", lambda dataset: dataset)
    monkeypatch.setattr(studies, "source_of", lambda dataset, config, *_: asked.append(config))
    monkeypatch.setattr(studies, "inputs_of", lambda *_: ())
    monkeypatch.setattr(studies, "do_runs", lambda launcher, do, runs, *_: iter(runs))
    dataset: Any = SimpleNamespace(address="demos.hdf5")
    done = studies._elsewhere(studies.LOCAL, every, {64: dataset}, [""], tmp_path, Console(quiet=True))
    assert list(done) == [cell.folder for cell in every]
    assert asked == [every[3].config]
