"""The judge-a-run report: a run directory in, `report.html` and `report.json` out."""

from server.report.page import write_report

__all__ = ["write_report"]
