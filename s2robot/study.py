"""A study: arms that differ in what is asked about, on the same seeds, one table and one page.

    <out>/study.yaml              the question, resolved
          demos.hdf5, features/   the demonstrations, and a store an encoder (or beside the file of `--data`)
          demos-128px.hdf5        the same drawn again, for arms whose cameras have another size
          <arm>-<level>/seed-0/   a run, as `train` and `eval` leave it: `compare` and `report` read it
          results.json            what is finished of what the last command named
          videos.json, videos/    one start as every arm plays it, once all is finished
          report.html             the same, to look at

Every cell is trained and judged as the verbs do it, so a killed study goes on where it was. Cells are done seed by
seed: after the first third there is an answer, if a rough one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from s2robot import config as configuration
from s2robot import files, locks, progress, registry, remote
from s2robot.collect import CollectConfig
from s2robot.config import merged, unfolded
from s2robot.datasets import DemoDataset
from s2robot.demo import DemoConfig, check_run, run_schema, source_of
from s2robot.errors import InvalidInput, UnknownName
from s2robot.launchers import HERE, LOCAL, Launcher
from s2robot.rollouts import EvalConfig, evaluate
from s2robot.runs import SEED_FOLDER
from s2robot.settings import SETTINGS
from s2robot.study_data import Seen, as_seen, demonstrations, enough, same_demonstrations
from s2robot.study_page import write_page
from s2robot.study_results import tabulate
from s2robot.study_videos import film
from s2robot.sweeps import alone_in, do_runs, everywhere, inputs_of
from s2robot.training import train

LISTS = ("levels", "seeds", "shifts")


@dataclass(frozen=True)
class StudyConfig:
    """A question to rollouts.

    run: what all arms have in common, keys of a run's config.
    arms: name -> what this arm has instead. The first is what the others are held against.
    given: what the command line says of all arms, which goes before what they say themselves.
    vary, levels: a key of a run that all arms go through, e.g. train.demos over 15, 30, 60.
    shifts: the looks to judge under; "" is the demonstrations' own, see `s2robot.envs.shifts`.
    """

    title: str = "A study"
    question: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    vary: str = ""
    levels: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    shifts: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if not self.arms:
            raise InvalidInput("A study needs arms: name -> what differs, e.g. base: {encoder: {scales: [1]}}")
        if bool(self.vary) != bool(self.levels):
            raise InvalidInput(f"vary is {self.vary!r}, levels {self.levels}: give both or neither")
        if not self.seeds or not self.shifts:
            raise InvalidInput(f"seeds is {self.seeds}, shifts {self.shifts}: a study needs at least one of each")


OWN = {  # keys of a run -> how a study is told
    "eval.shift": 'shifts: ["", all/test] in the study, or --shifts "none;all/test"',
    "train.seed": "seeds: [0, 1, 2] in the study, or --seeds 0,1,2",
    "seed": "seeds: [0, 1, 2] in the study, or --seeds 0,1,2",
    "baselines": "name them as arms",
    "out": "--out",
}


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm, at a level, with a training seed."""

    arm: str
    level: float | None
    seed: int
    config: DemoConfig

    @property
    def folder(self) -> str:
        level = "" if self.level is None else f"-{self.level:g}"
        return f"{self.arm}{level}/{SEED_FOLDER.format(self.seed)}"


