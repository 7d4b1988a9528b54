"""YAML for TensorRT-LLM's MoE load balancer: ``initial_global_assignments``, slots by the model's layer number.

>>> import tempfile, pathlib
>>> from moesim.placement import Placement
>>> path = pathlib.Path(tempfile.mkdtemp()) / "p.yaml"
>>> Trtllm(layers=(3,)).write(Placement.from_device_of([[1, 0, 1, 0]], n_devices=2), path)
>>> print(path.read_text(), end="")
initial_global_assignments:
  3: [1, 3, 0, 2]
layer_updates_per_iter: 0
num_slots: 4
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from moesim.placement.formats import _files, _slots
from moesim.placement.placement import Placement, PlacementError
from moesim.registry import part

_KEYS = {"initial_global_assignments", "num_slots", "layer_updates_per_iter"}


@part
class Trtllm:
    """``layers``: those of the model that have experts (left out: what the placement's info says).

    ``layer_updates_per_iter``: 0 keeps the placement (offline), more lets the engine change it. ``fill``: copies may
    take slots left empty. The file does not say how many devices there are: the engine's expert parallel size does.
    Source: NVIDIA/TensorRT-LLM (Apache-2.0), examples/ep_load_balancer/README.md and generate_eplb_config.py (slots
    rank by rank), tensorrt_llm/llmapi/llm_args.py ``MoeLoadBalancerConfig`` (these three keys, no others).
    """

    layers: tuple[int, ...] | None = None
    layer_updates_per_iter: int = Field(default=0, ge=0)
    fill: bool = False
    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml")

    def matches(self, path: Path) -> bool:
        """Say whether the file's name ends as YAML does."""
        return Path(path).suffix in self.suffixes

    def write(self, placement: Placement, path: str | Path) -> None:
        """Write *placement*. Raises ``PlacementError``."""
        layers = _slots.moe_layers(placement, self.layers)
        slots = _slots.slots_of(placement, self.fill)
        rows = [f"  {layer}: [{', '.join(map(str, row))}]" for layer, row in zip(layers, slots.tolist(), strict=True)]
        text = "\n".join(["initial_global_assignments:", *rows,
                          f"layer_updates_per_iter: {self.layer_updates_per_iter}", f"num_slots: {slots.shape[1]}", ""])
        _files.save(path, text.encode(), self.suffixes)

    def read(self, path: str | Path, n_devices: int | None = None, n_experts: int | None = None) -> Placement:
        """Return the placement of the layers in the file, in ascending order. Raises ``PlacementError``."""
        try:
            content = YAML(typ="safe").load(_files.load_text(path))
        except YAMLError as error:
            reason = str(getattr(error, "problem", None) or error).splitlines()[0]
            raise PlacementError(f"{path}: not YAML ({reason}); write it again") from None
        try:
            rows = self._assignments(content)
            return _slots.placement_of([rows[layer] for layer in sorted(rows)], n_devices, n_experts,
                                       **{_slots.KEY: sorted(rows)})
        except PlacementError as error:
            raise PlacementError(f"{path}: {error}") from None

    def _assignments(self, content: Any) -> dict[int, list]:
        if not isinstance(content, dict) or "initial_global_assignments" not in content:
            raise PlacementError("has no key initial_global_assignments; give a load balancer file of TensorRT-LLM")
        unknown = sorted(map(str, content.keys() - _KEYS))
        if unknown:
            raise PlacementError(f"has the key {unknown[0]!r}, which a load balancer file has not; remove it")
        rows, slots = content["initial_global_assignments"], content.get("num_slots")
        if not isinstance(rows, dict) or not rows or any(type(k) is not int or k < 0 for k in rows):
            raise PlacementError("initial_global_assignments must be a mapping of layer numbers to lists of experts")
        if type(slots) is not int:
            raise PlacementError("num_slots must be the number of slots of each layer; add it")
        for layer, row in rows.items():
            if not isinstance(row, list) or len(row) != slots:
                raise PlacementError(f"layer {layer}: is no list of num_slots = {slots} experts; correct one of them")
        return rows
