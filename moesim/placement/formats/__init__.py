"""Placement files of engines and tools, one file each (parts of kind ``placement_format``).

A part has ``suffixes`` (of the files that it writes), ``matches(path)``, ``write(placement, path)`` and
``read(path, n_devices, n_experts)``; what a file says itself need not be given. Modules that start with an underscore
are shared. Most files list *slots* (engines say physical experts): device 0's first, every device equally many.
"""
