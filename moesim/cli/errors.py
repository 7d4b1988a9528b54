"""Which errors are wrong input, in one place: all others are bugs of moesim and keep their traceback."""

from __future__ import annotations

import dis
from pathlib import Path

import moesim

_PACKAGE = Path(moesim.__file__).resolve().parent

# What moesim raises when it is given something wrong: ConfigError, TraceError, UnknownPart, ... (all are ValueErrors),
# a folder that it may not overwrite, an optional package that is not installed.
_OURS = (ValueError, FileExistsError, ModuleNotFoundError)
# What the system raises when a path that the user gave cannot be used.
_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def input_error(error: Exception) -> str | None:
    """Return the message for *error* if it is wrong input (place, fact, remedy), else None.

    A ``ValueError`` that other code raised is not: moesim should have checked what it passed on.
    """
    if isinstance(error, _OURS) and _raised_here(error):
        return str(error)
    if isinstance(error, _PATHS) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}; correct the path"
    return None


def _raised_here(error: Exception) -> bool:
    """Tell whether a ``raise`` in moesim's own code started *error*.

    The innermost frame alone does not tell: an error of numpy's C code has the frame of its caller.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    own = _PACKAGE in Path(code.co_filename).resolve().parents
    return own and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
