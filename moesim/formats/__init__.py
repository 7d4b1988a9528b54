"""Readers of other tools' routing files, one file each (parts of kind ``format``)."""
