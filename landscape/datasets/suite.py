"""The 26 labelled sets of Table 1 (arXiv 2404.19394), and OpenMoji.

For each there are identifiers, splits, metrics, and names that are facts. Splits, metrics and
numbers of classes are those of SLIP's evaluation, whose protocol the paper follows; the numbers of
pictures are those of the official splits. Names of small label sets and short prompts are here;
long lists come from elsewhere, see `landscape.datasets.sources`.
"""

from dataclasses import dataclass
from functools import cached_property

from landscape.datasets import spellings
from landscape.datasets.countries import COUNTRIES
from landscape.datasets.spellings import first_of_each, split_names

AT_CHANCE = "At chance for every published model, so it says little about which is better."
_NOT_REBUILT = "The split of the published numbers cannot be rebuilt"


@dataclass(frozen=True)
class KnownSet:
    """A labelled set that the project knows by name.

    Attributes:
        identifier: The name that SLIP's files use, or "openmoji/...".
        aliases: Names in clip-benchmark, torchvision and VISSL.
        split: Split of the published numbers.
        metric: "top1", "mean_per_class", "top1_top5" (their mean) or "roc_auc".
        num_classes, num_pictures: Sizes of the split; None where they depend on the data there.
        chance: Chance level of the metric, between 0 and 1; None where it depends on the number of
            classes there.
        notes: What a reader of a number has to know, a sentence each.
        names: Synonyms of each class, where these are facts that may be listed here.
        templates: The paper's prompts, where they are short.
        same: Groups of spellings that name one class, in any order; folder names among them.
        ids: Numbers or codes that name each class, in the order of every published list of its
            names.
        may_lack: Classes (by their words) that a copy of the set may leave out.
    """

    identifier: str
    title: str
    aliases: tuple[str, ...]
    split: str
    metric: str
    num_classes: int | None
    num_pictures: int | None
    notes: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], ...] = ()
    templates: tuple[str, ...] = ()
    same: tuple[tuple[str, ...], ...] = ()
    ids: tuple[tuple[str, ...], ...] = ()
    may_lack: tuple[str, ...] = ()

    @cached_property
    def chance(self) -> float | None:
        if self.metric == "roc_auc":
            return 0.5
        if self.num_classes is None:
            return None
        return (3 if self.metric == "top1_top5" else 1) / self.num_classes


