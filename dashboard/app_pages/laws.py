"""Laws: what the ladder's minima follow, the target's forecast, and how both move with another form or loss."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import groups, law_figures, load, show, whatif
from dashboard.style import nats, short
from dashboard.whatif import LOSSES, Told
from tunnel.answers.ladder import SCHEMA


def table(fit: dict[str, Any]) -> pd.DataFrame:
    """The forms that were tried, one a row."""
    rejected = {r.split(":", 1)[0]: r.split(":", 1)[1].strip() for r in fit["rejected"] if ":" in r}
    names = dict.fromkeys([fit["chosen"], *fit["laws"], *rejected])
    none: dict[str, Any] = {}
    return pd.DataFrame(
        [
            {
                "law": name,
                "decision": "chosen" if name == fit["chosen"] else "rejected" if name in rejected else "not chosen",
                "formula": fit["laws"].get(name, none).get("formula", "–"),
                "parameters": ", ".join(
                    f"{k} = {short(v)}"
                    for k, v in (fit["laws"].get(name, none).get("params") or {}).items()
                    if v is not None
                ),
                "status": fit["laws"].get(name, none).get("status", "–"),
                "why": rejected.get(name) or fit["laws"].get(name, none).get("reason", ""),
            }
            for name in names
        ]
    )


def page(seen: load.Opened) -> None:
    fit = seen.fit
    if fit is None and show.no_target(seen):
        return
    if fit is None and seen.asked is not None and ladder_of(seen) is None:
        show.nothing(
            "There is no law of this study's losses",
            "It has no stage of kind ladder; what its stages say of each setting is on the page Valleys & transfer.",
        )
        return
    if fit is None:
        n = len(seen.complete[seen.complete.stage == ladder]) if (ladder := ladder_of(seen)) else 0
        show.nothing(
            "No law is fitted yet",
            f"The ladder has {n} reading{'s' * (n != 1)} so far. `tunnel fit`, or `tunnel recommend`, "
            "fits it when it is done.",
        )
        return
    if load.outdated(seen, fit):
        show.old(seen, f"fits/{ladder_of(seen)}.json", "tunnel fit", older=fit.get("schema") != SCHEMA)
    one = chosen(seen, fit)
    if one is not None and one.why:
        show.nothing("This form tells no forecast", show.plain(f"{one.why}."))
    elif one is not None:
        moved(one, fit)
    drawn = one.fit if one is not None and one.fit is not None else fit
    key = f"{seen.root.name} {one.name if one else ''}"
    check = seen.check if one is None else rechecked(seen.check, drawn["forecast"])
    show.figure(law_figures.law(drawn, check), f"law {key}")
    law, loss = (one.law, one.loss) if one else (fit["chosen"], whatif.own_loss(fit))
    with show.figures():
        left = whatif.residuals(fit, law, loss)
        if left is not None and len(left.N):
            show.figure(law_figures.residuals(left, law), f"residuals {key}")
        if fit["holdouts"]:
            show.figure(law_figures.holdouts(fit), "holdouts")
        (budgets, why), read = whatif.iso_flop(fit), whatif.parabolas(groups.lawful(seen.complete, seen))
        if budgets or read:
            show.figure(law_figures.iso_flops(budgets, read, fit), "budgets")
        if not budgets:
            show.nothing("No law tells yet how a budget is best split", show.plain(f"{why[:1].upper()}{why[1:]}."))
    others = st.expander("What all other forms and losses tell", icon=":material/compare_arrows:", on_change="rerun")
    if others.open:
        with others:
            every(seen, fit)
    st.subheader("Forms that were tried")
    st.table(table(fit).map(show.plain), hide_index=True, alt="Forms that were tried")


@st.cache_data(max_entries=128, show_spinner="Fitting another form …")
def told(root: str, at: str | None, law: str, loss: str, _fit: dict[str, Any]) -> Told:
    return whatif.told(_fit, law, loss)


def every(seen: load.Opened, fit: dict[str, Any]) -> None:
    """The forecast by all forms that can tell one, under all losses."""
    names, refused = whatif.able(fit)
    known = [told(str(seen.root), fit.get("readings_hash"), n, loss, fit) for n in names for loss in LOSSES]
    if any(not t.why for t in known):
        show.figure(law_figures.alternatives(known, fit, seen.check), "alternatives")
    for name, why in refused.items():
        st.markdown(show.plain(f"{name}: {why}."))


def chosen(seen: load.Opened, fit: dict[str, Any]) -> Told | None:
    """The form and loss that the reader wants to see; None for the study's own."""
    able, _ = whatif.able(fit)
    left, right = st.columns([1, 1])
    own, own_loss = fit["chosen"], whatif.own_loss(fit)
    forms = [own, *(n for n in able if n != own)]
    form = left.segmented_control(
        "Form of the law",
        forms,
        default=own,
        required=True,
        key="form",
        bind="query-params",
        format_func=lambda n: f"{n} (chosen)" if n == own else n,
    )
    loss = right.segmented_control(
        "Loss of the fit",
        list(LOSSES),
        default=own_loss,
        required=True,
        key="fitted by",
        bind="query-params",
        format_func=lambda k: LOSSES[k],
    )
    if (form, loss) == (own, own_loss):
        return None
    if form not in forms or loss not in LOSSES:
        return None
    return told(str(seen.root), fit.get("readings_hash"), form, loss, fit)


def rechecked(check: dict[str, Any] | None, told: dict[str, Any]) -> dict[str, Any] | None:
    """The check as it would be of another forecast."""
    if check is None or check["measured"] is None:
        return check
    measured = check["measured"]
    error = 100 * (told["value"] / measured - 1)
    return {**check, "inside": told["low"] <= measured <= told["high"], "error_percent": error}


def moved(one: Told, fit: dict[str, Any]) -> None:
    """What another form, or loss, does to the forecast."""
    now = fit["forecast"]
    percent = 100 * (one.value / now["value"] - 1)
    st.info(
        f"By {show.plain(one.name)} the forecast is {nats(one.value)} ({nats(one.low)} to {nats(one.high)}), "
        f"{percent:+.2f}% from the study's own {nats(now['value'])}. The one that counts stays as it is.",
        icon=":material/compare_arrows:",
    )


def ladder_of(seen: load.Opened) -> str | None:
    names = [s.name for s in seen.asked.stage if s.kind == "ladder"] if seen.asked else []
    return names[-1] if names else None


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
