"""Readers of measured runs, one file each (parts of kind ``run_format``): ``matches(path)``, ``read(path) -> Run``."""
