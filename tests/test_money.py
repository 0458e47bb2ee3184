"""Money and limits: prices and sums, what the devices were held for, limits that hold, ETA, the webhook."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel import plan, study
from tunnel.errors import Stopped, UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.study import Price, Study
from tunnel.study.money import TABLE, table, total
from tunnel.sweeps import attempts, notify, sweep
from tunnel.sweeps.attempts import IDLE, Meter, Span
from tunnel.sweeps.limits import Account
from tunnel.sweeps.status import Live

Write = Callable[..., Path]
HERE = "[resources]"  # where a study takes another table

# prices


def test_every_number_of_the_table_has_its_source_and_a_word_of_confidence() -> None:
    numbers = [line for line in TABLE.read_text().splitlines() if re.match(r"(bf16|fp32|mfu|per_hour) ", line)]
    assert len(numbers) == 4 * len(table())
    assert all(re.search(r"# .*\*(derived|measured here|from paper|assumed)\*$", line) for line in numbers)


@pytest.mark.parametrize("device", table())
def test_a_device_of_the_table_needs_no_numbers(device: str) -> None:
    price = Price(device=device)
    assert price.per_hour > 0
    assert 0 < price.pace("fp32") < 1e15
    assert price.pace("bf16") == pytest.approx(float(table()[device]["bf16"]) * price.mfu)


@pytest.mark.parametrize(
    ("told", "pace", "per_hour"),
    [
        ('device = "H100"', 67e12 * 0.4, "3.00"),  # in fp32, as the study trains
        ('device = "H100"\nper_hour = 2.10', 67e12 * 0.4, "2.10"),
        ('device = "H100"\nmfu = 0.5', 67e12 * 0.5, "3.00"),
        ('device = "H100"\nflops_per_second = 5e14', 5e14, "3.00"),  # a given number is taken as it is
        ('device = "mine"\nflops_per_second = "2T"\nper_hour = "0.10"\ncurrency = "EUR"', 2e12, "0.10"),
        ("", 4.5e10 * 0.55, "0.04"),
    ],
)
def test_given_numbers_win(study_file: Write, told: str, pace: float, per_hour: str) -> None:
    price = study.load(study_file((HERE, f"[price]\n{told}\n{HERE}"))).price
    assert price.pace("fp32") == pytest.approx(pace)
    assert price.per_hour == Decimal(per_hour)


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        ('[price]\ndevice = "mine"', "price: device 'mine' is not in the price table: give flops_per_second"),
        ('[price]\ndevice = "mine"\nflops_per_second = 1e12', "give per_hour, or one of CPU core, A100, H100"),
        ('[price]\ndevice = "H100"\ncurrency = "EUR"', "price: currency 'EUR' needs per_hour: the table's are in USD"),
        ('[price]\ndevice = ["H100"]', "price.device: input should be a valid string"),
        ("[price]\nper_hour = -1", "price.per_hour: input should be greater than or equal to 0"),
        ("[price]\nper_hour = nan", "price.per_hour: input should be a finite number"),
        ("[budget]\nmax_cost = 0", "budget.max_cost: input should be greater than 0"),
        ("[budget]\nmax_cost = 1\n[price]\nper_hour = 0", "budget.max_cost needs a price.per_hour above 0"),
        ('[notify]\nurl_env = "https://hooks.example/x"', "notify.url_env: is the name of a variable"),
    ],
)
def test_what_is_refused_in_a_line(study_file: Write, told: str, rule: str) -> None:
    with pytest.raises(UserError) as e:
        study.load(study_file((HERE, f"{told}\n{HERE}")))
    assert rule in str(e.value)


# money is decimal

SECONDS = st.floats(0, 1e12)
RATES = st.decimals(0, 10**6, places=4)


@given(st.lists(st.tuples(SECONDS, RATES), max_size=30), st.randoms())
def test_sums_are_exact_in_any_order(items: list[tuple[float, Decimal]], order: Any) -> None:
    costs = [Price(per_hour=rate).cost(seconds) for seconds, rate in items]
    exact = sum((Fraction(c) for c in costs), Fraction(0))
    order.shuffle(costs)
    assert Fraction(total(costs)) == exact


@given(SECONDS, RATES)
def test_a_cost_is_its_hours_to_half_a_millionth(seconds: float, rate: Decimal) -> None:
    error = Fraction(Price(per_hour=rate).cost(seconds)) - Fraction(str(seconds)) * Fraction(rate) / 3600
    assert abs(error) <= Fraction(1, 2_000_000) + Fraction(1, 10**30)


def money_in(found: Any, key: str = "") -> Iterator[Any]:
    if isinstance(found, dict):
        for k, v in found.items():
            yield from money_in(v, k)
    elif isinstance(found, list):
        for v in found:
            yield from money_in(v, key)
    elif key == "cost":
        yield found


def test_no_float_in_money(study_file: Write) -> None:
    asked = study.load(study_file((HERE, f"[budget]\nmax_cost = 0.1\n{HERE}")))
    planned = plan.plan(asked)
    shares = planned.pop("of_target")
    assert 0 < shares["cost"] < 1
    assert {type(c) for c in money_in(planned)} == {Decimal}
    assert planned["cost"] == total(s["cost"] for s in planned["stages"])
    [limit] = planned["limits"]
    assert (limit["taken"], limit["limit"]) == (planned["cost"], Decimal("0.1"))


# paces


def test_a_pace_is_the_nearest_size_s() -> None:
    paces = plan.Paces(1e9)
    assert paces.at(1e6) == 1e9
    for size, flops, seconds in ((1e6, 1e10, 10), (1e6 + 1e-7, 3e10, 10), (1e8, 1e12, 100), (1e7, 0, 0)):
        paces.add(size, flops, seconds)
    assert [paces.at(s) for s in (1.0, 1e6, 9e6, 1.1e7, 1e12)] == [2e9, 2e9, 2e9, 1e10, 1e10]


def test_a_plan_of_a_swept_folder_is_at_its_own_pace(swept: tuple[Study, Store]) -> None:
    """The sum over shapes of what is trained there, each at what its own records say."""
    asked, keep = swept
    rows = keep.readings()
    planned = plan.plan(asked, plan.Paces.of(asked, rows))
    assert planned["pace"] == "measured"
    for shape in planned["stages"][1]["shapes"]:
        own = rows[rows.width == shape["width"]]
        pace = (own.flops / own.D * own.tokens_trained).sum() / own.seconds.sum()
        assert shape["seconds"] == pytest.approx(shape["trained_flops"] / pace)


# attempts.jsonl


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the meters; the day's may jump as it likes."""
    now = [1000.0]
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_hand_shares_its_worker_and_who_is_left_has_it_alone(clock: list[float]) -> None:
    meter = Meter("s", devices=0.5)
    meter.handed([1, 2])
    clock[0] += 10
    meter.handed([3])
    clock[0] += 10
    first = meter.ended(1, "complete")
    clock[0] += 10
    second, third = meter.ended(2, "failed"), meter.ended(3, "complete")
    clock[0] += 10
    idle = meter.open("running")[-1]
    assert [s.seconds for s in (first, second, third, idle)] == [5, 10, 10, 10]  # halves of 10, 20, 20, 20
    assert (idle.workers, idle.state) == (2, IDLE)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5), st.booleans()), max_size=40))
