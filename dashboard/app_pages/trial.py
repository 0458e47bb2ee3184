"""One trial: what it was asked, what became of it, its curves and readings, and what it took. A click leads here."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import address, curve_figures, ledger, live, load, show
from dashboard.app_pages import curves
from dashboard.app_pages.costs import listed, times
from dashboard.figures import shape_name
from dashboard.style import duration, money, nats, short
from tunnel.sweeps.attempts import IDLE

READINGS = [
    "D",
    "loss",
    "status",
    "decay",
    "decay_shape",
    "bpb",
    "N",
    "flops",
    "tokens_trained",
    "seconds",
    "host",
    "started",
    "fingerprint",
]
SETTINGS = ["lr", "warmup", "decay", "batch_tokens", "weight_decay", "beta2", "seed", "width", "depth", "rules"]


def asked(seen: load.Opened, stage: str, number: int) -> dict[str, Any] | None:
    """A trial as it was asked; None where the folder does not know it."""
    return ledger.asks(seen.root, stage).get(number)


def measured(seen: load.Opened, stage: str, number: int, ask: dict[str, Any] | None) -> pd.DataFrame:
    """Its readings, those that it shares with another trial included, shortest first."""
    r = seen.readings
    mine = (r.stage == stage) & (r.trial == number)
    return r[mine | r.fingerprint.isin(ask["runs"] if ask else [])].sort_values("D")


def cards(seen: load.Opened, rows: pd.DataFrame, ask: dict[str, Any] | None, row: dict[str, Any]) -> None:
    done = rows[rows.loss.notna()]
    first = rows.iloc[0] if len(rows) else None
    own = ask["params"] if ask else {}
    known = {k: first[k] if first is not None else own.get(k) for k in ("width", "depth", "lr")}
    shape = shape_name(known["width"], known["depth"]) if known["width"] and known["depth"] else "–"
    loss = ask["value"] if ask and ask["value"] is not None else done.loss.min() if len(done) else None
    price, attempts = seen.asked.price if seen.asked else None, row.get("attempts")
    show.cards(
        [
            ("State", ask["state"] if ask else first.status if first is not None else "unknown", None),
            (
                "Loss (nats/token)",
                nats(loss) if loss is not None else "–",
                "Of its last rung; the sampler was told it.",
            ),
            ("Shape", shape, "Width × depth."),
            ("Peak lr", f"{known['lr']:.4g}" if known["lr"] else "–", "At the base shape, as it was asked."),
            ("Readings", str(len(rows)), "Finished models: the forks off its trunk."),
            ("Trained", f"{short(row['tokens'])} tokens" if row else "–", "What it shares with another counts there."),
            ("Device time", duration(row["device_seconds"]) if row else "–", "All its attempts."),
            ("Cost", money(row["cost"], price.currency) if row and price else "–", None),
            ("Attempts", f"{attempts:.0f}" if row and pd.notna(attempts) else "–", "What failed takes several."),
            ("Seed", f"{ask['seed']}" if ask else f"{first.seed}" if first is not None else "–", None),
        ]
    )


def tree(seen: load.Opened, rows: pd.DataFrame, name: str) -> None:
    """Its trunk with the forks off it."""
    grown = curves.grown(seen, rows, {})
    if grown.curve is None and not grown.forks:
        show.nothing("Its curves were not kept", "Its readings are below.")
        return
    joins = [float(t.at) for t in seen.asked.data.then if t.at < rows.D.max()] if seen.asked else []
    show.figure(curve_figures.tree(rows, grown.curve, grown.forks, joins), f"trial {name}")


def neighbours(seen: load.Opened, stage: str, number: int) -> None:
    """The way to the trials before and after it."""
    numbers = sorted(ledger.asks(seen.root, stage))
    before = [n for n in numbers if n < number]
    after = [n for n in numbers if n > number]
    with st.container(horizontal=True):
        for near, label, icon in ((before[-1:], "Before", "arrow_back"), (after[:1], "After", "arrow_forward")):
            text = f"{label}: {show.plain(stage)} {near[0]}" if near else label
            if st.button(text, disabled=not near, icon=f":material/{icon}:", key=label):
                address.open_trial(stage, near[0])


def page(seen: load.Opened) -> None:
    told = address.get("trial", "")
    known = address.stage_and_number(told)
    if known is None:
        show.nothing("No trial is chosen", "A click on a point, or on a trial's name in a table, leads here.")
        return
    stage, number = known
    ask = asked(seen, stage, number)
    rows = measured(seen, stage, number, ask)
    st.subheader(f"Stage {show.plain(stage)}, trial {number}")
    if ask is None and not len(rows):
        show.nothing(f"This study has no trial {show.plain(told)}", "It may be another study's: the sidebar has them.")
        return
    book = ledger.read(seen)
    t = book.trials
    row = next(iter(t[(t.stage == stage) & (t.trial == number)].to_dict("records")), {}) if len(t) else {}
    cards(seen, rows, ask, {str(k): v for k, v in row.items()})
    neighbours(seen, stage, number)
    if len(rows):
        for why in live.diverged(rows).itertuples() if (rows.status == "diverged").any() else ():
            st.warning(f"Diverged: {show.plain(str(why.why))}.", icon=":material/trending_up:")
        tree(seen, rows, told)
        st.subheader("Its readings")
        listed(rows.reindex(columns=READINGS).assign(started=times(rows.started)), "Its readings")
        st.subheader("Its settings")
        first = rows.iloc[0]
        values = {k: first[k] for k in SETTINGS if k in rows} | (ask["params"] if ask else {})
    else:
        show.nothing("It has no reading yet", "Its first fork's end brings one; the page Live shows what runs.")
        values = ask["params"] if ask else {}
    texts = [(k, f"{v:,.4g}" if isinstance(v, float) else str(v)) for k, v in values.items()]
    st.dataframe(
        pd.DataFrame(texts, columns=["setting", "value"]), hide_index=True, width="content", alt="Its settings"
    )
    tried = book.attempts
    tried = tried[(tried.stage == stage) & (tried.trial == number) & (tried.state != IDLE)]
    if len(tried):
        st.subheader("Its attempts")
        table = tried.assign(ended=times(tried.when), device_seconds=tried.seconds)
        listed(table[["ended", "state", "device_seconds", "session"]], "Its attempts")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
