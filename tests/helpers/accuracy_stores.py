"""Made-up files of predictions: answers of which so many are right, and decisions about the
benchmark's stimuli.
"""

import numpy as np

from landscape.answers import CATEGORIES, Answers
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    SetPredictions,
)
from tests.helpers.random_answers import made_up
from tests.store.test_predictions import make_answers, make_set


def checkpoint_of(
    series: str, epoch: int = 25, *, label: str = "", sets=None
) -> CheckpointPredictions:
    return CheckpointPredictions(
        series=series,
        label=label or series,
        model="m",
        epoch=epoch,
        checkpoint_sha256=f"{series}{epoch}".ljust(64, "0"),
        sets=dict(sets or {}),
    )


def store_of(*checkpoints: CheckpointPredictions, sets=(), answers: bytes = b"") -> PredictionStore:
    return PredictionStore(
        sets={one.name: one for one in sets},
        checkpoints={one.key: one for one in checkpoints},
        answers=answers,
    )


def two_series(sets, first=0.8, second=0.5, *, epochs=(25,)) -> PredictionStore:
    """Two series, of whose answers to every set these shares are right."""
    checkpoints = []
    for epoch in epochs:
        for number, (name, share) in enumerate((("vit", first), ("simba", second))):
            answers = {
                one.name: make_answers(one, share_right=share, seed=1000 * number + 10 * at + epoch)
                for at, one in enumerate(sets)
            }
            checkpoints.append(
                checkpoint_of(
                    name, epoch, label={"vit": "ViT", "simba": "Simba"}[name], sets=answers
                )
            )
    return store_of(*checkpoints, sets=sets)


def exact_answers(one: PictureSet, right) -> SetPredictions:
    """Answers of which exactly these are right."""
    found = SetPredictions.empty(len(one), 2)
    wrong = (one.labels + 1) % len(one.class_names)
    first = np.where(right, one.labels, wrong)
    found.put(
        0,
        np.stack([first, np.where(right, wrong, one.labels)], axis=1),
        np.tile([0.5, 0.4], (len(one), 1)),
        {},
    )
    return found


def benchmark_store(answers: Answers, *, epoch: int = 25) -> PredictionStore:
    """The models of a table as series whose sets are the benchmark's, and its people as they
    are.
    """
    table = answers.table.astype(str)
    models = list(answers.models)
    sets, checkpoints = {}, {name: checkpoint_of(name, epoch) for name in models}
    for (dataset, condition), rows in table[table.kind == "model"].groupby(
        ["dataset", "condition"], sort=False
    ):
        pictures = rows.drop_duplicates("image")
        one = make_set(
            dataset,
            condition=condition,
            rule="imagenet16 100",
            chance=1 / 16,
            class_names=CATEGORIES,
            keys=tuple(pictures.image),
            labels=np.array([CATEGORIES.index(name) for name in pictures.category], dtype=np.int32),
        )
        sets[one.name] = one
        for name in models:
            said = rows[rows.observer == name].set_index("image").response
            found = SetPredictions.empty(len(one), 1)
            for at, key in enumerate(one.keys):
                if key in said.index:
                    found.put(at, np.array([[CATEGORIES.index(said[key])]]), np.array([[1.0]]), {})
            if found.done.any():
                checkpoints[name].sets[one.name] = found
    people = answers.only(models=())
    content = people.table.to_csv(index=False).encode() if len(people) else b""
    return PredictionStore(
        sets=sets, checkpoints={one.key: one for one in checkpoints.values()}, answers=content
    )


def small_benchmark(**options) -> PredictionStore:
    return benchmark_store(made_up(**options))
