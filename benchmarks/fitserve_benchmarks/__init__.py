"""Measures fitserve and what it is held against."""

from fitserve_contract import runtime_reports

runtime_reports.turn_off()
