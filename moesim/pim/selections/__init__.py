"""Selections: which jobs of a phase go to the processor beside the device's own, one file each.

A part has ``beside(jobs)``, the mask of those jobs, and ``side_by_side``: whether both processors work at a time.
"""
