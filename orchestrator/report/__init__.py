"""The report of a sweep, made from its run folder."""

from orchestrator.report.page import write_report

__all__ = ["write_report"]
