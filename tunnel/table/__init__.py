"""Bring your own runs: a runs table (contract 4) read and checked, and what `tunnel fit` says of it."""

from tunnel.table.files import as_columns, read, write
from tunnel.table.report import fit_report

__all__ = ["as_columns", "fit_report", "read", "write"]
