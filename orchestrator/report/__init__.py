"""The report of a sweep, made from its run folder."""

from orchestrator.report.page import headline, write_report

__all__ = ["headline", "write_report"]
