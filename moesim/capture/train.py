"""Train the reference model: AdamW, warm-up and cosine decay, a CSV of the loss, checkpoints that resume."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from moesim import whole
from moesim.capture.reference_moe import ReferenceMoE

Batches = Callable[[int], Tensor]  # step -> token ids [B, S + 1]; the same step always gives the same batch


@dataclass(frozen=True)
class Recipe:
    """How to train; every value is our choice for the shipped trace, not tuned beyond a look at the loss."""

    steps: int = 2000
    peak_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1  # on matrices only
    balance: float = 0.01  # weight of the load-balance loss, as in arXiv:2101.03961, section 2.2
    clip: float = 1.0  # gradient norm
    every: int = 50  # steps between held-out losses, log rows and checkpoints

    def rate(self, step: int) -> float:
        """Return the learning rate of *step*: linear warm-up, then a cosine down to a tenth of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def train(model: ReferenceMoE, batches: Batches, held_out: dict[str, Tensor], recipe: Recipe, out: Path,
          stop: Callable[[], bool] = lambda: False) -> Path:
    """Train *model* in place and return the path of the loss table `out/loss.csv`.

    *held_out* maps a domain to token ids [B, S + 1]. A run that finds `out/checkpoint.pt` continues from it. If *stop*
    says so after a step, the run ends there, with a row and a checkpoint. Losses are in nat per token.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(model, recipe)
    table, checkpoint = out / "loss.csv", out / "checkpoint.pt"
    first = resume(model, optimizer, checkpoint)
    if first == 0:
        write_row(table, ["step", "tokens", "rate", "loss", "balance", "seconds", *held_out], "w")
    else:
        forget(table, first)
    started, losses, balances, tokens = time.perf_counter(), [], [], 0
    for step in range(first, recipe.steps):
        loss, balance, seen = update(model, optimizer, batches(step), recipe, step)
        losses.append(loss)
        balances.append(balance)
        tokens += seen
        last = step + 1 == recipe.steps or stop()
        if (step + 1) % recipe.every == 0 or last:
            held = [evaluate(model, ids) for ids in held_out.values()]
            mean, seconds = sum(losses) / len(losses), time.perf_counter() - started
            cells = [mean, sum(balances) / len(balances), seconds, *held]
            write_row(table, [step + 1, tokens, f"{recipe.rate(step):.2e}", *(f"{cell:.4f}" for cell in cells)], "a")
            save(model, optimizer, checkpoint, step + 1)
            losses, balances, tokens, started = [], [], 0, time.perf_counter()
        if last:
            break
    return table


def forget(table: Path, step: int) -> None:
    """Take rows behind *step* out of the CSV *table*: a run that was killed wrote them without a checkpoint."""
    head, *rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if row.endswith("\n") and int(row.partition(",")[0]) <= step]
    if kept != rows:
        whole.file(table, "".join([head, *kept]).encode())


def update(
    model: ReferenceMoE, optimizer: torch.optim.Optimizer, ids: Tensor, recipe: Recipe, step: int
) -> tuple[float, float, int]:
    """Make one optimizer step and return the loss, the balance loss and the number of tokens predicted."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    model.train()
    output = model(ids[:, :-1])
    loss = F.cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten())
    (loss + recipe.balance * output.balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), output.balance.item(), ids[:, 1:].numel()


@torch.no_grad()
def evaluate(model: ReferenceMoE, ids: Tensor) -> float:
    """Return the loss on *ids* [B, S + 1] in nat per token."""
    model.eval()
    logits = model(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def make_optimizer(model: ReferenceMoE, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices and leaves norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def resume(model: ReferenceMoE, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
    """Load *checkpoint* if it exists and return the number of steps already made."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(model: ReferenceMoE, optimizer: torch.optim.Optimizer, checkpoint: Path, step: int) -> None:
    """Write the checkpoint in one move, so that a killed run leaves a whole one."""
    part = checkpoint.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(checkpoint)


def write_row(table: Path, cells: list[object], mode: str) -> None:
    """Append one row to the CSV *table*, or start it with mode "w"."""
    with table.open(mode, newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(cells)