def test_what_is_held_is_every_worker_s_time(moves: list[tuple[float, int, bool]]) -> None:
    """Trials and idle together are workers × wall time, whatever starts, ends, and is handed out again."""
    now, expected, ended = [0.0], 0.0, 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now[0]))
        meter = Meter("s", 2.0)
        for passed, number, starts in moves:
            now[0] += passed
            expected += passed * meter.workers * 2.0
            if starts:
                meter.handed([number, number + 1])
            else:
                ended += meter.ended(number, "complete").seconds
        assert meter.seconds + ended == pytest.approx(expected)


def span(**changed: Any) -> Span:
    return Span(**{"session": "a", "stage": "s", "trial": 0, "state": "complete", "seconds": 2.0, **changed})


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    keep = Store(tmp_path)
    attempts.append(keep, [span(), span(trial=1)])
    path = keep.path("attempts.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    attempts.append(keep, [span(trial=2)])
    path.open("a").write('{"session": 1}\n[]\nnull\n{"seconds": "many"}\n')
    assert [s.trial for s in attempts.closed(keep)] == [0, 2]


def test_what_a_dead_driver_left_open_is_closed_once(tmp_path: Path) -> None:
    keep = Store(tmp_path)
    attempts.append(keep, [span(trial=1)])
    held = [span(trial=1, state="running"), span(trial=2, state="running", seconds=5.0)]
    held.append(span(trial=None, state=IDLE, seconds=1.0, workers=2))
    store.write_json(keep.path("progress.json"), {"held": [s.__dict__ for s in held]})
    assert [(s.trial, s.state) for s in attempts.spans(keep)] == [(1, "complete"), (2, "running"), (None, IDLE)]
    for _ in range(2):
        attempts.settle(keep)
        found = [(s.trial, s.state, s.seconds) for s in attempts.closed(keep)]
        assert found == [(1, "complete", 2.0), (2, "interrupted", 5.0), (None, IDLE, 1.0)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store, str, dict[str, Any]]:
    """A sweep of the tiny study that a limit ended and a raised limit let finish; what it said, and its status then."""
    folder = tmp_path_factory.mktemp("swept")
    path = folder / "tiny.toml"
    path.write_text(TINY.replace(HERE, f"[budget]\nmax_flops = 2e11\n{HERE}"))
    asked, keep = sweep.opened(path, folder / "out")
    with pytest.raises(Stopped) as e:
        sweep.sweep(asked, keep)
    then = sweep.status(asked, keep)
    path.write_text(TINY.replace(HERE, f"[budget]\nmax_flops = 2e12\n{HERE}"))
    asked, keep = sweep.opened(path, folder / "out")
    sweep.sweep(asked, keep)
    return asked, keep, str(e.value), then


@pytest.fixture
def swept(stopped: tuple[Study, Store, str, dict[str, Any]]) -> tuple[Study, Store]:
    return stopped[:2]


def copy_of(keep: Store, to: Path) -> Store:
    shutil.copytree(keep.root, to)
    return Store(to)


def test_the_bill_of_a_sweep(swept: tuple[Study, Store], tmp_path: Path) -> None:
    asked, keep = swept
    found, spans = sweep.status(asked, keep), attempts.closed(keep)
    assert {type(c) for c in money_in({k: found[k] for k in ("held", "cost")})} == {Decimal}
    assert found["cost"] == total(row["cost"] for row in found["held"].values())
    assert found["seconds"] == pytest.approx(sum(s.seconds for s in spans))
    assert found["held"]["complete"]["spans"] == found["trials"]["complete"]
    assert sum(s.trained for s in spans) == pytest.approx(found["training_seconds"])
    assert all(s.trained <= s.seconds for s in spans)
    before = copy_of(keep, tmp_path / "older")  # measured by 0.3, which kept no attempts
    before.path("attempts.jsonl").unlink()
    older = sweep.status(asked, before)
    assert list(older["held"]) == ["earlier"]
    assert older["seconds"] == pytest.approx(found["training_seconds"])


def test_what_is_left_is_told_shape_by_shape(swept: tuple[Study, Store], tmp_path: Path) -> None:
    """The small shape's trials are asked again: the ETA is theirs, at their own pace."""
    asked, keep = swept[0], copy_of(swept[1], tmp_path / "cut")
    for record in keep.records():
        if record.stage == "ladder" and record.run.trunk.shape.width == 32:
            keep.path("records", f"{record.fingerprint_of}.json").unlink()
    rows, spans = keep.readings(), attempts.closed(keep)
    own = rows[rows.width == 32]
    pace = (own.flops / own.D * own.tokens_trained).sum() / own.seconds.sum()
    shape = next(s for s in plan.plan(asked)["stages"][1]["shapes"] if s["width"] == 32)
    each = shape["trained_flops"] / shape["trials"] / pace
    whole = [s.seconds - s.trained for s in spans if s.state == "complete"]
    found = sweep.status(asked, keep)
    trials = found["trials"]["planned"] - found["trials"]["complete"]
    assert trials == 3
    assert found["eta_seconds"] == pytest.approx(trials * (each + sum(whole) / len(whole)))


# limits


def record(flops: float, size: float, seconds: float) -> Any:
    """As much of a record as an account reads."""
    return SimpleNamespace(flops=flops, D=flops / size, tokens_trained=flops / size, seconds=seconds)


@cache
def unlimited() -> Study:
    """The tiny study on a device of 1 FLOP/s at 3600 an hour."""
    return study.parse(TINY.replace(HERE, f"[price]\nflops_per_second = 1\nper_hour = 3600\n{HERE}"), "tiny.toml")


def limited(folder: Path, **budget: Any) -> Account:
    """An account of a study without a past."""
    return Account(unlimited().model_copy(update={"budget": study.Limit(**budget)}), Store(folder))


def swept_by(now: list[float], account: Account, trials: list[float], workers: int) -> tuple[int, str]:
    """A sweep whose device does what the price says; how many trials were handed out, and what stopped it."""
    live, ends, handed = Live("calibrate"), dict[int, float](), 0
    try:
        with account.session(account.asked.stage[0], live):
            while True:
                while handed < len(trials) and len(ends) < workers and account.allow(trials[handed], 1.0):
                    row = {"tokens": 0.0, "of": trials[handed], "flops_per_token": 1.0, "unmeasured": trials[handed]}
                    live.running[handed] = row
                    account.handed([handed])
                    ends[handed] = now[0] + trials[handed]
                    handed += 1
                if not ends:
                    return handed, ""
                number = min(ends, key=lambda n: ends[n])
                now[0] = ends.pop(number)
                for n, end in ends.items():
                    live.running[n]["tokens"] = trials[n] - (end - now[0])
                account.measured(number, record(trials[number], 1.0, trials[number]))
                live.running.pop(number)
                account.over(number, "complete")
    except Stopped as e:
        return handed, str(e)


@pytest.mark.parametrize("name", ["max_hours", "max_cost", "max_flops"])
@settings(max_examples=30, deadline=None)
@given(trials=st.lists(st.floats(1, 100), min_size=1, max_size=25), workers=st.integers(1, 4), limit=st.floats(10, 600))
def test_no_limit_is_passed(
    tmp_path_factory: pytest.TempPathFactory, name: str, trials: list[float], workers: int, limit: float
) -> None:
    """Whatever the trials' order: idle workers count, the limit holds, and it is no further away than the next one."""
    now, most = [0.0], {"max_hours": limit / 3600, "max_cost": Decimal(str(limit)), "max_flops": limit}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now[0]))
        account = limited(tmp_path_factory.mktemp("limited"), **{name: most[name]})
        handed, said = swept_by(now, account, trials, workers)
    taken = account.flops if name == "max_flops" else account.seconds
    assert taken <= limit * (1 + 1e-9)
    assert (handed < len(trials)) == bool(said)
    if said:
        assert said.startswith(f"budget.{name} = ")
        assert "raise it in the study file" in said
        assert taken + (1 if name == "max_flops" else workers) * trials[handed] > limit * (1 - 1e-9)


