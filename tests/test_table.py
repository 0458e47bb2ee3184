"""The runs table: what is refused and how, and the report of `tunnel fit`."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tunnel import laws, table
from tunnel.errors import UserError

DATA = Path(os.environ.get("TUNNEL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def truth(n, d):
    return 1.8 + 400 / n**0.34 + 900 / d**0.29


GRID = [(n, d, truth(n, d)) for n in (1e6, 3e6, 1e7, 3e7, 1e8) for d in (1e8, 3e8, 1e9, 3e9)]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame(GRID, columns=["N", "D", "loss"]).to_csv(path, index=False)
    return path


@pytest.fixture
def targets(tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text("name,N,D\nbig,1000000000,30000000000\nbigger,7000000000,140000000000\n")
    return path


BAD = {
    "empty": ("", "is empty"),
    "only a header": ("N,D,loss\n", "no rows"),
    "no loss": ("N,D\n1,2\n", "loss: no such column"),
    "no N": ("D,loss\n1,2\n", "N: no such column"),
    "text in loss": ("N,D,loss\n1e6,1e8,3\n1e6,1e8,high\n", "loss, row 2: must be a number; got 'high'"),
    "negative": ("N,D,loss\n-1,1e8,3\n", "N, row 1: must be above 0; got -1"),
    "zero": ("N,D,loss\n1,0,3\n", "D, row 1: must be above 0"),
    "infinite": ("N,D,loss\n1,1e8,inf\n", "loss, row 1: must be finite"),
    "beyond doubles": ("N,D,loss\n1,1e400,3\n", "D, row 1: must be finite"),
    "product beyond doubles": ("N,D,loss\n1e200,1e200,3\n", "C: N·D is too large"),
    "NaN": ("N,D,loss\n1,1e8,nan\n", "loss, row 1: must not be missing"),
    "blank": ("N,D,loss\n1,1e8,\n", "loss, row 1: must not be missing"),
    "negative weight": ("N,D,loss,weight\n1,1e8,3,-1\n", "weight, row 1: must not be negative"),
    "ragged": ("N,D,loss\n1,2,3\n1,2,3,4\n", "cannot be read as a table"),
    "twice": ("N,D,loss,n\n1,2,3,4\n", ""),
}


@pytest.mark.fault(17)
@pytest.mark.parametrize("case", BAD)
def test_bad_table_is_refused_in_one_line(tmp_path, case):
    text, message = BAD[case]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    if not message:
        assert len(table.read(path)) == 1  # another column in another case is none of ours
        return
    with pytest.raises(UserError) as error:
        table.fit_report(path)
    line = str(error.value)
    assert message in line
    assert str(path) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"N,D,loss\n1,2,\xff\xfe\xfa\n", "UTF-8"), (b"\x00\x01\x02", "no such column")],
)
def test_bytes_that_are_no_table(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        table.read(path)


@pytest.mark.parametrize("name", ["bad.parquet", "missing.csv", "."])
def test_file_that_cannot_be_read(tmp_path, name):
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(UserError):
        table.read(tmp_path / name)


@pytest.mark.fault(17)
def test_file_over_a_gigabyte_is_not_opened(tmp_path):
    path = tmp_path / "big.csv"
    with open(path, "wb") as file:
        file.truncate(2**30 + 1)  # sparse: takes no disk
    with pytest.raises(UserError, match="1 GB"):
        table.read(path)


def test_renames_drops_and_counts(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("n,t,loss,bad\n1e6,1e8,3.5,0\n1e6,1e8,oops,1\n1e7,1e8,3.1,\n")
    frame = table.read(path, columns={"N": "n", "D": "t"}, drop=["bad"])
    assert frame.attrs["dropped"] == 1
    assert frame["loss"].tolist() == [3.5, 3.1]
    assert frame["C"].tolist() == [6e14, 6e15]
    with pytest.raises(UserError, match="choices: n, t, loss, bad"):
        table.read(path, columns={"N": "m"})
    with pytest.raises(UserError, match="--drop worse"):
        table.read(path, drop=["worse"])


def test_renaming_says_which_of_two_columns_is_meant(tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("N,n_active,D,loss,C\n9,1e6,1e8,3,\n9,2e6,1e8,2.9,5e15\n")
    frame = table.read(path, columns={"N": "n_active"})
    assert frame["N"].tolist() == [1e6, 2e6]
    assert frame["C"].tolist() == [6e14, 5e15]  # 6ND where there is none


@pytest.mark.fault(17)
def test_integers_whose_product_overflows_int64(tmp_path):
    path = tmp_path / "large.csv"
    path.write_text("N,D,loss\n70000000000,1400000000000,1.9\n" + "9" * 30 + ",1,2\n")
    frame = table.read(path)
    assert frame["C"].tolist() == pytest.approx([5.88e23, 6e30])


def test_csv_and_parquet_are_the_same_table(runs, tmp_path):
    frame = table.read(runs)
    frame.to_parquet(tmp_path / "runs.parquet")
    assert table.read(tmp_path / "runs.parquet").equals(frame)


def test_report_of_a_law(runs):
    report = table.fit_report(runs, law="chinchilla", delta=1e-3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    keys = {
        "law",
        "params",
        "objective",
        "delta",
        "status",
        "n",
        "dropped",
        "intervals",
        "backtest",
        "rejected",
    }
    assert keys <= set(report)
    assert report["params"] == pytest.approx({"E": 1.8, "A": 400, "B": 900, "alpha": 0.34, "beta": 0.29}, rel=1e-4)
    assert (report["law"], report["status"], report["n"]) == ("chinchilla", "converged", 20)
    for name, (low, high) in report["intervals"].items():
        assert low <= report["params"][name] <= high
    assert {row["axis"] for row in report["backtest"]} == {"N", "D", "C"}


def test_predictions_keep_the_targets_rows_order_and_columns(runs, targets, tmp_path):
    report = table.fit_report(runs, predict=targets, out=tmp_path / "p.csv")
    rows = read_csv(tmp_path / "p.csv")
    assert [list(row) for row in rows] == [["name", "N", "D", "predicted", "low", "high"]] * 2
    assert [row["name"] for row in rows] == ["big", "bigger"]
    assert [row["N"] for row in rows] == ["1000000000", "7000000000"]
    for row, n, d in zip(rows, (1e9, 7e9), (3e10, 1.4e11), strict=True):
        assert float(row["predicted"]) == pytest.approx(truth(n, d), rel=1e-3)
        assert float(row["low"]) <= float(row["predicted"]) <= float(row["high"])
    assert report["law"] == "chinchilla"
    assert {*report["rejected"], "chinchilla"} == {n for n in laws.names() if laws.get(n).KIND == "loss"}
    assert [row["predicted"] for row in report["predictions"]] == [float(row["predicted"]) for row in rows]


def test_size_answers_each_length_of_the_targets_by_its_own_rows(runs, tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text("N,D\n1e9,3e9\n1e9,1e8\n1e9,5e12\n")
    report = table.fit_report(runs, law="size", predict=path)
    predicted = [row["predicted"] for row in report["predictions"]]
    assert predicted[0] < predicted[1]
    assert predicted[2] is None  # nothing was read at 5e12
    assert any("sizes were read" in text for text in report["cautions"])


def test_optimum_writes_settings(tmp_path):
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log([[1e7], [1e9]]), np.log([[5e8], [5e10]]), (2, 80)))
    lr, batch = 0.003 * (n / 1e8) ** -0.3, 1e5 * (d / 1e10) ** 0.5
    x, y = rng.uniform(-1.5, 1.5, (2, 80))
    loss = truth(n, d) + 0.03 * x**2 + 0.02 * y**2
    frame = pd.DataFrame({"N": n, "D": d, "lr": lr * np.exp(x), "batch_tokens": batch * np.exp(y), "loss": loss})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "t.csv").write_text("name,N,D\na,1e9,1e11\n")
    report = table.fit_report(tmp_path / "runs.csv", law="optimum", predict=tmp_path / "t.csv", out=tmp_path / "p.csv")
    row = read_csv(tmp_path / "p.csv")[0]
    assert list(row) == [
        "name",
        "N",
        "D",
        "lr",
        "lr_low",
        "lr_high",
        "batch_tokens",
        "batch_low",
        "batch_high",
        "regret_percent",
    ]
    assert float(row["lr"]) == pytest.approx(0.003 * 10**-0.3, rel=0.15)
    assert float(row["batch_tokens"]) == pytest.approx(1e5 * 10**0.5, rel=0.15)
    assert float(row["lr_low"]) < float(row["lr"]) < float(row["lr_high"])
    assert report["law"] == "optimum"
    assert report["intervals"]["lr_N"][0] < -0.3 < report["intervals"]["lr_N"][1]
    chosen = table.fit_report(
        tmp_path / "runs.csv", law="chinchilla"
    )  # every row its own N and D: no valleys to warn of
    assert not any("valley" in text for text in chosen["cautions"])


def test_fans_fitted_whole_are_cautioned(tmp_path):
    rows = [(n, d, lr, loss * (1 + k / 50)) for n, d, loss in GRID for k, lr in enumerate((0.01, 0.02, 0.04))]
    pd.DataFrame(rows, columns=["N", "D", "lr", "loss"]).to_csv(tmp_path / "fans.csv", index=False)
    told = table.fit_report(tmp_path / "fans.csv", law="chinchilla")
    assert any("valley" in text for text in told["cautions"])


def test_table_without_lr_has_no_optimum_and_says_so(runs):
    report = table.fit_report(runs, law="optimum")
    assert report["status"] == "too few points"
    assert report["reason"] == "no column lr"
    assert set(report["params"].values()) == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": "magic"}, "choices: chinchilla"),
        ({"law": "backtest"}, "choices: chinchilla"),
        ({"delta": 0.0}, "--delta"),
        ({"delta": float("nan")}, "--delta"),
        ({"out": "p.csv"}, "--predict"),
    ],
)
def test_bad_arguments(runs, arguments, message):
    with pytest.raises(UserError, match=message):
        table.fit_report(runs, **arguments)


def test_nothing_is_written_where_something_is_wrong(runs, targets, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("N,D\n1e9,text\n")
    with pytest.raises(UserError, match="D, row 1"):
        table.fit_report(runs, predict=bad, out=tmp_path / "p.csv")
    with pytest.raises(UserError, match="no such folder"):
        table.fit_report(runs, predict=targets, out=tmp_path / "nowhere" / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_chinchillas_table_end_to_end():
    path = DATA / "chinchilla_epoch" / "chinchilla_epoch.csv"
    if not path.is_file():
        pytest.skip(f"no {path}: set TUNNEL_DATA to the folder of public tables")
    report = table.fit_report(path, law="chinchilla", delta=1e-3, drop=["excluded_by_epoch"])
    assert (report["n"], report["dropped"]) == (240, 5)
    assert report["objective"] <= 1.01828e-3
    low, high = report["intervals"]["alpha"]
    assert low < 0.3473 < high
