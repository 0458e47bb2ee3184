"""Runs & cost: what was trained, what it cost, which attempts it took and where, and who did what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import address, cost_figures, ledger, load, show
from dashboard.figures import shape_name
from dashboard.ledger import Deeds, Ledger
from dashboard.style import clock, duration, money, share
from tunnel.sweeps.attempts import IDLE

TRIALS, MODELS = "trial", "finished model"
SHOWN = {  # a download has all columns
    TRIALS: "stage trial state shape lr seed D loss device_seconds cost attempts host retry_of readings tokens flops "
    "started",
    MODELS: "stage trial status shape lr seed N D loss seconds tokens_trained batch_tokens host started fingerprint",
}
EXPLAINED = {
    TRIALS: "a trial is one candidate at one seed, its loss that of its last rung; what it shares with another is "
    "counted there",
    MODELS: "each is a reading, the full-size run's included; tokens and time are what it added to its trunk's",
}
SESSION = ["ended", "stage", "attempts", "lost", "workers", "busy", "device_seconds", "session"]
DOWNLOADS = {"CSV": (ledger.csv, "text/csv"), "Parquet": (ledger.parquet, "application/vnd.apache.parquet")}


def numbers(**labels: str) -> dict[str, Any]:
    return {k: st.column_config.NumberColumn(label, format="localized") for k, label in labels.items()}


def dates(**labels: str) -> dict[str, Any]:
    return {k: st.column_config.DatetimeColumn(f"{v} (UTC)", format="YYYY-MM-DD HH:mm:ss") for k, v in labels.items()}


COLUMNS = {
    **numbers(D="D (tokens)", tokens="trained (tokens)", tokens_trained="trained (tokens)", N="N (parameters)"),
    **numbers(batch_tokens="batch (tokens)", lost="failed or cut off", retry_of="retry of"),
    **dates(started="started", ended="ended", first="first started", last="last started", when="when"),
    "lr": show.significant("lr", 3),
    "loss": show.decimal("loss (nats/token)"),
    "flops": st.column_config.NumberColumn("FLOPs", format="%.2e"),
    "pace": st.column_config.NumberColumn("FLOP/s", format="%.2e"),
    "seconds": show.decimal("training (s)", 1),
    "status": "state",
    "busy": show.bar("workers busy"),
}


def cards(status: dict[str, Any], book: Ledger, seen: load.Opened) -> None:
    of, currency = status["of_target"], status["currency"]
    tried = book.attempts[book.attempts.state != IDLE]
    price = seen.asked.price if seen.asked else None
    at = f"At {money(price.cost(3600), currency)} per hour of one {show.plain(price.device)}." if price else None
    names = sorted(set(seen.readings.host.astype(str)))
    planned = f"{status['flops']:.3g} FLOPs of {status['flops_planned']:.3g} planned; a shared trunk counts once."
    spent = [("FLOPs", f"{status['flops']:.3g}", planned)]
    if of:
        spent = [
            ("Of the target's cost", share(of["cost"]), "The sweeps' money over the full-size run's, as planned."),
            ("Of the target's FLOPs", share(of["flops"]), planned),
        ]
    states = book.trials.state.value_counts().items() if len(book.trials) else ()
    show.cards(
        [
            ("Device time", duration(status["seconds"]), "All that the sweeps held, idle and failed time included."),
            ("Cost", money(status["cost"], currency), at),
            *spent,
            ("Trials", f"{len(book.trials):,}", ", ".join(f"{n:,} {s}" for s, n in states) or None),
            ("Attempts", f"{len(tried):,}" if len(tried) else "–", "What failed, or was cut off, takes several."),
            ("Finished models", f"{len(seen.complete):,}", "Readings: every decay forked off a trunk ends in one."),
            ("Hosts", str(len(names)), show.plain(", ".join(names[:8])) or None),
        ]
    )


def cost(status: dict[str, Any] | None, book: Ledger) -> None:
    """What became of the device time, and how much of the study's limits is taken."""
    if status is None or not book.held.seconds.sum() > 0:
        show.nothing("No device time is counted yet", "It is, from the first trial's start.")
        return
    show.figure(cost_figures.held(book.held, status["currency"]), "held")
    if not status["limits"]:
        st.caption("This study sets itself no limit; `max_hours`, `max_cost` and `max_flops` in its `[budget]` do.")
        return
    rows = pd.DataFrame(
        [
            {"limit": f"budget.{r['name']}", "taken": float(r["share"])}
            | {"so far": float(r["taken"]), "at most": float(r["limit"]), "unit": r["unit"]}
            for r in status["limits"]
        ]
    )
    sums = {k: show.significant(k) for k in ("so far", "at most")}
    st.dataframe(rows, hide_index=True, column_config={"taken": show.bar("taken"), **sums}, alt="Limits")
    st.caption("How to read this: the sweep hands out no trial that would pass a limit, restarts included.")


