"""The README's picture, from a bundle: where people stand, and how the steered LM answers as opposed cohorts.

python scripts/readme_picture.py demo-bundle docs/images/people.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from personae.bundle import Bundle
from personae.people.map import coordinates

COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac"]


def draw(bundle: Bundle, target: Path) -> None:
    """A map of people by cohort beside answers of the steered LM to the questions that split the cohorts most."""
    people, cohorts = bundle.people, bundle.cohorts
    centroids = np.stack([c.vector for c in cohorts])
    distance = np.linalg.norm(centroids[:, None] - centroids, axis=-1)
    pair = np.unravel_index(distance.argmax(), distance.shape)
    split = cohorts.profiles_.splitting["question"].iloc[:3].tolist()
    asked = [q for i in split for q in people.questions_ if q.id == i]

    place = coordinates(people, cohorts)
    towards = [people.questions_[j] for j in place.strongest]
    words = [f"{question.title or question.id}: {question.options[-1]}" for question in towards]

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1, 1.15))
    for k in range(len(cohorts)):
        mine = cohorts.labels_ == k
        left.scatter(*place.points[mine].T, s=5, alpha=0.45, color=COLOURS[k % 8], label=f"cohort-{k}", lw=0)
    left.set(xticks=[], yticks=[], xlabel=f"{words[0]} →", ylabel=f"{words[1]} →")
    left.set_title(f"{len(people):,} people by what they answered", loc="left", fontsize=11)
    left.legend(frameon=False, markerscale=3, fontsize=8)
    probabilities = bundle.steerer.predict_proba([cohorts[int(k)] for k in pair], asked)
    ticks, labels = [], []
    for j, question in enumerate(asked):
        for i, cohort in enumerate(pair):
            y, x = -(j * 2.8 + i), 0.0
            for option, p in enumerate(probabilities[i, j, : len(question.options)]):
                shade = 0.35 + 0.65 * option / max(1, len(question.options) - 1)
                right.barh(y, p, left=x, color=COLOURS[int(cohort) % 8], alpha=shade, edgecolor="white", height=0.9)
                if p > 0.14:
                    right.text(x + p / 2, y, question.options[option], ha="center", va="center", fontsize=8)
                x += p
            ticks.append(y)
            labels.append(f"cohort-{cohort}")
        right.text(0, -j * 2.8 + 0.62, question.title or question.id, fontsize=9, weight="bold")
    right.set(yticks=ticks, yticklabels=labels, xlim=(0, 1), xticks=[])
    right.tick_params(length=0, labelsize=8)
    right.set_title("The frozen language model, steered as two cohorts", loc="left", fontsize=11, pad=14)
    for axis in (left, right):
        axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    draw(Bundle.open(sys.argv[1]), Path(sys.argv[2]))
