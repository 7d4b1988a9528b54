"""What a file is (scenario, model, machine, trace, ...) and what the library holds under which name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim import config
from moesim.config import Spec
from moesim.registry import near_files, suggest

# kind -> (folder of the library, suffix)
FOLDERS = {"model": ("workloads/models", ".yaml"), "machine": ("hw_configs/machines", ".yaml"),
           "device": ("hw_configs/devices", ".yaml"), "kernels": ("hw_configs/kernels", ".yaml"),
           "trace": ("workloads/traces", ".parquet")}


def files(kind: str) -> dict[str, Path]:
    """Return the files of *kind* that the library holds, by name."""
    folder, suffix = FOLDERS[kind]
    found: dict[str, Path] = {}
    for root in config.library_roots():
        for path in sorted((root / folder).glob(f"*{suffix}")):
            found.setdefault(path.stem, path)
    return found


def find(name: str) -> Path:
    """Return the file that *name* means: a path that exists, or a name of the library. Raises ``ValueError``."""
    path = Path(name)
    if path.exists():
        return path
    named = [(stem, file) for kind in FOLDERS for stem, file in files(kind).items()]
    found = [file for stem, file in named if stem == name]
    if len(found) > 1:
        raise ValueError(f"{name}: several files have this name; give the path of one: {', '.join(map(str, found))}")
    if found:
        return found[0]
    known = near_files(path) if path.suffix else suggest(path.name, [n for n, _ in named])
    raise ValueError(f"{name}: no such file, and nothing of that name in the library{known}")


def kind_of(path: Path) -> str:
    """Return what the file *path* is: by where it lies if that says it, else by its keys. Raises ``ValueError``."""
    if path.suffix == ".json":
        return "placement"
    if path.suffix not in (".yaml", ".yml"):
        return "trace"
    folder = "/".join(path.resolve().parts[-3:-1])
    for kind, (place, suffix) in FOLDERS.items():
        if folder == place and path.suffix == suffix:
            return kind
    keys = set(map(str, config.read(path).data))
    classes = spec_classes()
    fitting = {kind: 2 * len(keys & set(cls.model_fields)) - len(keys) for kind, cls in classes.items()}
    best = max(fitting, key=fitting.__getitem__)
    if not keys & set(classes[best].model_fields):
        raise ValueError(f"{path}: its keys ({', '.join(sorted(keys))}) are those of no {', '.join(classes)}")
    return best


def spec_classes() -> dict[str, type[Spec]]:
    """Return the class of each kind of YAML file."""
    from moesim.explore import SweepSpec
    from moesim.hardware import Device, HardwareSpec
    from moesim.kernels.library import KernelFile
    from moesim.model import ModelSpec
    from moesim.scenario import Scenario

    return {"scenario": Scenario, "sweep": SweepSpec, "model": ModelSpec, "machine": HardwareSpec, "device": Device,
            "kernels": KernelFile}


def load(path: Path, overrides: tuple[str, ...] = ()) -> tuple[str, Any]:
    """Return the kind of the file *path* and what is in it, checked. Raises ``ValueError`` with all mistakes."""
    kind = kind_of(path)
    if kind == "trace":
        from moesim.trace import read_trace

        return kind, read_trace(path)
    if kind == "placement":
        from moesim.placement import Placement

        return kind, Placement.load(path)
    return kind, config.load(spec_classes()[kind], path, overrides)
