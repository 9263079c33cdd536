"""Made-up answers of people and models, random and always the same."""

import numpy as np
import pandas as pd

from landscape.answers import CATEGORIES, CUE_CONFLICT, DATASETS, Answers

PEOPLE = ("subject-01", "subject-02", "subject-03")


def made_up(
    *,
    models=("net", "other"),
    people=PEOPLE,
    datasets=("contrast", "edge", CUE_CONFLICT),
    per_category=2,
    seed=0,
    drop=(),
):
    """Answers to a few pictures of every condition and category.

    Args:
        drop: Pairs of an observer and a data set, or triples with a condition, that have no
            answers.
    """
    rows = []
    for name in datasets:
        for observer, kind in [
            *((person, "human") for person in people),
            *((model, "model") for model in models),
        ]:
            rng = np.random.default_rng([seed, *map(ord, name + observer)])
            skill = 0.3 + 0.5 * rng.random()
            rows += [
                row
                for row in _rows(name, per_category, skill, rng, observer, kind)
                if not _dropped(row, drop)
            ]
    return Answers.of_rows(pd.DataFrame(rows))


def _dropped(row, drop):
    names = (row["observer"], row["dataset"], row["condition"])
    return any(names[: len(gone)] == tuple(gone) for gone in drop)


def _rows(name, per_category, skill, rng, observer, kind):
    for condition in DATASETS[name].conditions:
        for at, category in enumerate(CATEGORIES):
            for number in range(per_category):
                texture = CATEGORIES[(at + 1 + number) % 16]
                stem = (
                    f"{category}{number}-{texture}1"
                    if name == CUE_CONFLICT
                    else f"{condition.name}-{category}{number}"
                )
                other = "na" if kind == "human" else CATEGORIES[rng.integers(16)]
                response = category if rng.random() < skill else (texture, other)[rng.integers(2)]
                entry = dict(
                    observer=observer,
                    kind=kind,
                    dataset=name,
                    condition=condition.name,
                    category=category,
                )
                yield entry | {"image": f"{stem}.png", "response": response}