def read_study(source: str, overrides: Sequence[str] = (), **chosen: Any) -> StudyConfig:
    """A study by name or .yaml path.

    Args:
        overrides: keys of a run that all arms get.
        chosen: arms, seeds, shifts or levels instead of the file's; arms by name.

    Raises:
        UnknownName: there is no such study, arm or key.
        InvalidInput: a value of the wrong type.
    """
    tree = configuration.read(source)
    _check(tree, source)
    tree["run"] = unfolded(tree.get("run") or {})
    known = [each.name for each in dataclasses.fields(StudyConfig)]
    for key in tree:
        if key not in known:
            raise configuration.strange(source, key, known)
    written: dict[str, Any] = tree.get("arms") or {}
    for name in chosen.get("arms") or ():
        if name not in written:
            raise UnknownName("arm", name, written)
    tree["arms"] = {name: unfolded(written[name] or {}) for name in chosen.get("arms") or written}
    tree |= {name: tuple(value) for name in LISTS if (value := chosen.get(name) or tree.get(name))}
    shifts = tuple("" if each in (None, "none") else each for each in tree.get("shifts", ("",)) or ())
    if len(set(shifts)) < len(shifts):
        raise InvalidInput(f"shifts in {source} has the demonstrations' own look (none) twice; expected each once")
    tree["shifts"] = shifts
    given = merged(unfolded(tree.get("given") or {}), configuration.planted(overrides, _schema(tree)))
    study = StudyConfig(**{**tree, "given": given})
    _refuse_own(study)
    return study


def _schema(tree: dict[str, Any]) -> type[DemoConfig]:
    """What keys all arms have: of one kind of policy its own, else those that all kinds share."""
    kinds = {merged(tree["run"], arm).get("kind", "bc-mlp") for arm in tree["arms"].values()}
    return run_schema(kinds.pop()) if len(kinds) == 1 else DemoConfig


def _refuse_own(study: StudyConfig) -> None:
    """Keys of a run that a study sets itself, run by run: given anywhere else they would be lost.

    Raises:
        InvalidInput: one is there.
    """
    if study.vary == "kind":
        raise InvalidInput("vary is kind, which has names and no levels: name them as arms, as flow: {kind: flow}")
    if study.vary in OWN:
        raise InvalidInput(f"vary is {study.vary}, which is the study's own to set: {OWN[study.vary]}")
    own = OWN | ({study.vary: "levels: [15, 30] in the study, or --levels 15,30"} if study.vary else {})
    for where, tree in {"run": study.run, "options": study.given, **study.arms}.items():
        flat = configuration.flat(tree)
        for key, instead in own.items():
            if key in flat:
                raise InvalidInput(f"{key} in {where} is the study's own to set: {instead}")


def _check_lists(tree: dict[str, Any], source: str) -> None:
    for name in LISTS:
        value = tree.get(name) or []
        if not isinstance(value, list) or len(set(map(str, value))) < len(value):
            raise InvalidInput(f"{name} in {source} is {value!r}; expected a list, each of it once, as [0, 1, 2]")
    if strange := [each for each in tree.get("levels") or () if type(each) not in (int, float)]:
        raise InvalidInput(f"levels in {source} has {strange[0]!r}; expected numbers. What has names is an arm")


def _check(tree: dict[str, Any], source: str) -> None:
    """A study is often written by hand: what YAML makes of it is said here, not met somewhere else."""
    _check_lists(tree, source)
    arms = tree.get("arms") or {}
    mappings = {"run": tree.get("run"), "arms": arms}
    mappings |= {f"arms.{name}": arm for name, arm in arms.items()} if isinstance(arms, dict) else {}
    for name in ("title", "question", "vary"):
        if not isinstance(tree.get(name, ""), str):
            raise InvalidInput(f"{name} in {source} is {tree[name]!r}, which is no text to YAML: put it in quotes")
    for name, value in mappings.items():
        if not isinstance(value or {}, dict):
            raise InvalidInput(f"{name} in {source} is {value!r}; expected keys and their values")
        if not isinstance(kind := (value or {}).get("kind", ""), str):
            raise InvalidInput(f"kind in {name} of {source} is {kind!r}; expected the name of a kind of policy")
    for name in arms:
        if not isinstance(name, str):
            raise InvalidInput(f"{source} has an arm {name!r}, which is no text to YAML: put its name in quotes")
        if not re.fullmatch(r"\w[\w.+-]*", name):  # it becomes a folder
            raise InvalidInput(f"{source} has an arm {name!r}; expected letters, digits, and . + - _ between them")