# what was trained


@st.fragment
def trained(seen: load.Opened, book: Ledger) -> None:
    """The table of trials, or of finished models, with its filters and downloads."""
    kinds = {TRIALS: book.trials, MODELS: seen.readings}
    there = [k for k, table in kinds.items() if len(table)]
    kind = st.segmented_control("One row a", there, default=there[0], required=True, key="row", bind="query-params")
    kind = kind if kind in there else there[0]
    table = chosen(kinds[kind])
    money_of = {"cost": show.significant(f"cost ({seen.asked.price.currency})" if seen.asked else "cost", 3)}
    listed(shown(table, kind), f"{len(table):,} {kind}s", {**money_of, "trial": show.trials("row trial")})
    clicks = "a click on a trial's name opens its page, one on a column's name sorts by it"
    said = f"{len(table):,} of {len(kinds[kind]):,}; {clicks}"
    if kind == TRIALS:
        said += f"; together they held a device for {duration(table.device_seconds.sum())}"
    st.caption(f"How to read this: {EXPLAINED[kind]}. {said.capitalize()}.")
    with st.container(horizontal=True):
        for form, (packed, mime) in DOWNLOADS.items():
            name = f"{seen.root.name}-{kind.replace(' ', '-')}s.{form.lower()}"
            data = partial(packed, table)
            st.download_button(f"These rows as {form}", data, name, mime, icon=":material/download:", on_click="ignore")


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that the reader wants; the address keeps the choice, so that a filtered table can be linked to."""
    keep = pd.Series(True, index=table.index)
    for place, name in zip(st.columns(3), ("stage", "state", "host"), strict=True):
        values = table[name if name in table else "status"].fillna("").astype(str).str.split(ledger.AND)
        options = sorted({v for each in values for v in each if v})
        wanted = place.multiselect(name.capitalize(), options, key=name, placeholder="all", bind="query-params")
        if wanted:
            keep &= values.map(lambda each, wanted=frozenset(wanted): not wanted.isdisjoint(each))
    return table[keep]


def shown(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """What is shown of a table: names of shapes and trials, and times that a column can sort by."""
    sizes = zip(table.width, table.depth, strict=True)
    shapes = [shape_name(w, d) if pd.notna(w) and pd.notna(d) else "" for w, d in sizes]
    names = [address.trial_of(s, n) for s, n in zip(table.stage, table.trial, strict=True)]
    own = table.assign(shape=shapes, started=times(table.started), trial=names)
    return own.reindex(columns=SHOWN[kind].split()).dropna(axis="columns", how="all")


def listed(table: pd.DataFrame, about: str, more: Mapping[str, Any] | None = None) -> None:
    """A table with names, units and formats; device time in a unit that suits the longest."""
    unit, held = "s", {}
    if "device_seconds" in table and len(table):
        unit, size = clock(float(table.device_seconds.max()))
        held = {"device_seconds": table.device_seconds / size}
    columns = {**COLUMNS, "device_seconds": show.decimal(f"device time ({unit})", 2), **(more or {})}
    st.dataframe(table.assign(**held), hide_index=True, placeholder="–", column_config=columns, lazy=True, alt=about)


def times(texts: pd.Series) -> pd.Series:
    """UTC times as such; none where a file holds something else."""
    return pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")


# attempts and hosts


def tried(seen: load.Opened, book: Ledger) -> None:
    ended = book.attempts[(book.attempts.state != IDLE) & (times(book.attempts.when).notna())]
    if len(ended):
        trials = len(ended.drop_duplicates(["stage", "trial"]))
        show.figure(cost_figures.attempts(ended, trials), "attempts")
        rows = ledger.sessions(book.attempts)
        listed(rows.assign(ended=times(rows.ended))[SESSION], "Sessions, the newest first")
        st.caption(
            "How to read this: a session is one stage in one driver's life, the newest first; a sweep that was stopped "
            "and went on has several. Workers are busy while they have a trial."
        )
    else:
        show.nothing("No attempt has ended yet", "This folder holds none: its trials run, or are older than the count.")
    rows = ledger.hosts(seen.readings)
    if len(rows):
        listed(rows.assign(first=times(rows["first"]), last=times(rows["last"])), "Hosts")
        st.caption("How to read this: FLOP/s are full count, and of training alone; small shapes reach less.")


# who did what


def who(found: Deeds) -> None:
    whole(found)
    if found.lines:
        rows = [
            {
                "when": e.get("when"),
                "who": f"{e.get('user')}@{e.get('host')}",
                "did": e.get("what"),
                "code": f"{e.get('tunnel')} {e.get('git') or ''}".strip(),
                "about": about(e.get("about")),
            }
            for e in reversed(found.lines)
        ]
        table = pd.DataFrame(rows)
        listed(table.assign(when=times(table.when)), "Who did what, the newest first")
        st.caption(
            "How to read this: the newest first; code is the tunnel's version and commit, + where it was changed."
        )
    if found.promotions:
        champion(found)
    if len(found.environments):
        n = len(found.environments)
        with st.expander(f"In what it was measured: {n} environment{'s' * (n > 1)}"):
            st.dataframe(found.environments, hide_index=True, placeholder="–", alt="Environments")
            st.caption("How to read this: each record names the hash of its environment.")


def whole(found: Deeds) -> None:
    """Whether the chain is, in a plain sentence."""
    told = found.verified
    if found.problem:
        st.warning(show.plain(found.problem), icon=":material/warning:")
    if told is None:
        return
    if not told["fits"]:
        bad = told["misfit"]
        text = (
            f"The chain is broken at line {bad['line']} of {bad['file']}: {bad['why']}. What is shown stands before it."
        )
        st.error(show.plain(text), icon=":material/link_off:")
    elif told["tip"] is None:
        show.nothing("Nobody's deeds are noted yet", "The first command that writes into this folder notes itself.")
    else:
        counts = f"all {told['lines']['audit']} lines of the audit and {told['lines']['forecasts']} of the forecasts"
        text = f"The chain is whole: {counts} are as they were written. Its last hash is {told['tip'][:16]}"
        more = "; who keeps it elsewhere would notice if the end were cut off."
        st.success(show.plain(text + more), icon=":material/verified:")


def champion(found: Deeds) -> None:
    """The promotions of the champions' file beside the study."""
    rows = [
        {
            "": "champion" if e["number"] == found.champion else "",
            "promotion": e["number"],
            **{k: e.get(k) for k in ("target", "folder", "when", "user", "forced")},
        }
        for e in reversed(found.promotions)
    ]
    table = pd.DataFrame(rows)
    st.markdown("**Champions** of the studies here")
    listed(table.assign(when=times(table.when)), "Promotions")


def about(known: Any) -> str:
    """A line's particulars as text."""
    if not isinstance(known, dict):
        return ""
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in known.items() if v is not None)


def page(seen: load.Opened) -> None:
    book, status = ledger.read(seen), load.status(seen.root)
    if status is not None:
        cards(status, book, seen)
    st.subheader("What it cost")
    cost(status, book)
    st.subheader("What was trained")
    if len(book.trials) or len(seen.readings):
        trained(seen, book)
    else:
        show.nothing("No trial was asked for yet", "A row appears with each one.")
    st.subheader("Attempts and hosts")
    tried(seen, book)
    st.subheader("Who did what")
    who(ledger.deeds(seen.root))


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
