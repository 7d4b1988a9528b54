"""Readers of kernel timings, one file per tool (parts of kind ``measurement_format``).

A part has ``matches(path)`` and ``read(path) -> table`` in the columns of ``moesim.kernels.measurements``, where the
table is checked. Modules that start with an underscore are shared.
"""