def test_what_was_taken_counts_over_restarts(tmp_path: Path, clock: list[float]) -> None:
    """Two sweeps of one folder take what one may: the second finds the first one's spans on disk."""
    first = limited(tmp_path, max_hours=100 / 3600)
    assert swept_by(clock, first, [30.0, 30.0], 1) == (2, "")
    second = Account(first.asked, first.keep)
    assert second.seconds == first.seconds == 60
    handed, said = swept_by(clock, second, [30.0, 30.0], 1)
    assert handed == 1
    assert "0.025 taken, 0.03333 with it" in said


def test_two_workers_take_turns_where_both_at_once_would_idle_past_the_limit(
    tmp_path: Path, clock: list[float]
) -> None:
    account = limited(tmp_path, max_hours=10 / 3600)
    assert swept_by(clock, account, [6.0, 1.0, 1.0, 1.0, 1.0], 2) == (5, "")
    assert account.seconds == 10


def test_who_trains_longer_than_foreseen_is_asked_to_save_and_stop(tmp_path: Path, clock: list[float]) -> None:
    told: list[tuple[str, int]] = []
    account = limited(tmp_path, max_hours=100 / 3600)
    account.tell = lambda event, **what: told.append((event, what["percent"]))

    def run() -> None:
        with account.session(account.asked.stage[0], Live("calibrate")):
            account.handed([0])
            for passed, goes_on, heard in ((79, 1, []), (1, 1, [80]), (20, 1, [80, 100]), (1.1, 0, [80, 100])):
                clock[0] += passed
                assert account.within() == bool(goes_on)
                assert told == [("budget", percent) for percent in heard]
            raise Stopped("interrupted")

    with pytest.raises(Stopped, match=r"budget.max_hours = 0.02778 \(device hours\) is reached: 0.02808 taken; raise"):
        run()
    assert [(s.trial, s.state) for s in attempts.closed(account.keep)] == [(0, "interrupted"), (None, IDLE)]


