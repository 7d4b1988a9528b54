"""Serving decisions: which requests run in a step, and where a request lives."""
