"""A recommendation becomes the champion where it earned it, or with a reason that stays; and it can be taken back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, run_spec, trunk_spec

from tunnel import cli
from tunnel.answers import champions, promote, recommend
from tunnel.errors import UserError
from tunnel.folder import chain
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study
from tunnel.sweeps import launch, sweep

STAGES = """[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[32, 2], [48, 3], [64, 4]]
fan = [0.5, 1, 2]
rungs = { tokens = ["500k", "1M"] }
"""
TEXT = TINY[: TINY.index("[[stage]]")].replace("[train]", "[train]\nlr = 0.02\ndecay = 0.15") + STAGES
SEEDS = [1, 2]
Studies = dict[str, tuple[Study, Store]]


def redecayed(told: dict[str, Any], decay: float) -> dict[str, Any]:
    """A recommendation whose decay is another: 0.15 is the calibration body's best."""
    run = RunSpec.model_validate(told["run"])
    batch = run.trunk.settings.batch_tokens
    length = round(decay * run.tokens / batch) * batch
    other = run.replaced(decay_start=run.tokens - length, decay_tokens=length)
    return {**told, "run": json.loads(other.model_dump_json()), "study": f"decay-{decay}"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    """Three studies of one ladder that recommend a bad, a good and the best decay, their targets trained at 3 seeds."""
    root = tmp_path_factory.mktemp("champions")
    (root / "tiny.toml").write_text(TEXT)
    asked, keep = sweep.opened(root / "tiny.toml", root / "ladder")
    sweep.sweep(asked, keep)
    told, found = recommend.recommend(asked, keep), Studies()
    for name, decay in {"bad": 0.03, "good": 0.06, "best": 0.15}.items():
        own = Store(shutil.copytree(keep.root, root / name))
        own.path("recommendation.json").write_text(json.dumps(redecayed(told, decay)))
        launch.train(asked, own, seeds=SEEDS)
        found[name] = asked, own
    return found


@pytest.fixture
def copied(studies: Studies, tmp_path: Path) -> Studies:
    return {k: (asked, Store(shutil.copytree(s.root, tmp_path / k))) for k, (asked, s) in studies.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "champion.json"


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    return {c["condition"].split(" champion")[0]: c["holds"] for c in found["conditions"]}


FIRST = {"its forecast held": True, "no optimum lies on an edge": True, "it was not forced": True}


def test_the_better_one_is_champion_whichever_comes_first(copied: Studies, path: Path) -> None:
    first = promote.promote(*copied["good"], path=path)
    assert verdicts(first) == FIRST  # it needs no rival
    assert (first["promoted"], first["over"], first["champion"]["number"]) == (True, None, 1)

    worse = promote.promote(*copied["bad"], path=path)
    assert verdicts(worse) == {**FIRST, "it beats": False}
    assert not worse["promoted"]
    assert len(chain.entries(champions.history(path))) == 1

    best = promote.promote(*copied["best"], path=path)
    assert verdicts(best) == {**FIRST, "it beats": True}
    assert (best["promoted"], best["over"], best["champion"]["number"]) == (True, 1, 2)
    [size] = best["sizes"]
    assert (size["shape"], size["seeds"]) == ("128×8", [0, *SEEDS])
    assert size["low"] < size["difference_percent"] < size["high"] < 0

    now = json.loads(path.read_text())
    assert (now["number"], now["study"]) == (2, "decay-0.15")
    assert now["recommendation"] == json.loads(copied["best"][1].path("recommendation.json").read_text())
    again = promote.promote(*copied["best"], path=path)
    assert (again["promoted"], again["champion"]["number"]) == (True, 2)
    assert json.loads(path.read_text()) == now
    for name, lines in {"bad": [], "good": ["promoted"], "best": ["promoted"]}.items():
        notes = chain.entries(copied[name][1].path(chain.AUDIT))
        assert [e["what"] for e in notes if e["what"] != "launched"] == ["trained", *lines]


def test_the_interval_is_students_of_the_pairs() -> None:
    """t(0.95, 2) = 2.91999: any table."""
    run = run_spec(trunk_spec(), 8, 2)
    off = np.array([0.01, 0.02, 0.06])
    a = promote.Size(run, 1, dict(enumerate(np.exp(off).tolist())))
    b = promote.Size(run, 1, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0})
    half = 2.919986 * off.std(ddof=1) / 3**0.5
    found = promote.paired(a, b)
    assert found["low"] == pytest.approx(100 * np.expm1(0.03 - half))
    assert found["high"] == pytest.approx(100 * np.expm1(0.03 + half))


BETTER, WORSE, EVEN = (-1.0, -2.0, -0.5), (1.0, 0.5, 2.0), (0.1, -0.5, 0.7)  # difference, low, high
FEW = (None, None, None)


@pytest.mark.parametrize(
    ("sizes", "holds"),
    [
        ([BETTER], True),
        ([EVEN], False),
        ([WORSE, BETTER], False),
        ([EVEN, BETTER], True),
        ([BETTER, EVEN], False),
        ([BETTER, FEW], True),
        ([FEW], False),
        ([], False),
    ],
)
def test_the_largest_size_decides_and_no_other_is_lost(tmp_path: Path, sizes: list[Any], holds: bool) -> None:
    keys = ("difference_percent", "low", "high")
    rows = [{"shape": "1×1", "seeds": [0], "diverged": [], **dict(zip(keys, s, strict=True))} for s in sizes]
    assert promote.beats({"number": 1, "folder": str(tmp_path)}, rows)["holds"] == holds


def test_what_is_compared_is_of_one_shape_length_and_data() -> None:
    trunk = trunk_spec()
    run, batch = run_spec(trunk, 8, 2), trunk.settings.batch_tokens

    def like(other: RunSpec) -> bool:
        return promote.Size(run, 1).like(promote.Size(other, 1))

    def of(**changed: Any) -> RunSpec:
        return run.replaced(trunk=trunk.replaced(**changed))

    assert like(of(seed=5, rules="standard", settings=trunk.settings.replaced(lr=0.5)))
    assert like(run.replaced(decay_tokens=run.decay_tokens + batch - 1))
    assert not like(run.replaced(decay_tokens=run.decay_tokens + batch))
    assert not like(of(shape=trunk.shape.replaced(width=64)))
    assert not like(of(source=trunk.source.replaced(corpus_hash="another")))
    assert not like(of(body=trunk.body.replaced(seq_len=64)))


def drop(keep: Store, seed: int, **changed: Any) -> None:
    """Takes a target's reading at a seed away, or changes it."""
    for record in keep.records():
        if record.stage.startswith("target:") and record.run.trunk.seed == seed:
            path = keep.path("records", f"{record.fingerprint_of}.json")
            if changed:
                path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
            else:
                path.unlink()


def told(keep: Store, **changed: Any) -> None:
    path = keep.path("recommendation.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


EDGE = {"about": "edge", "text": "lr: at the edge", "run": "a wider fan"}
REFUSED: dict[str, tuple[Callable[[Store, Store], Any], str, str]] = {  # of the best one, against the good
    "two seeds": (lambda new, old: drop(new, 2), "it beats champion 1", "2 paired seeds at most, 3"),
    "two of the champion's": (lambda new, old: drop(old, 1), "it beats champion 1", "2 paired seeds at most"),
    "a seed diverged": (
        lambda new, old: drop(new, 2, loss=None, status="diverged"),
        "it beats champion 1",
        r"diverged at 128×8, seeds \[2\]",
    ),
    "the champion's diverged": (
        lambda new, old: drop(old, 2, loss=None, status="diverged"),
        "it beats champion 1",
        "2 paired seeds at most",
    ),
    "not so much better": (lambda new, old: drop(new, 2, loss=7.2), "it beats champion 1", r"128×8: .*% \(-.* to \+"),
    "no champion's folder": (lambda new, old: shutil.rmtree(old.root), "it beats champion 1", "its folder is gone"),
    "it missed": (lambda new, old: drop(new, 0, loss=9.0), "its forecast held", "9.0000, forecast"),
    "it diverged": (lambda new, old: drop(new, 0, loss=None, status="diverged"), "its forecast held", "it diverged"),
    "not trained": (lambda new, old: new.path("target.json").unlink(), "its forecast held", "has not finished"),
    "another run": (
        lambda new, old: told(new, run=json.loads(old.path("recommendation.json").read_text())["run"]),
        "its forecast held",
        "is not the one that is recommended",
    ),
    "an edge": (lambda new, old: told(new, remedies=[EDGE]), "no optimum lies on an edge", "lr: at the edge"),
    "forced": (lambda new, old: told(new, forced=["too short"]), "it was not forced", "too short"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_and_why(copied: Studies, path: Path, why: str) -> None:
    promote.promote(*copied["good"], path=path)
    before = path.read_bytes()
    do, name, said = REFUSED[why]
    do(copied["best"][1], copied["good"][1])
    found = promote.promote(*copied["best"], path=path)
    assert not found["promoted"]
    [failed] = [c for c in found["conditions"] if not c["holds"] and c["condition"].startswith(name)]
    assert re.search(said, failed["why"])
    assert path.read_bytes() == before


def test_readings_that_a_fit_saw_are_no_held_out_size(copied: Studies, path: Path) -> None:
    promote.promote(*copied["good"], path=path)
    extrapolation = {"N": 1.0, "D": 1.0, "C": 1.0}  # as if the ladder had had the target's shape
    told(copied["best"][1], extrapolation=extrapolation)
    found = promote.promote(*copied["best"], path=path)
    assert "no size that both were trained at" in found["conditions"][-1]["why"]


def test_a_reason_forces_it_and_stays(copied: Studies, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promote.promote(*copied["good"], path=path)
    bad = copied["bad"][1]

    def call(*args: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as end:
            cli.app(["promote", str(bad.root), "--champions", str(path), "--json", *args])
        return int(end.value.code or 0), json.loads(capsys.readouterr().out)

    assert call()[0] == 1
    with pytest.raises(UserError, match="--force: needs a reason"):
        promote.promote(*copied["bad"], path=path, force=" ")
    code, found = call("--force", "the launch is tomorrow")
    assert (code, found["promoted"], found["forced"]) == (0, True, "the launch is tomorrow")
    assert json.loads(path.read_text())["forced"] == "the launch is tomorrow"
    written = chain.entries(champions.history(path))[-1]
    assert verdicts(written) == {**FIRST, "it beats": False}
    assert chain.entries(bad.path(chain.AUDIT))[-1]["about"]["forced"] == "the launch is tomorrow"
    earned = promote.promote(*copied["best"], path=path, force="to be sure")
    assert earned["forced"] is None  # it needed none


# rolling back


def test_back_to_the_one_before_and_to_any(copied: Studies, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bad", "good", "best"):
        promote.promote(*copied[name], path=path)
    numbers = []
    for to in (None, None, 3, None):
        champions.rollback(path, to)
        numbers.append(json.loads(path.read_text())["number"])
    assert numbers == [2, 1, 3, 2]
    champions.rollback(path, 1)
    cli.app(["rollback", "--champions", str(path), "--to", "3"], standalone_mode=False)
    assert "champion 3 is big of" in capsys.readouterr().out
    notes = [e["about"]["to"] for e in chain.entries(copied["bad"][1].path(chain.AUDIT)) if e["what"] == "rolled back"]
    assert notes == [1, 3, 1, 3]  # where it came, and where it went
    assert len(chain.entries(champions.history(path))) == 3 + 6


BACK = {
    "to itself": (2, r"--to: is no other champion's number; got 2; choices: 1$"),
    "to none": (7, "is no other champion's number"),
}


@pytest.mark.parametrize("how", BACK)
def test_back_to_what_is_none(copied: Studies, path: Path, how: str) -> None:
    with pytest.raises(UserError, match="there is no champion yet"):
        champions.rollback(path)
    assert not path.parent.exists()
    for name in ("good", "best"):
        promote.promote(*copied[name], path=path)
    to, rule = BACK[how]
    with pytest.raises(UserError, match=rule):
        champions.rollback(path, to)
    champions.rollback(path)
    with pytest.raises(UserError, match="there was no champion before"):
        champions.rollback(path)


def test_a_changed_history_is_refused_and_a_lost_file_is_made_again(copied: Studies, path: Path) -> None:
    promote.promote(*copied["good"], path=path)
    promote.promote(*copied["best"], path=path)
    path.unlink()  # a kill between the two writes
    champions.rollback(path)
    assert json.loads(path.read_text())["number"] == 1
    file = champions.history(path)
    file.write_text(file.read_text().replace('"forced": null', '"forced": "a whim"', 1))
    for act in (lambda: champions.rollback(path, 2), lambda: promote.promote(*copied["best"], path=path)):
        with pytest.raises(UserError, match="line 1: the hash chain is broken"):
            act()


def test_what_was_decided_of_another_champion_is_not_written(copied: Studies, path: Path) -> None:
    promote.promote(*copied["good"], path=path)
    tip = chain.tip(champions.history(path))
    promote.promote(*copied["best"], path=path)
    with pytest.raises(UserError, match="another one came first"):
        champions.write(path, {"what": "rolled back", "number": 1, "over": 1}, tip)