def test_failures_are_told_once_above_the_stated_part(tmp_path: Path, clock: list[float]) -> None:
    told: list[dict[str, Any]] = []
    account = limited(tmp_path)
    account.asked = account.asked.model_copy(update={"notify": study.Notify(url_env="HOOK", failed_share=0.4)})
    account.tell = lambda event, **what: told.append({"event": event, **what})
    with account.session(account.asked.stage[0], Live("calibrate")):
        for number, state in enumerate(["failed", "failed", "complete", "diverged", "complete", "failed", "failed"]):
            account.handed([number])
            account.over(number, state)
    assert told == [{"event": "failed", "failed": 3, "ended": 6}]  # 2 of 5 are no more than the part


def test_a_limit_stops_a_sweep_with_a_line_and_a_raised_one_lets_it_finish(
    stopped: tuple[Study, Store, str, dict[str, Any]],
) -> None:
    asked, keep, said, then = stopped
    assert re.fullmatch(
        r"budget.max_flops = 2e\+11 \(FLOPs\) leaves no room for the next trial: \S+ taken, \S+ with it; "
        r"raise it in the study file, and the same command goes on",
        said,
    )
    assert then["state"] == "stopped"
    assert 0 < then["flops"] <= 2e11
    found, spans = sweep.status(asked, keep), attempts.closed(keep)
    assert found["state"] == "complete"
    assert found["limits"][0]["taken"] == found["flops"] > 2e11
    assert len({(s.stage, s.trial) for s in spans if s.trial is not None}) == found["trials"]["complete"]


