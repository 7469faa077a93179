"""The picture of `docs/which-rule.md`: lag against interaction, and the cheapest rule that trained on each task.

    python -m benchmarks.which_rule                  # the table; writes docs/which-rule.svg

The lag is the number of steps from what must be remembered to the nearest loss that asks for it. The interaction is
one less the cosine of D-RTRL with BPTT by lag, which is the part of the past's credit that passes between units, at
the weights that BPTT trained; the mean over lags and seeds. The scores are those in `docs/tasks/`: a rule trained if
it is behind BPTT by no more than both standard deviations over the seeds, and is nearer to BPTT than to chance.
"""

import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from examples.tasks.arms import load
from examples.tasks.suggested import SCORES, better, scores_of, spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parents[1] / "docs" / "which-rule.svg"
LAGS = {
    "japanese_vowels": 1,
    "characters": 8,
    "event_camera": 10,
    "copying": 13,
    "delayed_xor": 20,
    "adding": 25,
    "recall": 30,
    "tmaze_encoder": 30,
    "cue_alif": 30,
    "sequential_digits": 32,
    "sequential_digits_lru": 32,
    "dms": 40,
    "evidence": 48,
    "conductance": 48,
    "memory_chain": 70,
}
"""In steps. Digits and the marked numbers are spread over the sequence: half of it. Text: as long as a word and its
neighbour. Copying: that of the strings that BPTT reaches."""

CHEAPEST = {
    "the current step": ("immediate gradient", "immediate gradient, RMSprop"),
    "a decay": ("ES-D-RTRL, decay",),
    "D-RTRL or a low rank": ("D-RTRL", "ES-D-RTRL, rank"),
    "full windows, look-back, truncation": ("D-RTRL, full", "D-RTRL, look-back", "TBPTT"),
    "directions of credit": ("credit, q",),
}
"""Groups of rules, by what they cost, and how their arms begin."""


def interaction(name: str) -> float:
    """From 0, nothing passes between units, to 1; `nan` where the past has no part."""
    lags = [row.lags for row in load(SCORES / f"{name}.json") if row.arm == "D-RTRL" and row.lags]
    cosines = [c for seed in lags for c in seed if c == c]
    return 1 - statistics.fmean(cosines) if cosines else float("nan")


HORIZONS = {
    "decay": "ES-D-RTRL, decay",
    "rank 4": "ES-D-RTRL, rank 4",
    "D-RTRL": "D-RTRL",
    "full windows": "D-RTRL, full windows",
    "look-back": "D-RTRL, look-back",
    "directions": "credit, q = 4, rank 4",
    "UORO": "UORO",
}
"""Arms by how they begin, which have cosines by lag."""


def horizon(name: str, begins: str) -> str:
    """The lag up to which the mean cosine with BPTT is 0.5 or more, of the lags that the task's record has; "-" where
    it is less from the first on, or no gradient reaches back."""
    rows = [row for row in load(SCORES / f"{name}.json") if row.arm.startswith(begins)]
    rows = [row for row in rows if row.lags and "random" not in row.arm]
    arm = next((row.arm for row in rows if row.arm == begins), rows[0].arm if rows else "")
    same = [row for row in rows if row.arm == arm]
    reached, ends = 0, (same[0].bins or [])[1:] if same else []
    for end, column in zip(ends, zip(*(row.lags or [] for row in same), strict=True), strict=True):
        known = [cosine for cosine in column if cosine == cosine]
        if not known or statistics.fmean(known) < 0.5:
            return str(reached or "-")
        reached = end
    return f"all {reached}" if reached else "-"


def cheapest(name: str) -> tuple[str, str, list[float]]:
    """The first group with an arm that trained, that arm, and its scores; BPTT where there is none."""
    scores, row = scores_of(name), load(SCORES / f"{name}.json")[0]
    unit, chance = row.unit, row.chance
    sign, (best, off) = -1 if better(unit) is min else 1, spread(scores["BPTT"])
    for group, begins in CHEAPEST.items():
        arms = [
            arm
            for arm in scores
            if any(arm == b or (arm.startswith(b) and b not in scores) for b in begins)
            and "random" not in arm
        ]
        arms.sort(key=lambda arm: sign * statistics.fmean(scores[arm]), reverse=True)
        for arm in arms:
            mean, own = spread(scores[arm])
            if sign * (best - mean) <= min(off + own, abs(best - chance) / 2):
                return group, arm, scores[arm]
    return "BPTT alone", "BPTT", scores["BPTT"]


def main() -> None:
    figure, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    groups = [*CHEAPEST, "BPTT alone"]
    seen = set[str]()
    print("| task | lag | interaction | cheapest rule that trained | its score | BPTT |")
    print("|---|---:|---:|---|---:|---:|")
    for name, lag in LAGS.items():
        (group, arm, own), between = cheapest(name), interaction(name)
        mean, off = spread(own)
        of_bptt = " ± ".join(f"{v:.3g}" for v in spread(scores_of(name)["BPTT"]))
        shown = "-" if between != between else f"{between:.2f}"
        print(f"| {name} | {lag} | {shown} | {arm} | {mean:.3g} ± {off:.3g} | {of_bptt} |")
        at = lag, float(np.nan_to_num(between))
        n = groups.index(group)
        style: Any = dict(color=f"C{n}", marker="osD^vP"[n], markersize=8, linestyle="")
        ax.plot(*at, **style, label=None if group in seen else group)
        seen.add(group)
        up = {"cue_alif": 9, "recall": -9, "conductance": -11}.get(name, 5)
        text, left = name.replace("_", " "), name in ("tmaze_encoder", "dms")
        place: Any = dict(xytext=(-6 if left else 6, up), ha="right" if left else "left")
        ax.annotate(text, at, **place, textcoords="offset points", fontsize=7)
    ax.axhline(0.3, color="0.75", linewidth=1)
    ax.axvline(8, color="0.75", linewidth=1)
    notes = {(0.8, 1.12): "short: anything", (9, -0.1): "long, units alone: D-RTRL"}
    notes[9, 1.12] = "long, units interact: look-back, directions, BPTT"
    for (x, y), note in notes.items():
        ax.text(x, y, note, color="0.35", fontsize=8)
    ax.set(xscale="log", xlim=(0.7, 160), ylim=(-0.15, 1.22))
    ax.set(xlabel="lag in steps", ylabel="interaction between units")
    figure.legend(
        loc="outside lower center", ncols=2, frameon=False, fontsize=8, title="trained by"
    )
    print(f"\n| task | {' | '.join(HORIZONS)} |\n|---|{'---:|' * len(HORIZONS)}")
    for name in LAGS:
        print(f"| {name} | {' | '.join(horizon(name, arm) for arm in HORIZONS.values())} |")
    figure.savefig(OUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
