"""Launchers: the same answers from all, lost workers borne, nothing left running, nothing imported that is not used."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import tracemalloc  # noqa: F401 - pytest would import it in the middle of a collection of garbage, and be half way
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2robot import ray_launcher
from s2robot.datasets import DemoDataset, Episode, write_dataset
from s2robot.errors import InvalidInput, MissingExtra, S2RobotError, UnknownName, UsageError
from s2robot.launchers import HERE, LOCAL, Launcher, find_launcher
from s2robot.packed import PackedFrames
from s2robot.slurm_launcher import SlurmLauncher

UNWAITED = pytest.mark.filterwarnings(  # submitit does not wait for its local processes
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning"
)


def make(offset: int) -> int:
    return offset


def refuse() -> int:
    raise UnknownName("kind", "lihgt", ["light"])


def add(tool: int, item: int) -> int:
    return tool + item


def complain(tool: int, item: int) -> None:
    raise InvalidInput(f"item {item} is wrong")


def die(folder: Path, times: int, tool: int, item: int) -> tuple[int, str, int]:
    """The worker that has item 2 is killed, the first so many times."""
    tries = len(list(folder.glob("tried-*")))
    if item == 2 and tries < times:
        (folder / f"tried-{tries}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item, os.environ["OMP_NUM_THREADS"], os.getpid()


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """Ray on this machine; Slurm's jobs as processes here."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))  # workers know this file
    if request.param == "slurm":
        pytest.importorskip("submitit", reason="pip install 's2robot[slurm]'")
        yield SlurmLauncher(tmp_path / "jobs", workers=2, pieces=2, cluster="local")
        gc.collect()  # of this test is what its jobs leave unwaited, and not of whichever comes next
        return
    ray = pytest.importorskip("ray", reason="pip install 's2robot[ray]'")
    yield find_launcher("ray")
    ray.shutdown()


@UNWAITED
@pytest.mark.parametrize("elsewhere", ["ray", "slurm"], indirect=True)
def test_every_piece_is_answered_once_and_lost_workers_are_borne(elsewhere: Launcher, tmp_path: Path) -> None:
    answers = list(elsewhere.work(partial(make, 0), partial(die, tmp_path, 1), range(5)))
    assert sorted((item, got[:2]) for item, got in answers) == [(k, (k, "1")) for k in range(5)]
    assert (tmp_path / "tried-0").exists()
    # A tool is made once a worker, errors arrive as they are, and a series without end may be left.
    with pytest.raises(InvalidInput, match="item 0 is wrong"):
        list(elsewhere.work(partial(make, 0), complain, [0]))
    with pytest.raises(UnknownName, match="Did you mean 'light'"):
        list(elsewhere.work(refuse, add, range(4)))
    endless = elsewhere.work(partial(make, 0), partial(die, tmp_path, 1), count(5))
    pids = {pid for _, (_, _, pid) in islice(endless, 3)}
    endless.close()
    deadline = time.monotonic() + 20
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline, "a worker outlived its work"
        time.sleep(0.05)


@UNWAITED
@pytest.mark.parametrize("elsewhere", ["ray", pytest.param("slurm", marks=pytest.mark.slow)], indirect=True)
def test_a_piece_that_kills_its_workers_is_given_up_and_named(elsewhere: Launcher, tmp_path: Path) -> None:
    told = r"3 workers were lost over one piece, 2\. The last: .*Finished work is kept"
    with pytest.raises(S2RobotError, match=told):  # 2 and 3 are one job of Slurm's
        list(elsewhere.work(partial(make, 0), partial(die, tmp_path, 99), range(4)))


class LostError(Exception):
    """A worker is gone."""


