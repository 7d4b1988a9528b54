"""Schedulers: one part per file, each with ``plan(view) -> Plan``."""
