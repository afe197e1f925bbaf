"""Reports on runs: the verdict in words, the table, report.html of one run, and a page that compares several."""

from __future__ import annotations

from sskd_fast.report.html import write_report
from sskd_fast.report.html_comparison import write_comparison
from sskd_fast.report.run_folder import read_figures
from sskd_fast.report.table import table_text
from sskd_fast.report.verdict import verdict_words

__all__ = ["read_figures", "table_text", "verdict_words", "write_comparison", "write_report"]
