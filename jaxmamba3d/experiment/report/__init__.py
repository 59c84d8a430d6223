"""A run as one HTML file."""

from jaxmamba3d.experiment.report.run_page import report_page, write_report

__all__ = ["report_page", "write_report"]