SUITE: tuple[KnownSet, ...] = (
    KnownSet(
        "food101",
        "Food-101",
        ("Food101",),
        "test",
        "top1",
        101,
        25_250,
        templates=("a photo of {}, a type of food.",),
    ),
    KnownSet(
        "cifar10",
        "CIFAR-10",
        ("vtab/cifar10",),
        "test",
        "top1",
        10,
        10_000,
        names=split_names(spellings.CIFAR10),
    ),
    KnownSet("cifar100", "CIFAR-100", ("vtab/cifar100",), "test", "top1", 100, 10_000),
    KnownSet(
        "cub200",
        "CUB",
        ("cub", "CUB_200_2011", "vtab/cub"),
        "val",
        "top1",
        200,
        None,
        notes=(
            f"{_NOT_REBUILT}: which pictures it held is stated nowhere (the official test list has "
            "5,794).",
        ),
        templates=("a photo of a {}, a type of bird.",),
    ),
    KnownSet(
        "sun397",
        "SUN397",
        ("SUN397",),
        "test",
        "top1",
        397,
        None,
        notes=(f"{_NOT_REBUILT}: it follows the order in which one disk listed its files.",),
        templates=("a photo of a {}.", "a photo of the {}."),
    ),
    KnownSet("cars", "Cars", ("StanfordCars", "stanford_cars"), "test", "top1", 196, 8_041),
    KnownSet(
        "aircraft",
        "Aircraft",
        ("fgvc_aircraft", "FGVCAircraft"),
        "test",
        "mean_per_class",
        100,
        3_333,
        templates=(
            "a photo of a {}, a type of aircraft.",
            "a photo of the {}, a type of aircraft.",
        ),
    ),
    KnownSet(
        "dtd", "DTD", ("vtab/dtd",), "test", "top1", 47, 1_880, names=split_names(spellings.DTD)
    ),
    KnownSet(
        "pets",
        "Pets",
        ("OxfordIIITPet", "oxford_pets", "vtab/pets"),
        "test",
        "mean_per_class",
        37,
        3_669,
        templates=("a photo of a {}, a type of pet.",),
    ),
    KnownSet(
        "caltech101",
        "Caltech-101",
        ("Caltech101", "vtab/caltech101"),
        "test",
        "mean_per_class",
        102,
        None,
        notes=(f"{_NOT_REBUILT}: it follows the order in which one disk listed its files.",),
        same=spellings.CALTECH,
        may_lack=("background",),
    ),
    KnownSet(
        "flowers",
        "Flowers",
        ("Flowers102", "vtab/flowers", "oxford_flowers"),
        "test",
        "mean_per_class",
        102,
        6_149,
        templates=("a photo of a {}, a type of flower.",),
        same=spellings.FLOWERS,
        ids=tuple((str(number),) for number in range(1, 103)),
    ),
    KnownSet(
        "mnist",
        "MNIST",
        (),
        "test",
        "top1",
        10,
        10_000,
        notes=(AT_CHANCE,),
        names=split_names("0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        templates=('a photo of the number: "{}".',),
        same=tuple((str(digit), spellings.DIGITS[digit]) for digit in range(10)),
    ),
    KnownSet(
        "fer2013",
        "FER-2013",
        ("FER2013", "facial_emotion_recognition"),
        "test",
        "top1",
        7,
        7_178,
        names=split_names(
            "angry, disgusted, fearful, happy/smiling, neutral/bored, sad/depressed, "
            "surprised/shocked/spooked"
        ),
        same=spellings.FER,
    ),
    KnownSet(
        "stl10",
        "STL-10",
        ("STL10",),
        "test",
        "top1",
        10,
        8_000,
        names=split_names(spellings.STL10),
        templates=("a photo of a {}.", "a photo of the {}."),
    ),
    KnownSet(
        "eurosat",
        "EuroSAT",
        ("vtab/eurosat",),
        "val",
        "top1",
        10,
        5_000,
        names=first_of_each(spellings.EUROSAT),
        templates=(
            "a centered satellite photo of {}.",
            "a centered satellite photo of a {}.",
            "a centered satellite photo of the {}.",
        ),
        same=spellings.EUROSAT,
    ),
    KnownSet("resisc45", "RESISC45", ("vtab/resisc45",), "test", "top1", 45, 6_300),
    KnownSet(
        "gtsrb",
        "GTSRB",
        (),
        "test",
        "top1",
        43,
        12_630,
        names=tuple((name.strip(),) for name in spellings.GTSRB.split(",")),
        templates=(
            'a zoomed in photo of a "{}" traffic sign.',
            'a centered photo of a "{}" traffic sign.',
            'a close up photo of a "{}" traffic sign.',
        ),
        ids=tuple((f"{number:05d}", str(number)) for number in range(43)),
    ),
    KnownSet(
        "kitti_distance",
        "KITTI",
        ("kitti", "vtab/kitti_closest_vehicle_distance", "kitti_closest_vehicle_distance"),
        "val",
        "top1",
        4,
        1_496,
        notes=(f"{_NOT_REBUILT}: it was drawn without a seed.",),
        names=first_of_each(spellings.KITTI),
        templates=("{}",),
        same=spellings.KITTI,
    ),
    KnownSet(
        "country211",
        "Country211",
        ("Country211",),
        "test",
        "top1",
        211,
        21_100,
        names=tuple((name,) for _, name in COUNTRIES),
        ids=tuple((code,) for code, _ in COUNTRIES),
    ),
    KnownSet(
        "patch_camelyon",
        "PCAM",
        ("PCAM", "vtab/pcam", "pcam", "vtab/patch_camelyon"),
        "val",
        "top1",
        2,
        32_768,
        notes=(
            AT_CHANCE,
            "The published numbers were made on pictures that were saved again as JPEG.",
        ),
        names=first_of_each(spellings.PCAM),
        templates=("this is a photo of {}",),
        same=spellings.PCAM,
    ),
    KnownSet("ucf101_frames", "UCF101", ("ucf101", "UCF101"), "val", "top1", 101, 3_783),
    KnownSet(
        "kinetics700_frames",
        "Kinetics700",
        ("kinetics700", "Kinetics"),
        "val",
        "top1_top5",
        700,
        None,
    ),
    KnownSet(
        "clevr_counts",
        "CLEVR",
        ("clevr", "CLEVRClassification", "vtab/clevr_count_all", "clevr_count_all"),
        "val",
        "top1",
        8,
        15_000,
        notes=(AT_CHANCE,),
        names=first_of_each(spellings.CLEVR),
        templates=("a photo of {} objects.",),
        same=spellings.CLEVR,
    ),
    KnownSet(
        "hateful_memes",
        "HatefulMemes",
        ("HatefulMemes",),
        "dev",
        "roc_auc",
        2,
        500,
        notes=(AT_CHANCE,),
        names=first_of_each(spellings.MEMES),
        templates=("a {}.",),
        same=spellings.MEMES,
    ),
    KnownSet(
        "rendered_sst2",
        "SST2",
        ("RenderedSST2", "sst2", "renderedsst2"),
        "test",
        "top1",
        2,
        1_821,
        notes=(AT_CHANCE,),
        names=first_of_each(spellings.SST2),
        templates=("a {} review of a movie.",),
        same=spellings.SST2,
    ),
    KnownSet(
        "imagenet",
        "ImageNet",
        ("imagenet1k", "imagenet-1k", "ImageNet"),
        "val",
        "top1",
        1000,
        50_000,
    ),
)

_DRAWINGS = ("a drawing of a {}.", "a drawing of {}.", "an emoji of a {}.", "an emoji of {}.")


def _openmoji(task: str, title: str) -> KnownSet:
    notes = ("Drawings, not photographs; the classes are Unicode's.",)
    return KnownSet(
        f"openmoji/{task}",
        title,
        (),
        "held_out",
        "top1",
        None,
        None,
        notes=notes,
        templates=_DRAWINGS,
    )


OPENMOJI_SETS: tuple[KnownSet, ...] = (
    _openmoji("group", "OpenMoji groups"),
    _openmoji("subgroup", "OpenMoji subgroups"),
    _openmoji("name", "OpenMoji names"),
)


def find_set(name: str) -> KnownSet | None:
    """Find a known set by identifier, title or alias, in any case."""
    wanted = _plain(name)
    for known in (*SUITE, *OPENMOJI_SETS):
        if wanted in {
            _plain(spelling) for spelling in (known.identifier, known.title, *known.aliases)
        }:
            return known
    return None


def _plain(name: str) -> str:
    return name.lower().removeprefix("wds/").replace("-", "").replace("_", "")