class Stillborn:
    """A Ray cluster of two processors on which every worker dies at its start."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=type("RayTaskError", (LostError,), {}))

    def __init__(self) -> None:
        self.hired = 0

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: object) -> object:
        return value

    def kill(self, actor: object) -> None:
        return None

    def remote(self, *arguments: object) -> Any:
        """What is called so of classes, actors and their methods; a number is the answer to come."""
        if arguments and isinstance(arguments[0], type):
            return SimpleNamespace(options=lambda **kwargs: SimpleNamespace(remote=self._hire))
        return SimpleNamespace(options=lambda **kwargs: None)

    def _hire(self, *arguments: object) -> Any:
        self.hired += 1
        assert self.hired < 20, "they are hired for ever"
        number = self.hired
        return SimpleNamespace(ready=SimpleNamespace(remote=lambda: number))

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references[:1], references[1:]

    def get(self, reference: int) -> None:
        raise LostError("no module named s2robot")


def test_a_cluster_whose_workers_all_die_at_their_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Stillborn()
    monkeypatch.setattr(ray_launcher, "_connect", lambda address: cluster)
    with pytest.raises(S2RobotError, match=r"before they were ready\. The last: LostError: no module named s2robot"):
        list(find_launcher("ray").work(partial(make, 0), add, range(8)))
    assert cluster.hired > 2


@pytest.mark.parametrize("launcher", [LOCAL, HERE])
def test_this_machine_answers_the_same(launcher: Launcher) -> None:
    assert dict(launcher.work(partial(make, 10), add, range(5), 1)) == {k: k + 10 for k in range(5)}


def test_a_launcher_is_found_by_its_words_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_launcher("local") is LOCAL and find_launcher("here") is HERE
    slurm = find_launcher("slurm:partition=cpu,timeout_min=60,workers=64,folder=/shared/jobs")
    assert isinstance(slurm, SlurmLauncher) and (slurm.workers, slurm.folder) == (64, Path("/shared/jobs"))
    assert slurm.parameters == {"slurm_partition": "cpu", "timeout_min": 60}
    with pytest.raises(UnknownName, match="Did you mean 'ray'"):
        find_launcher("rya")
    with pytest.raises(UsageError, match="'partition' has no value"):
        find_launcher("slurm:partition")
    told = find_launcher("slurm:workers=2,mem_gb=1.5,time=1:30:00")
    assert isinstance(told, SlurmLauncher) and told.parameters == {"mem_gb": 1.5, "time": "1:30:00"}
    for words in ("pieces=x", "pieces=0", "workers=-4", "workers=2.5"):
        with pytest.raises(InvalidInput, match=f"{words.partition('=')[0]} is .*expected a whole number from 1 on"):
            find_launcher(f"slurm:{words}")
    with pytest.raises(UsageError, match="slurm:workers=64"):
        list(find_launcher("slurm").work(partial(make, 0), add, [1]))
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)
    for words, extra in (("ray", "ray"), ("slurm:workers=1", "slurm")):
        with pytest.raises(MissingExtra, match=rf"pip install 's2robot\[{extra}\]'"):
            list(find_launcher(words).work(partial(make, 0), add, [1]))


def test_an_unknown_parameter_of_slurm_is_said(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="pip install 's2robot[slurm]'")
    launcher = SlurmLauncher(tmp_path, workers=1, cluster="local", minutes=5)
    with pytest.raises(InvalidInput, match="minutes"):
        list(launcher.work(partial(make, 0), add, [1]))


def test_work_on_this_machine_imports_no_engine() -> None:
    code = (
        "import sys, s2robot.collect, s2robot.rollouts, s2robot.store, s2robot.study, s2robot.policy_verbs;"
        "from s2robot.launchers import find_launcher; find_launcher('local');"
        "print([name for name in ('ray', 'submitit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packed_frames_are_those_of_the_file_and_damage_shows(tmp_path: Path) -> None:
    rng, zeros = np.random.default_rng(0), np.zeros((21, 2), np.float32)
    frames = rng.integers(0, 256, (21, 2, 16, 24, 3), dtype=np.uint8)
    episode = Episode(0, True, frames, zeros, zeros, zeros, zeros[:, 0])
    dataset: DemoDataset = write_dataset(tmp_path / "a.hdf5", [episode], {"env_name": "Lift"}, ["a", "b"])
    image = dataset.packed(0)
    for steps in ([0], [3, 1, 20], list(range(0, 21, 4)), [0, 20]):
        np.testing.assert_array_equal(PackedFrames(image).frames(steps), frames[steps])
    wrong = 0
    for at in rng.integers(len(image) // 2, len(image), 30):  # where the images are
        damaged = bytearray(image)
        damaged[at] ^= 1
        try:
            np.testing.assert_array_equal(PackedFrames(bytes(damaged)).frames(range(21)), frames)
        except (OSError, ValueError, KeyError, RuntimeError):
            wrong += 1
    assert wrong > 15


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
