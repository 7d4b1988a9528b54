"""The numbers of the README, from the tables of this study."""

from __future__ import annotations

import account
import costs
import pandas as pd
import setting

from moesim.page import markdown

COUNTINGS = {"exflow": "ExFlow's counting", "waiting": "+ waiting", "kv": "+ keys and values", "full": "+ prompts"}


def numbers(tables: dict[str, pd.DataFrame]) -> str:
    """Return everything between the markers of the README."""
    table, placements = costs.grid(tables["iterations"]), tables["placements"]
    parts = [answer(tables), "![Speed-up over GPUs](figures/speedup.png)",
             "### Published and found here", published(table, placements),
             "### Coherence, and affinity on top of it", split(table),
             "![Transitions that change GPU](figures/cross.png)", routing(placements),
             "### Where an iteration goes, and why 2.2 is out of reach", "![Parts](figures/breakdown.png)",
             reach(tables), layers_text(tables["iterations"]), "![Batch](figures/batch.png)",
             "### What is left uncounted", uncounted(tables), "![Bytes and memory](figures/volume.png)",
             "### How many tokens to profile", profiled(tables["tokens"]),
             "### The integer program", program(placements),
             "### How strong the affinity is", strength(tables["strength"])]
    return "\n\n".join(parts)


def answer(tables: dict[str, pd.DataFrame]) -> str:
    """Return the answer, before everything else."""
    table, placements = costs.grid(tables["iterations"]), tables["placements"]
    return f"{answer_shape(table, placements)}\n\n{answer_counting(table, tables['iterations'])}"


def answer_shape(table: pd.DataFrame, placements: pd.DataFrame) -> str:
    """Return what of ExFlow's results is found again."""
    alone = table[(table["placement"] == "linear") & (table["mode"] == "context_coherent")]
    mine, more = table[table["placement"] == "affinity_sweep"], gain(table)
    top, eight, point = costs.best(table, "exflow"), costs.coherent(table, 8, 8), costs.coherent(table, 16, 8)
    padded = mine.loc[mine["padded"].idxmax()]
    less = {n: costs.fewer(placements, 64, n) for n in (4, 32)}
    return (
        f"**The routing is found again, the throughput is not.** With 64 experts, affinity makes {less[4]:.0%} fewer "
        f"tokens change GPU on 4 GPUs (published: 40 %) and {less[32]:.0%} fewer on 32 (25 %); in every model it saves "
        f"less the fewer experts a GPU has. Counted as ExFlow counts, throughput is {eight['exflow']:.2f} times the "
        f"baseline's with 8 experts on 8 GPUs (published: 1.1), but {point['exflow']:.2f} with 16 (2.2), and at best "
        f"{top['exflow']:.2f} ({top['experts']} experts, {top['gpus']} GPUs): it grows with the GPUs, as the "
        f"all-to-alls' share does, where ExFlow reports that it falls. Nearly all of it is coherence, "
        f"{alone['exflow'].min():.2f} to {alone['exflow'].max():.2f}; affinity multiplies that by {more.min():.2f} to "
        f"{more.max():.2f}, because exchanges of few tokens take their startup, not their bytes. Only against a "
        f"baseline that sends padded buffers does a 2 appear: {padded['padded']:.2f} with {padded['experts']} experts "
        f"on {padded['gpus']} GPUs.")


