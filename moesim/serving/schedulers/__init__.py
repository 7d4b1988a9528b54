"""Schedulers: one part per file, each with ``plan(group) -> requests, tokens of each`` of the group's next step."""