def cells(study: StudyConfig) -> Iterator[Cell]:
    """Every run, in the order they are made; their configs are whole, and say where they are wrong."""
    for seed in study.seeds:
        for level in study.levels or (None,):
            for name, arm in study.arms.items():
                tree = merged(merged(study.run, arm), study.given)
                for key, value in (("train.seed", seed), (study.vary, level)):
                    if key:
                        tree = merged(tree, _branch(key, value))
                schema = run_schema(tree.get("kind", "bc-mlp"))
                yield Cell(name, level, seed, configuration.build(schema, tree, f"arm {name}"))


def run_study(
    study: StudyConfig, out: Path, console: Console, data: str | Path | None = None, launcher: Launcher = LOCAL
) -> Path:
    """Run or resume a study; return its page.

    Args:
        data: demonstrations to learn from; default: collected into `out`, as the study's `run` says.

    Raises:
        InvalidInput: the folder holds a study with other arms of the same name, or other settings.
        S2RobotError: an arm's encoder cannot be made.
        Occupied: another process runs it.
    """
    every = list(cells(study))  # a wrong setting is said before anything is done
    if strange := [cell.arm for cell in every if _drawn_alike(cell) != _drawn_alike(every[0])]:
        raise InvalidInput(f"Arm {strange[0]} has demonstrations of its own: in a study all learn from the same")
    if strange := [cell.arm for cell in every if _judged_on(cell) != _judged_on(every[0])]:
        raise InvalidInput(f"Arm {strange[0]} is judged on other episodes or physics: all are judged on the same")
    for shift in study.shifts:
        registry.check_manner(every[0].config.eval.fidelity, shift)
    for cell in every:
        check_run(cell.config)
    if data is None:
        enough(every, every[0].config.collect.demos, "collect.demos is")
    for encoder in dict.fromkeys(cell.config.encoder for cell in every):
        encoder.build("cpu")  # a file of weights that is missing is said now, not after the arms before it
    with locks.alone(out / ".lock", str(out)):
        return _run_study(study, every, out, console, data, launcher)


def _run_study(
    study: StudyConfig, every: list[Cell], out: Path, console: Console, data: str | Path | None, launcher: Launcher
) -> Path:
    _keep(study, out)
    dataset = demonstrations(every[0].config, out, console, data, launcher)
    same_demonstrations(dataset, out)
    enough(every, len(dataset), f"{remote.shown(dataset.address)} has")
    seen = as_seen(every, dataset, out, console)
    done = partial(_one_by_one if launcher in (LOCAL, HERE) else _elsewhere, launcher)
    for number, name in enumerate(done(every, seen, study.shifts, out, console), start=1):
        console.print(f"{number} of {len(every)}: {name}", highlight=False)
        files.write_json(out / "results.json", tabulate(study, every, dataset, out))
        write_page(out)
    with progress.bar("film", console) as report:
        film(every, study.shifts[0], out, report)
    write_page(out)
    return out / "report.html"


def _one_by_one(
    launcher: Launcher, every: Sequence[Cell], seen: Seen, shifts: Sequence[str], out: Path, console: Console
) -> Iterator[str]:
    for cell in every:
        with alone_in(out / cell.folder):
            run_cell(seen, shifts, cell, out / cell.folder, console, launcher)
        yield cell.folder


def _elsewhere(
    launcher: Launcher, every: Sequence[Cell], seen: Seen, shifts: Sequence[str], out: Path, console: Console
) -> Iterator[str]:
    """Features first, which many runs share; then each run on a worker."""
    seen = {size: everywhere(dataset) for size, dataset in seen.items()}
    inputs: dict[Path, None] = {}
    for cell in every:
        if (out / cell.folder / "policy" / "done").exists():  # its store may be gone by now
            continue
        dataset = seen[cell.config.collect.frame_size]
        source = source_of(dataset, cell.config, remote.beside(dataset.address, "features"), console, launcher)
        inputs |= dict.fromkeys(inputs_of(dataset, source))
    runs = {cell.folder: cell for cell in every}
    return do_runs(launcher, partial(run_cell, seen, shifts), runs, out, tuple(inputs))