def answer_counting(table: pd.DataFrame, iterations: pd.DataFrame) -> str:
    """Return what is left when more is counted."""
    mine = table[table["placement"] == "affinity_sweep"]
    wins = {name: int((mine[name] > 1).sum()) for name in COUNTINGS}
    few = [costs.pick(costs.batches(iterations), per_gpu=n, placement="affinity_sweep")["full"] for n in (1, 4)]
    every = every_layer(iterations)["all"]
    by = table[table["mode"] == "context_coherent"].set_index(["experts", "gpus", "placement"])["waiting"].unstack()
    return (
        f"**The counting leaves out more than is gained.** Of {len(mine)} points, coherence with affinity is faster "
        f"than the baseline at {wins['exflow']} in ExFlow's counting, at {wins['waiting']} when GPUs wait for the "
        f"busiest one, at {wins['kv']} when the keys and values that attention needs are gathered, at {wins['full']} "
        f"when every GPU also runs every prompt (geometric means {', '.join(mean(mine, name) for name in COUNTINGS)}). "
        f"Once waiting counts, a load term in the solver (`joint`) is worth more than affinity: up to "
        f"{(by['joint'] / by['affinity_sweep']).max():.2f} times. All counted, only a nearly empty machine gains: 16 "
        f"experts on 8 GPUs {few[0]:.2f} with one request per GPU; with four it is {few[1]:.2f}. With 16 per GPU "
        f"and experts in every layer instead of every second it is {every['kv']:.2f} with keys and values, "
        f"{every['full']:.2f} with prompts.")


def gain(table: pd.DataFrame) -> pd.Series:
    """Return what affinity multiplies the throughput of coherence alone by, in ExFlow's counting, by point."""
    by = table[table["mode"] == "context_coherent"].set_index(["experts", "gpus", "placement"])["exflow"].unstack()
    return by["affinity_sweep"] / by["linear"]


def mean(rows: pd.DataFrame, counting: str) -> str:
    """Return the geometric mean of a column, written out."""
    return f"{costs.geometric(rows[counting]):.2f}"


def published(table: pd.DataFrame, placements: pd.DataFrame) -> str:
    """Return published values beside ours."""
    rows = []
    for point in setting.PUBLISHED:
        name = f"{point.experts} experts, {point.gpus} GPUs"
        if point.speedup is not None:
            mine = costs.coherent(table, point.experts, point.gpus)
            rows.append([f"throughput, {name}", f"up to {point.speedup:.3g}",
                         *(f"{mine[counting]:.2f}" for counting in COUNTINGS), f"{mine['ceiling']:.2f}"])
        if point.fewer is not None:
            rows.append([f"fewer tokens change GPU, {name}", f"{point.fewer:.0%}",
                         f"{costs.fewer(placements, point.experts, point.gpus):.0%}", *["same"] * 3, ""])
    most = max(costs.fewer(placements, e, n) for e, n in setting.GRID)
    stay = [costs.staying(placements, e, n) for e, n in setting.GRID if n > setting.PER_NODE]
    rows.append(["fewer tokens change GPU, anywhere", f"up to {setting.UP_TO_FEWER:.0%}", f"up to {most:.0%}",
                 *["same"] * 3, ""])
    rows.append(["tokens stay in their node more often, times", "about 2", f"{min(stay):.1f} to {max(stay):.1f}",
                 *["same"] * 3, ""])
    return markdown(["", "published", *(f"here, {name}" for name in COUNTINGS.values()), "if all-to-alls were free"],
                    rows)


def split(table: pd.DataFrame) -> str:
    """Return the speed-ups of every point."""
    rows = []
    for experts, gpus in setting.GRID:
        by = [costs.coherent(table, experts, gpus, p) for p in setting.PLACEMENTS]
        plain, mine, _ = by
        rows.append([f"{experts}, {gpus}", f"{experts // gpus}", f"{mine['share']:.0%}", f"{plain['exflow']:.2f}",
                     f"{mine['exflow']:.2f}", f"{mine['padded']:.2f}",
                     " / ".join(f"{row['waiting']:.2f}" for row in by), f"{mine['kv']:.2f}", f"{mine['full']:.2f}"])
    head = markdown(["experts, GPUs", "experts per GPU", "all-to-alls in the baseline", "coherent", "+ affinity",
                     "+ affinity, padded baseline", "+ waiting (three placements)", "+ keys and values", "+ prompts"],
                    rows)
    return (f"{head}\n\nThroughput over the baseline's. *Coherent*, *+ affinity* and *padded baseline* (DeepSpeed's "
            f"buffers: capacity factor 1, at least 4 rows per expert) are in ExFlow's counting; the columns after them "
            f"add, one by one, what it leaves out to *+ affinity*. *Three placements*: experts in order / affinity / "
            f"affinity and balance (solver `joint`).")


