"""Record the expert choices of PyTorch models, and train a small one to have choices worth recording.

`record` puts forward hooks on every gate of a model; nothing the model computes changes.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("moesim.capture needs PyTorch: pip install 'moesim[torch]'", name="torch") from error

from moesim.capture.recorder import Recorder, record

__all__ = ["Recorder", "record"]