def run_cell(
    seen: Seen,
    shifts: Sequence[str],
    cell: Cell,
    folder: Path,
    console: Console | None = None,
    launcher: Launcher = HERE,
) -> None:
    """Train and judge one run, or what is missing of it; by default as a worker does, in its process alone."""
    config, console = cell.config, console or Console(quiet=True)
    dataset = seen[config.collect.frame_size]
    kept = dataclasses.replace(config, out=".", eval=EvalConfig())  # more episodes may follow
    with configuration.bound(kept, folder):
        if (folder / "policy" / "done").exists():  # its store may be gone by now, and is not made again for this
            _hold(folder / "policy", dataset, config)
        else:
            source = source_of(dataset, config, remote.beside(dataset.address, "features"), console, launcher)
            with progress.bar("train", console) as report:
                train(dataset, source, config.encoder, config.policy, config.train, folder / "policy", progress=report)
    for shift in shifts:
        judging = dataclasses.replace(config.eval, shift=shift)
        with progress.bar("evaluate", console) as report:
            evaluate(folder / "policy", judging, folder / f"episodes-{judging.label}.jsonl", report, launcher)


def _hold(policy: Path, dataset: DemoDataset, config: DemoConfig) -> None:
    """Raises InvalidInput where a finished policy is of other demonstrations, or of another encoder of that name."""
    now: dict[str, str] = {"dataset": dataset.fingerprint[:16]}
    if not registry.reads_frames(config.kind):
        now["encoder"] = config.encoder.build("cpu").fingerprint[:16]
    known = files.read_json(policy / SETTINGS) if (policy / SETTINGS).exists() else {}  # of an older version
    if changed := configuration.differences({name: known.get(name) for name in now}, now):
        raise InvalidInput(f"{policy} learned from something else ({'; '.join(changed)}). Choose another --out")


def _branch(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    whole = int(value) if isinstance(value, float) and value == int(value) else value
    return {first: _branch(rest, value) if rest else whole}


def _keep(study: StudyConfig, out: Path) -> None:
    """Arms, levels, seeds and episodes may be added or left out this time; what is asked may not change.

    An arm of which no run has begun binds nobody, nor does a study of which none has.
    """
    path = out / "study.yaml"
    now = {name: getattr(study, name) for name in ("run", "given", "vary", "arms")}
    has_begun = any(out.glob("*/" + SEED_FOLDER.format("*") + "/config.yaml"))
    there: dict[str, Any] = configuration.read(str(path)) if path.exists() else now
    known = there if has_begun else now
    arms = {**study.arms, **{name: arm for name, arm in known["arms"].items() if _has_begun(name, out)}}
    before = {**{name: known[name] for name in now}, "arms": {name: arms[name] for name in study.arms}}
    for each in (before, now):
        each |= {name: {key: each[name][key] for key in each[name] if key != "eval"} for name in ("run", "given")}
    if changed := configuration.differences(*map(_binding, (before, now))):
        raise InvalidInput(f"{out} holds a study with other settings ({'; '.join(changed)}). Choose another --out")
    whole = dataclasses.asdict(dataclasses.replace(study, arms={**there["arms"], **arms}))
    with files.atomic(path) as temporary:
        temporary.write_text(configuration.as_yaml(whole), encoding="utf-8")


def _binding(tree: dict[str, Any]) -> dict[str, Any]:
    """What decides results, of keys of runs; names of arms are no keys."""
    arms = {name: configuration.binding(arm) for name, arm in tree["arms"].items()}
    return {**configuration.binding({**tree, "arms": {}}), "arms": arms}


def _has_begun(arm: str, out: Path) -> bool:
    """Whether there is a run of it; of another whose name begins so, to be on the safe side."""
    return any(out.glob(f"{arm}*/" + SEED_FOLDER.format("*") + "/config.yaml"))


def _drawn_alike(cell: Cell) -> CollectConfig:
    """What is demonstrated, at whatever size it is drawn."""
    return dataclasses.replace(cell.config.collect, frame_size=CollectConfig.frame_size)


def _judged_on(cell: Cell) -> tuple[int, int, str]:
    return cell.config.eval.seed, cell.config.eval.episodes, cell.config.eval.fidelity