def every_layer(iterations: pd.DataFrame) -> dict[str, pd.Series]:
    """Return 16 experts on 8 GPUs, coherent with affinity, by which layers have experts (``setting.LAYERS``)."""
    table = account.speedups(iterations, costs.OUTPUTS)
    where = {"experts": 16, "gpus": 8, "per_gpu": setting.PER_GPU, "mode": "context_coherent"}
    return {layers: costs.pick(table, layers=layers, placement="affinity_sweep", **where) for layers in setting.LAYERS}


def layers_text(iterations: pd.DataFrame) -> str:
    """Return what changes if every layer has experts."""
    half, full = (every_layer(iterations)[layers] for layers in ("every second", "all"))
    return (f"With experts in every layer instead of every second, 16 experts on 8 GPUs: all-to-alls are "
            f"{full['share']:.0%} of the baseline (instead of {half['share']:.0%}), and the four countings give "
            f"{', '.join(f'{full[name]:.2f}' for name in COUNTINGS)} (instead of "
            f"{', '.join(f'{half[name]:.2f}' for name in COUNTINGS)}).")


def routing(placements: pd.DataFrame) -> str:
    """Return cross fractions and load of every point."""
    rows = []
    for experts, gpus in setting.GRID:
        by = [costs.pick(placements, experts=experts, gpus=gpus, placement=p) for p in setting.PLACEMENTS]
        nodes = " / ".join(f"{row['cross_node_top1']:.2f}" for row in by) if gpus > setting.PER_NODE else "one node"
        rows.append([f"{experts}, {gpus}", " / ".join(f"{row['cross_top1']:.2f}" for row in by),
                     f"{costs.fewer(placements, experts, gpus):.0%}", nodes,
                     " / ".join(f"{row['load_max_over_mean']:.2f}" for row in by)])
    text = markdown(["experts, GPUs", "transitions that change GPU", "fewer with affinity", "that change node",
                     "load, max / mean of GPUs"], rows)
    return f"{text}\n\nThree numbers: experts in order / affinity / affinity and balance. On unseen requests."


def reach(tables: dict[str, pd.DataFrame]) -> str:
    """Return how much slower exchanges would have to be for the published speed-ups."""
    table, most = account.speedups(tables["iterations"], costs.OUTPUTS), max(setting.BATCHES)
    points = [(p.experts, p.gpus, setting.PER_GPU, p.speedup) for p in setting.PUBLISHED if p.speedup]
    rows = []
    for experts, gpus, per_gpu, speedup in [*points, (16, 8, most, 2.2)]:
        where = {"experts": experts, "gpus": gpus, "per_gpu": per_gpu, "layers": "every second"}
        base = costs.pick(table, mode="dispatch_combine", **where)
        mine = costs.pick(table, mode="context_coherent", placement="affinity_sweep", **where)
        factor = account.slower_network(base, mine, speedup)
        two = base["dispatch_s"] + base["combine_s"]
        rows.append([f"{experts} experts, {gpus} GPUs, {per_gpu} requests each", f"{speedup:.3g}",
                     f"{mine['exflow']:.2f}", f"{base['share']:.0%}", f"{two / 24 * 1e6:.0f} us",
                     f"{mine['ceiling']:.2f}", f"{two / (mine['dispatch_s'] + mine['context_hidden_s']):.2f}",
                     "none" if factor <= 1 else "no factor does it" if factor == float("inf") else f"{factor:.0f}"])
    text = markdown(["", "published", "here", "all-to-alls in the baseline", "one of them", "if they took no time",
                     "if nothing else took time", "exchanges slower by"], rows)
    return (f"{text}\n\nIn ExFlow's counting. Last column: how many times slower all exchanges would have to be for "
            f"the published value. *If nothing else took time*: two exchanges over one and the gather. With few tokens "
            f"an exchange is its startup, so that stays below 2; with many it is its busiest port, and affinity crowds "
            f"tokens there.")