@pytest.mark.slow
def test_a_killed_driver_s_time_is_not_forgotten(study_file: Write, tmp_path: Path) -> None:
    """SIGKILL, twice; what it held until a second before is on the bill, and the sweep ends as planned."""
    path, out = study_file(("trials = 4", "trials = 60")), tmp_path / "out"
    call = [sys.executable, "-m", "tunnel.cli", "sweep", str(path), "--out", str(out)]
    for count in (5, 15):
        driver = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while len(list(out.glob("records/*.json"))) < count:
            assert time.monotonic() < end
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
        driver.wait()
    keep = Store(out)
    killed = attempts.spans(keep)
    assert len({s.session for s in killed}) == 2
    assert sum(s.seconds for s in killed) > 0.5 * sum(r.seconds for r in keep.records())
    found = sweep.sweep(*sweep.frozen(out))
    assert found["state"] == "complete"
    assert [(s.session, s.trial, s.seconds) for s in attempts.closed(keep)][: len(killed)] == [
        (s.session, s.trial, s.seconds) for s in killed
    ]


# the webhook


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is sent; answers with `status`, after `delay` seconds."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))
        self.server.released.wait(self.server.delay)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), Hook)
    server.heard, server.status, server.delay, server.released = [], 200, 0.0, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def asked(study_file: Write) -> Study:
    return study.load(study_file((HERE, f'[notify]\nurl_env = "HOOK"\nsecret_env = "KEY"\n{HERE}')))


