"""The file of predictions: what is written is read, what is damaged or of other pictures is
refused.
"""

import json
import math

import h5py
import numpy as np
import pytest

from landscape.errors import StoreError
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    SetPredictions,
    is_predictions,
    read_predictions,
    with_sets,
    write_predictions,
)


def make_set(
    dataset: str = "pets", *, num_classes: int = 7, num_pictures: int = 20, **facts
) -> PictureSet:
    labels = np.arange(num_pictures, dtype=np.int32) % num_classes
    standard = {
        "dataset": dataset,
        "title": dataset.title(),
        "class_names": tuple(f"class {i}" for i in range(num_classes)),
        "classes_digest": "c" * 64,
        "pictures_digest": "p" * 64,
        "sources": {"names": "made up", "num_prompts": 2},
        "notes": ("a note",),
        "keys": tuple(f"{dataset}/{i:03}.png" for i in range(num_pictures)),
        "labels": labels,
    }
    return PictureSet(**standard | facts)


def make_answers(
    one: PictureSet, *, share_right: float, seed: int, width: int = 5
) -> SetPredictions:
    """Answers of which so many are right, in float32 with every digit used."""
    generator = np.random.default_rng(seed)
    found = SetPredictions.empty(len(one), width)
    num_classes = len(one.class_names)
    for i, label in enumerate(one.labels):
        others = generator.permutation([c for c in range(num_classes) if c != label])[: width - 1]
        order = (
            [int(label), *others]
            if generator.random() < share_right
            else [*others[:1], int(label), *others[1:]]
        )
        scores = np.sort(generator.random(width).astype(np.float32))[::-1]
        found.put(i, np.array([order], dtype=np.int32), scores[None], {})
    return found


def make_store(**shares: float) -> PredictionStore:
    one, other = make_set("pets"), make_set("mnist", num_classes=5, condition="c10", chance=0.2)
    store = PredictionStore(sets={one.name: one, other.name: other})
    for number, (series, share) in enumerate((shares or {"vit": 0.8, "simba": 0.4}).items()):
        checkpoint = CheckpointPredictions(
            series=series,
            label=series.upper(),
            model=f"{series}_tiny",
            epoch=5,
            checkpoint_sha256="d" * 64,
            settings={"device": "cpu"},
        )
        checkpoint.sets[one.name] = make_answers(one, share_right=share, seed=number)
        checkpoint.sets[other.name] = make_answers(other, share_right=share, seed=10 + number)
        store.checkpoints[checkpoint.key] = checkpoint
    return store


def test_everything_that_is_written_is_read(tmp_path):
    store, path = make_store(), tmp_path / "predictions.h5"
    answers = store.checkpoints["vit", 5].sets["pets", ""]
    answers.top[3], answers.scores[3], answers.unread[3] = -1, np.nan, "truncated"
    write_predictions(path, store)
    found = read_predictions(path)
    assert is_predictions(path) and found.digest() == store.digest()
    assert list(found.sets) == list(store.sets) and list(found.checkpoints) == list(
        store.checkpoints
    )
    for name, one in store.sets.items():
        for key, value in vars(one).items():
            read = getattr(found.sets[name], key)
            same = np.array_equal(read, value) if isinstance(value, np.ndarray) else read == value
            assert same or (isinstance(value, float) and math.isnan(value) and math.isnan(read)), (
                key
            )
    again = found.checkpoints["vit", 5]
    assert (again.label, again.model, again.settings) == ("VIT", "vit_tiny", {"device": "cpu"})
    for key in ("top", "scores", "done"):
        np.testing.assert_array_equal(getattr(again.sets["pets", ""], key), getattr(answers, key))
    assert again.sets["pets", ""].unread == {3: "truncated"}


def test_the_digest_is_of_answers_alone():
    store = make_store()
    assert make_store().digest() == store.digest()
    store.checkpoints["vit", 5].settings["device"] = "an H200"  # type: ignore[index]
    assert make_store().digest() == store.digest()
    store.checkpoints["vit", 5].sets["pets", ""].scores[0, 0] += np.float32(1e-6)
    assert make_store().digest() != store.digest()


def test_no_file_is_no_store_and_another_file_is_refused(tmp_path):
    assert read_predictions(tmp_path / "none.h5") is None
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file.attrs["kind"] = "loss surface"
    with pytest.raises(StoreError, match="holds no predictions"):
        read_predictions(other)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda file: file["sets/0"].attrs.__setitem__("facts", "{"), "damaged"),
        (
            lambda file: file["sets/0/labels"].write_direct(np.full(20, 7, dtype="<i4")),
            "beyond its 7 classes",
        ),
        (
            lambda file: file["predictions/vit/5/0/top"].write_direct(
                np.full((20, 5), 7, dtype="<i4")
            ),
            "does not have",
        ),
        (lambda file: file.__delitem__("predictions/vit/5/0/scores"), "damaged"),
        (lambda file: file.attrs.__setitem__("schema_version", 2), "schema version 2"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, damage, reason):
    path = tmp_path / "predictions.h5"
    write_predictions(path, make_store())
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(StoreError, match=reason) as error:
        read_predictions(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"classes_digest": "e" * 64}, "its classes or prompts are others"),
        ({"pictures_digest": "e" * 64}, "its pictures or labels are others"),
        ({"metric": "mean_per_class"}, "its metric is another"),
        ({"rule": "imagenet16"}, "its rule is another"),
    ],
)
def test_a_set_that_is_now_another_is_refused(tmp_path, changed, reason):
    store = make_store()
    joined = with_sets(store, [make_set("pets"), make_set("food101")], path=tmp_path)
    assert list(joined.sets) == [("pets", ""), ("mnist", "c10"), ("food101", "")]
    with pytest.raises(StoreError, match=reason):
        with_sets(store, [make_set("pets", **changed)], path=tmp_path)


def test_answers_are_put_where_they_belong():
    found = SetPredictions.empty(5, 2)
    assert not found.complete and np.isnan(found.scores).all() and (found.top == -1).all()
    top, scores = (
        np.array([[1, 0], [-1, -1]], dtype=np.int32),
        np.array([[0.5, 0.25], [np.nan, np.nan]], dtype=np.float32),
    )
    found.put(2, top, scores, {1: "cut"})
    assert found.done.tolist() == [False, False, True, True, False] and found.unread == {3: "cut"}
    assert found.top[2].tolist() == [1, 0] and json.dumps(found.scores[2].tolist()) == "[0.5, 0.25]"