def uncounted(tables: dict[str, pd.DataFrame]) -> str:
    """Return what ExFlow's counting leaves out, with its size at three points."""
    table = costs.grid(tables["iterations"])
    points = [(costs.pick(table, experts=e, gpus=n, mode="dispatch_combine"), costs.coherent(table, e, n))
              for e, n in costs.SHOWN]
    loads = [[costs.coherent(table, *point, placement)["load_max_over_mean"] for placement in setting.PLACEMENTS]
             for point in costs.SHOWN]
    kept = [base["kv_room"] / costs.CONTEXT for base, _ in points]
    rows = [
        ["keys and values gathered, of the baseline's iteration",
         *(f"{(mine['context_s'] - mine['context_hidden_s']) / base['step_s']:.0%}" for base, mine in points)],
        ["the step of the prompts, times the baseline's",
         *(f"{mine['prefill_s'] / base['prefill_s']:.1f}" for base, mine in points)],
        ["requests of 2048 tokens that fit per GPU: baseline / coherent",
         *(f"{fit:.0f} / {fit / n:.1f}" for fit, (_, n) in zip(kept, costs.SHOWN, strict=True))],
        ["waiting, of the iteration: baseline / coherent + affinity",
         *(f"{base['wait_s'] / base['step_s']:.0%} / {mine['wait_s'] / mine['waiting_s']:.0%}"
           for base, mine in points)],
        ["busiest GPU's tokens / mean: in order / affinity / affinity and balance",
         *(" / ".join(f"{value:.2f}" for value in some) for some in loads)],
        ["baseline's all-to-alls, if padded, times as long",
         *(f"{base['padded_s'] / (base['dispatch_s'] + base['combine_s']):.1f}" for base, _ in points)]]
    return markdown(["", *(f"{e} experts, {n} GPUs" for e, n in costs.SHOWN)], rows)


def profiled(tokens: pd.DataFrame) -> str:
    """Return cross fractions by profiled tokens."""
    rows = []
    for (experts, gpus), some in tokens.groupby(["experts", "gpus"]):
        unseen = some[some["judged_on"] == "unseen"]["cross_top1"]
        rows.append([f"{experts}, {gpus}", *(f"{value:.3f}" for value in unseen)])
    heads = [f"{n:,}" for n in tokens[tokens["judged_on"] == "unseen"]["tokens"].unique()]
    text = markdown(["experts, GPUs", *heads], rows)
    return f"{text}\n\nFraction of unseen tokens' transitions that change GPU, after profiling so many tokens."


def program(placements: pd.DataFrame) -> str:
    """Return what the integer program adds to the sweep."""
    rows = []
    for _, row in placements[placements["placement"] == "exflow_ilp"].iterrows():
        sweep = costs.pick(placements, experts=row["experts"], gpus=row["gpus"], placement="affinity_sweep")
        rows.append([f"{row['experts']}, {row['gpus']}", f"{sweep['objective']:.4f}", f"{row['objective']:.4f}",
                     f"{row['bound']:.4f}", str(row["status"])])
    return markdown(["experts, GPUs", "sweep", "integer program", "proved lower bound", "status"], rows)


def strength(table: pd.DataFrame) -> str:
    """Return the statistics of the traces."""
    rows = [[f"{row['experts']:.0f}", f"{row['tokens']:,.0f}",
             f"{row['mutual_information_nat']:.2f} ({row['null_nat']:.3f})", f"{row['of_entropy']:.2f}",
             f"{row['guessed']:.2f} ({row['popular']:.2f})", f"{row['load_max_over_mean']:.2f}"]
            for row in table.to_dict("records")]
    return markdown(["experts", "tokens", "mutual information, nat (shuffled)", "of the entropy",
                     "next expert guessed (from popularity)", "load of experts, max / mean"], rows)
