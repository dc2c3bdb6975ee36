"""`nas-dynamic report`: one page on one run or several side by side."""

from nas_dynamic.report.page import MAX_RUNS, write_report

__all__ = ["MAX_RUNS", "write_report"]
