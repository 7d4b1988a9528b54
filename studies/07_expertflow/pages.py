"""The computed part of the README, from the tables of this study."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from against import grows, saved
from regrouping import BATCH, BATCHES, DEALS, GAINS, KINDS, SUBJECTS
from replays import EXPERT_FLOW, POPULARITY, SETTINGS

from moesim.page import markdown
from moesim.published import as_table, summary

QUESTIONS = {"hits": ("What does a larger batch cost?", "hits"),
             "scheduler": ("Does regrouping tokens gain more with more experts?", "scheduler")}


def text(tables: dict[str, pd.DataFrame]) -> str:
    """Return the whole computed part."""
    rows = tables["published"]
    answers = {"hits": f"{_hits(tables['hits'])}\n\n{_popularity(tables['popularity'])}",
               "scheduler": f"{_scheduler(tables['scheduler'])}\n\n{_where(tables['scheduler'], tables['strays'])}"}
    parts = [summary(rows.to_dict("records"))]
    for question, some in rows.groupby("question", sort=False):
        title, figure = QUESTIONS[question]
        parts += [f"## {title}", answers[question], f"![{title}](figures/{figure}.png)",
                  as_table(some.to_dict("records"))]
    return "\n\n".join(parts)


def _hits(table: pd.DataFrame) -> str:
    needed = []
    for slots, batch in SETTINGS:
        published = EXPERT_FLOW["plec", slots, batch]
        plec = table[(table["policy"] == "plec") & (table["slots"] == slots) & (table["batch"] == batch)]
        inside = plec["hit_percent"].max() >= published
        needed.append(f"{np.interp(published, plec['hit_percent'], plec['recall']):.2f}" if inside else "none")
    return ("LRU loses what was published, PLEC less than 8 points. With a recall of 0.9 our PLEC hits more than the "
            f"paper's; the published hits need recalls of {needed[0]} and {needed[1]} here. With 8 slots 16 tokens ask "
            f"for more than fits, and no recall gives the published number ({needed[2]}): its tokens share more than "
            "ours do.")


def _popularity(table: pd.DataFrame) -> str:
    wide = table.pivot(index="popularity", columns=["policy", "slots", "batch"], values="hit_percent")
    most = POPULARITY[-1]

    def line(spread: float, policy: str) -> str:
        return ", ".join(f"{wide.loc[spread, (policy, *at)]:.1f}" for at in SETTINGS)

    return ("Would experts that all requests like mend that? Only in part. With a spread of "
            f"{POPULARITY[1]:g} (logits) LRU hits {line(POPULARITY[1], 'lru')} %, all three within 5 points; with "
            f"{most:g} it hits {line(most, 'lru')} %: the row of 8 slots is met, the others are not. PLEC hits "
            f"{line(most, 'plec')} % then, still too few with 8 slots and too many with 16. The rows stay as they are: "
            "a spread would be chosen for them.")


def _percent(found: list[float]) -> str:
    return ", ".join(f"{f:.1%}" for f in found)


def _times(found: list[float]) -> str:
    return ", ".join(f"{1 / (1 - f):.2f}" for f in found)


def _scheduler(table: pd.DataFrame) -> str:
    fixed, share, thrown, kept = (saved(table, kind, 2, deal, BATCH, column) for kind, deal, column in (
        ("eight", "turn", "fewer_distinct"), ("quarter", "turn", "fewer_distinct"),
        ("eight", "turn", "fewer_misses"), ("eight", "request", "fewer_misses")))
    return ("**Yes, if a subject uses as many experts of a layer whatever there are; no, if it uses a share of them.** "
            f"Two subjects of eight experts each, batches of {BATCH}: of 32, 64, 128 experts dealing anew saves "
            f"{_percent(fixed)} of the distinct ones. What subjects share cannot be dealt apart, and of 32 experts two "
            "share a quarter of theirs by chance, of 128 a sixteenth. Were loading all of the time, and each batch "
            f"loaded anew, tokens/s would be {_times(fixed)} times as many (published: "
            f"{', '.join(f'{g:.2f}' for g in GAINS.values())}). If a subject uses a quarter of the experts, it is "
            f"{_percent(share)}: more experts, less alike.\n\n"
            f"A cache changes it. If tokens are dealt every turn, LRU misses more ({_percent([-t for t in thrown])}): "
            "what one half leaves in the cache the other half needs no more. If requests are dealt once and each "
            f"batch runs to its end, it misses {_percent(kept)} less: at most {_times(kept)} times the tokens/s.")


def _where(table: pd.DataFrame, strays: pd.DataFrame) -> str:
    rows = []
    for kind, deal, column in itertools.product(KINDS, DEALS, ("fewer_distinct", "fewer_misses")):
        at = [", ".join(str(b) for b in BATCHES if grows(saved(table, kind, many, deal, b, column))) or "none"
              for many in SUBJECTS]
        rows.append([f"{KINDS[kind]} a subject, dealt {'every turn' if deal == 'turn' else 'once'}: fewer "
                     f"{'distinct experts' if column == 'fewer_distinct' else 'misses'}", *at])
    wide = strays.pivot(index=["strays", "seed"], columns="experts", values="fewer_distinct")
    first, last = wide[min(GAINS)], wide[max(GAINS)]
    apart = (wide.groupby("strays").max() - wide.groupby("strays").min()).to_numpy().max()
    full = saved(table, "eight", 8, "turn", 64, "distinct")
    return ("Batches with which the gain grows from 32 to 64 to 128 experts:\n\n"
            + markdown(["", *(f"{many} subjects" for many in SUBJECTS)], rows, 1)
            + "\n\nWith eight subjects it grows from 64 tokens on: then a batch asks for "
            f"{full[0]:.0f} of 32 experts, whoever is in it ({full[-1]:.0f} of 128). Another seed moves a "
            f"number of two subjects by up to {100 * apart:.0f} points: one cell of this table proves little. "
            "With 0, 10 or 20 % of tokens that go to any expert, and three seeds each, distinct experts of two "
            f"subjects of eight, dealt every turn, batch {BATCH}, grow in "
            f"{sum(grows(list(row)) for row in wide.to_numpy())} of {len(wide)}: from {first.min():.1%} to "
            f"{first.max():.1%} at 32 to {last.min():.1%} to {last.max():.1%} at 128.")
