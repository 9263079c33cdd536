"""Curvature batches and training batches, against hashlib, torchvision, open_clip's loop, and the
state of global generators.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from landscape.clip.image_text import (
    EpochSampler,
    PairsFromDataset,
    TrainingPairs,
    curvature_batches,
    epoch_loader,
    open_pairs,
)
from landscape.clip.recipes import training_transform
from landscape.clip.seeding import draw_without_replacement
from landscape.errors import DataError
from landscape.manifest import DataSettings
from tests.helpers.small_openmoji import SIZE, openmoji, openmoji_cache

TOKENIZER = open_clip.get_tokenizer("ViT-B-32")


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    monkeypatch.setenv("LANDSCAPE_CACHE", str(openmoji_cache()))


def emoji_pairs(split="train"):
    return open_pairs(
        DataSettings(source="openmoji", split=split, image_size=SIZE, num_samples=30, batch_size=15)
    )


def plain(mean=0.5, std=0.25, size=SIZE):
    return open_clip.image_transform(size, is_train=False, mean=(mean,) * 3, std=(std,) * 3)


def augmented():
    return training_transform("clip_mamba", SIZE, (0.5,) * 3, (0.25,) * 3)


def batches_of(pairs, **options):
    defaults = {
        "num_samples": 30,
        "batch_size": 15,
        "seed": 0,
        "transform": plain(),
        "tokenizer": TOKENIZER,
    }
    return curvature_batches(pairs, **{**defaults, **options})


def sha256_of_pair(image, caption):
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    return hashlib.sha256(
        f"RGB {width} {height}\n".encode() + pixels.tobytes() + f"\ncaption {caption}".encode()
    ).digest()


class Pictures:
    """A data set as a user writes one; counts what is read."""

    def __init__(self, items):
        self.items = items
        self.reads = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


def noise(count, size=8):
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Pictures([(Image.fromarray(pixels[i]), f"picture {i}") for i in range(count)])


def global_states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_openmoji_splits_follow_sha256_of_name_and_caption_and_train_suffices():
    arrays = openmoji()
    captions = {"train": [], "held_out": []}
    for name, caption in zip(arrays.names, arrays.captions):
        number = int(hashlib.sha256(f"{name}\t{caption}".encode()).hexdigest()[:16], 16)
        captions["held_out" if number % 10 == 0 else "train"].append(caption)
    for split in ("train", "held_out"):
        pairs = emoji_pairs(split)
        assert [pairs[i][1] for i in range(len(pairs))] == captions[split]
    assert len(captions["train"]) >= 3000 and 300 <= len(captions["held_out"]) <= 500
    assert emoji_pairs("all").digest == arrays.digest
    assert len({emoji_pairs(split).digest for split in ("train", "held_out", "all")}) == 3


def test_a_split_digest_is_sha256_over_its_own_pixels_names_and_captions():
    arrays, pairs = openmoji(), emoji_pairs("held_out")
    names = dict(zip(arrays.captions, arrays.names))
    by_hand = hashlib.sha256(f"{len(pairs)} {SIZE} {SIZE}\n".encode())
    for image, caption in (pairs[i] for i in range(len(pairs))):
        by_hand.update(np.asarray(image).tobytes() + f"{names[caption]}\t{caption}\n".encode())
    assert pairs.digest == by_hand.hexdigest()


def test_the_protocol_gives_200_batches_of_15_distinct_pairs_and_reads_none_before_it_is_asked():
    data = noise(3100, size=1)
    batches = batches_of(PairsFromDataset(data), num_samples=3000)
    assert len(batches) == 200 and len(set(batches.indices)) == 3000 and data.reads == 0
    batches_of(PairsFromDataset(data), num_samples=3000, transform=plain(size=1))[7]
    assert data.reads == 15


def test_a_batch_holds_the_transformed_pictures_and_the_tokens_of_the_drawn_pairs():
    pairs = emoji_pairs()
    batches = batches_of(pairs)
    batch = batches[1]
    for row, index in enumerate(batches.indices[15:]):
        image, caption = pairs[index]
        # ToTensor scales bytes to [0, 1], then (x - 0.5) / 0.25; at its own size a picture is not
        # resampled.
        expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.25
        torch.testing.assert_close(batch["image"][row], expected, rtol=0, atol=1e-6)
        assert batch["text"][row].tolist() == TOKENIZER([caption])[0].tolist()
    assert batch["image"].shape == (15, 3, SIZE, SIZE) and batch["text"].dtype == torch.int64
    assert (batches[-1]["image"] == batch["image"]).all() and len(list(batches)) == 2
    with pytest.raises(IndexError):
        batches[2]


def test_the_drawn_pairs_depend_on_the_seed_and_not_on_the_architecture():
    pairs = emoji_pairs()
    small = batches_of(pairs)
    short = open_clip.get_tokenizer("ViT-B-32", context_length=20)
    other = batches_of(pairs, transform=plain(mean=0.1, size=48), tokenizer=short)
    assert other[0]["image"].shape[-1] == 48 and other[0]["text"].shape[-1] == 20
    assert other.indices == small.indices
    assert [other.digest(i) for i in range(2)] == [small.digest(i) for i in range(2)]
    assert other.protocol_digest == small.protocol_digest
    assert batches_of(pairs, seed=1).indices != small.indices


def test_more_samples_add_batches_at_the_end_and_change_none():
    pairs = emoji_pairs()
    few, many = batches_of(pairs, num_samples=30), batches_of(pairs, num_samples=60)
    assert many.indices[:30] == few.indices and many.digest(1) == few.digest(1)


def test_a_batch_digest_is_sha256_of_raw_pixels_captions_and_augmentation():
    pairs = emoji_pairs()
    batches = batches_of(pairs)
    line = b'{"augmentation": "none", "augmentation_seed": null, "indices": null}\n'
    by_hand = hashlib.sha256(line)
    for index in batches.indices[15:30]:
        by_hand.update(sha256_of_pair(*pairs[index]))
    assert batches.digest(1) == by_hand.hexdigest()

    random_ones = batches_of(
        pairs, transform=augmented(), augmentation="clip_mamba", augmentation_seed=5
    )
    line = {
        "augmentation": "clip_mamba",
        "augmentation_seed": 5,
        "indices": list(batches.indices[15:30]),
    }
    by_hand = hashlib.sha256(json.dumps(line).encode() + b"\n")
    for index in batches.indices[15:30]:
        by_hand.update(sha256_of_pair(*pairs[index]))
    assert random_ones.digest(1) == by_hand.hexdigest()


def test_the_protocol_digest_tells_every_setting_apart():
    pairs = emoji_pairs()
    augmentation = {"augmentation": "clip_mamba", "transform": augmented()}
    variants = [
        batches_of(pairs),
        batches_of(pairs, seed=1),
        batches_of(pairs, num_samples=60),
        batches_of(pairs, batch_size=10),
        batches_of(pairs, augmentation_seed=0, **augmentation),
        batches_of(pairs, augmentation_seed=1, **augmentation),
        batches_of(pairs, augmentation_seed=1, augmentation="slip_clip"),
        batches_of(emoji_pairs("held_out")),
    ]
    assert len({batches.protocol_digest for batches in variants}) == len(variants)


def test_augmented_batches_repeat_under_their_seed_and_leave_global_generators_alone():
    pairs = emoji_pairs()
    options = {"transform": augmented(), "augmentation": "clip_mamba"}
    batches = batches_of(pairs, augmentation_seed=0, **options)
    seen = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed), random.seed(global_seed), np.random.seed(global_seed)
        before = global_states()
        seen.append((batches[1]["image"], batches[0]["image"]))
        assert global_states() == before
    assert all(torch.equal(one, two) for one, two in zip(*seen))
    assert not torch.equal(
        batches_of(pairs, augmentation_seed=1, **options)[1]["image"], seen[0][0]
    )
    assert not torch.equal(batches_of(pairs)[1]["image"], seen[0][0])


def from_torch(picture):
    return torch.rand(3, 4, 4)


def from_python(picture):
    return torch.full((3, 4, 4), random.random())


def from_numpy(picture):
    return torch.full((3, 4, 4), float(np.random.random()))


@pytest.mark.parametrize("transform", [from_torch, from_python, from_numpy])
def test_a_random_transform_is_seeded_per_pair_and_refused_without_a_seed(transform):
    pairs = PairsFromDataset(noise(40))
    before = global_states()
    with pytest.raises(ValueError, match="no augmentation_seed"):
        batches_of(pairs, transform=transform)[0]
    batches = batches_of(pairs, transform=transform, augmentation="own", augmentation_seed=0)
    images = batches[0]["image"]
    assert torch.equal(images, batches[0]["image"]) and len(images[:, 0, 0, 0].unique()) == 15
    # The same pair in another batch gets the same augmentation.
    regrouped = batches_of(
        pairs, transform=transform, augmentation="own", augmentation_seed=0, batch_size=10
    )
    assert torch.equal(images[10:], regrouped[1]["image"][:5])
    assert global_states() == before


def test_an_error_in_a_transform_still_restores_the_global_generators():
    def broken(picture):
        random.random()
        raise RuntimeError("broken")

    before = global_states()
    with pytest.raises(RuntimeError, match="broken"):
        batches_of(
            PairsFromDataset(noise(30)), transform=broken, augmentation="own", augmentation_seed=0
        )[0]
    assert global_states() == before


def test_the_draw_is_uniform_and_without_replacement():
    assert sorted(draw_without_replacement(500, 500, seed=3)) == list(range(500))
    # Each of the 20 ordered pairs out of 5 is expected in 100 of 2000 draws with standard deviation
    # 9.7.
    counts = Counter(tuple(draw_without_replacement(5, 2, seed=seed)) for seed in range(2000))
    assert len(counts) == 20 and all(55 <= count <= 145 for count in counts.values())


def test_the_draw_of_seed_zero_is_pinned_so_that_stored_spectra_can_be_measured_again():
    # By hand: position = step + (sha256("draw TAB seed TAB step")[:8] >> 1) % (population - step),
    # swapped step by step.
    order = list(range(100))
    for step in range(10):
        number = int(hashlib.sha256(f"draw\t0\t{step}".encode()).hexdigest()[:16], 16) // 2
        chosen = step + number % (100 - step)
        order[step], order[chosen] = order[chosen], order[step]
    assert draw_without_replacement(100, 10, seed=0) == order[:10]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_samples": 3000}, ["asked for 3000 pairs, there are 812 in Pictures"]),
        ({"batch_size": 1}, ["batch_size is 1", "a contrastive loss over one pair is constant"]),
        ({"num_samples": 10}, ["batch_size 15 is larger than num_samples 10"]),
        (
            {"num_samples": 100},
            ["num_samples 100 is not a multiple of batch_size 15", "Take 90 samples"],
        ),
        ({"num_samples": 0}, ["at least 1"]),
    ],
)
def test_counts_that_make_no_protocol_are_refused_in_one_line(options, words):
    with pytest.raises(DataError) as caught:
        batches_of(PairsFromDataset(noise(812, size=1)), **options)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_too_many_samples_of_a_split_names_split_and_source():
    with pytest.raises(DataError, match="there are [0-9]+ in split 'held_out' of openmoji"):
        batches_of(emoji_pairs("held_out"), num_samples=3000)


def test_an_augmentation_needs_a_seed_and_a_seed_an_augmentation():
    pairs = PairsFromDataset(noise(30))
    for options in ({"augmentation": "clip_mamba"}, {"augmentation_seed": 0}):
        with pytest.raises(ValueError, match="give both, or neither"):
            batches_of(pairs, **options)


def test_pictures_of_several_sizes_that_nothing_resizes_are_refused():
    items = [(Image.new("RGB", (4 + i, 4)), "x") for i in range(2)]
    with pytest.raises(DataError, match="differ in size .*resizes"):
        batches_of(
            PairsFromDataset(Pictures(items)), num_samples=2, batch_size=2, transform=to_tensor
        )[0]


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


def test_a_classifier_data_set_gives_labels_also_one_by_one():
    images, labels = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6)
    pairs = PairsFromDataset(TensorDataset(images, labels), name="digits")
    batches = batches_of(pairs, num_samples=6, batch_size=1, transform=None, tokenizer=None)
    assert pairs.name == "digits" and set(batches[0]) == {"image", "label"}
    for i, index in enumerate(batches.indices):
        assert torch.equal(batches[i]["image"], images[index : index + 1]) and batches[i][
            "label"
        ].tolist() == [index]
    line = b'{"augmentation": "none", "augmentation_seed": null, "indices": null}\n'
    index = batches.indices[2]
    pair = hashlib.sha256(
        b"float64 1 4 4\n" + images[index].numpy().tobytes() + f"\nlabel {index}".encode()
    ).digest()
    assert batches.digest(2) == hashlib.sha256(line + pair).hexdigest()
    with pytest.raises(ValueError, match="tokenizer=None"):
        batches_of(pairs, num_samples=6, batch_size=2, transform=None)[0]
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        batches_of(PairsFromDataset(noise(4)), num_samples=4, batch_size=2, tokenizer=None)[0]


def test_byte_tensors_become_pictures_and_the_digest_of_a_data_set_covers_every_item():
    data = noise(5)
    tensors = Pictures(
        [
            (torch.from_numpy(np.array(image)).permute(2, 0, 1), caption)
            for image, caption in data.items
        ]
    )
    pairs = PairsFromDataset(tensors)
    assert (np.asarray(pairs[3][0]) == np.asarray(data.items[3][0])).all()
    assert (
        pairs.digest
        == hashlib.sha256(b"".join(sha256_of_pair(*item) for item in data.items)).hexdigest()
    )
    assert PairsFromDataset(data, digest="known").digest == "known"


@pytest.mark.parametrize(
    "item",
    [
        3,
        ("a.png", "x"),
        (Image.new("RGB", (2, 2)), ["x", "y"]),
        (torch.zeros(4), "x"),
        (torch.zeros(1, 2, 2), 0.5),
    ],
)
def test_an_item_that_is_no_pair_is_refused_by_its_index(item):
    with pytest.raises(DataError, match="Pictures, item 0: expected"):
        PairsFromDataset(Pictures([item]))[0]


def test_an_empty_or_iterable_data_set_is_refused():
    with pytest.raises(DataError, match="empty"):
        PairsFromDataset(Pictures([]))
    with pytest.raises(ValueError, match="map-style"):
        PairsFromDataset(iter([]))


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        sampler = EpochSampler(range(100), seed=seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            assert list(sampler) == list(sampler) and len(sampler) == 100
            assert {entry[0] for entry in sampler} == {epoch}
            orders[seed, epoch] = tuple(index for _, index in sampler)
            assert sorted(orders[seed, epoch]) == list(range(100))
    assert len(set(orders.values())) == 4


def test_the_batches_of_several_processes_make_up_the_batch_of_one():
    def batches(batch_size, **options):
        sampler = EpochSampler(range(50), seed=0, **options)
        sampler.set_epoch(3)
        order = list(sampler)
        return [
            set(order[i : i + batch_size])
            for i in range(0, len(order) - batch_size + 1, batch_size)
        ]

    one = batches(12)
    shares = [batches(4, rank=rank, num_replicas=3) for rank in range(3)]
    assert len(one) == 4 and all(len(share) == 4 for share in shares)
    assert [set.union(*step) for step in zip(*shares)] == one


def test_under_torchrun_each_process_takes_its_share(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(
        "import sys, torch\nfrom landscape.clip.image_text import EpochSampler\n"
        "torch.distributed.init_process_group('gloo')\nrank = torch.distributed.get_rank()\n"
        "open(f'{sys.argv[1]}/{rank}', 'w').write(' '.join(str(index) for _, index in "
        "EpochSampler(range(9), seed=0)))\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    order = [index for _, index in EpochSampler(range(9), seed=0)]
    shares = [[int(word) for word in (tmp_path / str(rank)).read_text().split()] for rank in (0, 1)]
    assert shares == [order[0:8:2], order[1:8:2]]


def test_open_clips_trainer_sets_the_epoch():
    from open_clip_train.data import DataInfo

    loader = epoch_loader(
        PairsFromDataset(noise(40)),
        transform=plain(size=8),
        tokenizer=TOKENIZER,
        batch_size=8,
        seed=0,
    )
    DataInfo(loader, loader.sampler).set_epoch(4)
    assert {epoch for epoch, _ in loader.sampler} == {4}


def test_training_batches_do_not_depend_on_the_number_of_workers_nor_on_what_ran_before():
    pairs = emoji_pairs("held_out")
    seen = []
    for num_workers, epochs in ((0, (0, 1)), (2, (0, 1)), (1, (1,))):
        loader = epoch_loader(
            pairs,
            transform=augmented(),
            tokenizer=TOKENIZER,
            batch_size=150,
            seed=0,
            num_workers=num_workers,
        )
        before = global_states()
        found = {}
        for epoch in epochs:
            loader.sampler.set_epoch(epoch)
            found[epoch] = list(loader)
        assert global_states() == before
        seen.append(found)
    assert len(seen[0][0]) == len(pairs) // 150 == 2
    for found in seen[1:]:
        for epoch, batches in found.items():
            assert all(
                torch.equal(a, b)
                for one, two in zip(seen[0][epoch], batches, strict=True)
                for a, b in zip(one, two)
            )


def test_a_training_item_changes_with_epoch_and_seed_only():
    pairs = emoji_pairs("held_out")
    data = TrainingPairs(pairs, augmented(), TOKENIZER, seed=0)
    assert torch.equal(data[2, 7][0], data[2, 7][0]) and torch.equal(data[7][0], data[0, 7][0])
    other_seed = TrainingPairs(pairs, augmented(), TOKENIZER, seed=1)
    images = [data[2, 7][0], data[3, 7][0], other_seed[2, 7][0]]
    assert len({image.numpy().tobytes() for image in images}) == 3
    assert data[2, 7][1].tolist() == TOKENIZER([pairs[7][1]])[0].tolist()


def test_a_training_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        DataError, match="batches of 64 pairs in each of 2 processes, there are 100 in Pictures"
    ):
        pairs = PairsFromDataset(noise(100))
        epoch_loader(
            pairs,
            transform=plain(),
            tokenizer=TOKENIZER,
            batch_size=64,
            seed=0,
            rank=0,
            num_replicas=2,
        )
