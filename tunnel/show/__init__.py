"""What the commands print for people: tables, bars and one-line answers. No arithmetic of its own."""

from tunnel.show.evidence import check, contrast, fit, forecasts, ladder, recommendation, verdicts
from tunnel.show.governance import audit, promotion, rolled_back, verified
from tunnel.show.words import out
from tunnel.show.work import (
    bundle,
    comparison,
    doctor,
    extended,
    next_runs,
    plan,
    progress,
    prunable,
    report,
    rerun,
    run,
    status,
    submitted,
    targets,
    trained,
)

__all__ = [
    "audit", "bundle", "check", "comparison", "contrast", "doctor", "extended", "fit", "forecasts", "ladder",
    "next_runs", "out", "plan", "progress", "promotion", "prunable", "recommendation", "report", "rerun",
    "rolled_back", "run", "status", "submitted", "targets", "trained", "verdicts", "verified",
]  # fmt: skip