def told(asked: Study, folder: Path, *events: str) -> float:
    """Tells a study's webhook of some events; the seconds that this took."""
    began = time.monotonic()
    with notify.telling(asked, Store(folder)) as tell:
        for _ in events:
            tell("failed", failed=1, ended=2, cost=Decimal("0.10"))
    return time.monotonic() - began


def test_what_is_sent_is_signed(
    asked: Study, hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}/in?x=1")
    monkeypatch.setenv("KEY", "hush")
    told(asked, tmp_path, "failed")
    assert [json.loads(body)["event"] for _, body in hook.heard] == ["failed", "finished"]
    headers, body = hook.heard[0]
    mac = hmac.new(b"hush", headers["Tunnel-Timestamp"].encode() + b"." + body, hashlib.sha256)
    assert headers["Tunnel-Signature"] == f"sha256={mac.hexdigest()}"
    assert abs(int(headers["Tunnel-Timestamp"]) - time.time()) < 60
    said = json.loads(body)
    assert (said["study"], said["text"]) == (tmp_path.name, f"{tmp_path.name}: 1 of 2 trials failed")
    assert (said["cost"], said["host"]) == ("0.10", socket.gethostname())
    assert not caplog.records


@pytest.mark.parametrize("status", [302, 500])
def test_another_answer_is_a_warning_and_no_redirect_is_followed(
    asked: Study, hook: Any, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}/secret-path")
    monkeypatch.setenv("KEY", "hush")
    hook.status = status
    told(asked, tmp_path)
    assert len(hook.heard) == 1
    assert [r.getMessage() for r in caplog.records] == [f"the webhook answered {status} to finished"]


@pytest.mark.parametrize("events", [1, 200])  # 200: more than may wait
def test_one_that_hangs_holds_up_nobody(
    asked: Study, hook: Any, events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}/")
    monkeypatch.setenv("KEY", "hush")
    monkeypatch.setattr(notify, "LAST_SECONDS", 0.2)
    hook.delay = 30
    assert told(asked, tmp_path, *["failed"] * events) < 0.8 * notify.TIMEOUT


@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        ({}, "the environment's HOOK holds no http"),
        ({"HOOK": "file:///etc/passwd", "KEY": "hush"}, "the environment's HOOK holds no http"),
        ({"HOOK": "http://127.0.0.1:1/secret-path"}, "the environment has no KEY to sign with"),
        ({"HOOK": "http://127.0.0.1:1/secret-path", "KEY": "hush"}, "finished is not told: ConnectionRefusedError"),
        ({"HOOK": "http://[::1/secret-path", "KEY": "hush"}, "finished is not told: ValueError"),
        ({"HOOK": "http://nobody.invalid/secret-path", "KEY": "hush"}, "finished is not told: gaierror"),
    ],
)
def test_nobody_there_fails_no_sweep(
    asked: Study,
    environment: dict[str, str],
    warning: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("HOOK", "KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told(asked, tmp_path)
    assert warning in caplog.text
    assert "secret-path" not in caplog.text


def test_a_sweep_tells_of_its_budget_and_its_end(
    study_file: Write, hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trials against a real server: near the limit, at it, and how it ended."""
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{hook.server_port}/")
    limits = '[budget]\nmax_flops = 3e10\n[notify]\nurl_env = "HOOK"'
    with pytest.raises(Stopped):
        sweep.sweep(*sweep.opened(study_file((HERE, f"{limits}\n{HERE}")), tmp_path / "out"))
    said = [json.loads(body) for _, body in hook.heard]
    assert said[-1]["event"] == "stopped"
    assert said[-1]["reason"].startswith("budget.max_flops = 3e+10")
    assert "Tunnel-Signature" not in hook.heard[-1][0]
    assert {s["name"] for s in said[:-1]} <= {"max_flops"}
