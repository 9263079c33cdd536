"""Sets in torchvision's folders, read offline (download=False) by its classes.

Their labels have the meaning that each class gives them: CLEVR's is the number of objects,
FER-2013's the CSV's numbering, PCAM's file of split "val" says "valid". Caltech-101 is read as
class folders, for torchvision drops its background; so is ImageNet, which torchvision refuses
without the development kit. KITTI's distances are computed here.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.clip.pair_files import PictureFile
from landscape.datasets.folders import choose_range, read_folders
from landscape.datasets.labelled import PictureArrays, PictureFiles, RawPictures, array_row
from landscape.datasets.suite import KnownSet
from landscape.errors import DataError

FER_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# Metres to the nearest vehicle in front of the camera; a distance beyond the last is above_20.
KITTI_LIMITS = (0.0, 8.0, 20.0)
KITTI_LABELS = ("no_vehicle", "below_8", "below_20", "above_20")
_KITTI_VEHICLES = ("Car", "Van", "Truck")
# A function of the root and the split.
Reader = Callable[[Path, str], RawPictures]


@dataclass(frozen=True)
class _Layout:
    """Torchvision's place of a set, and its reader.

    Attributes:
        markers: Files or folders below the root, one of which has to be there; "{split}" stands for
            the split.
        read: Indexes the set.
        splits: Split names of the class that differ from the project's.
    """

    markers: tuple[str, ...]
    read: Reader
    splits: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        return self.markers[0].split("/")[0]


def find_root(known: KnownSet, path: Path) -> Path | None:
    """Find the root that torchvision's class expects: `path` or its parent."""
    layout = _LAYOUTS.get(known.identifier)
    if layout is None:
        return None
    if (path / layout.folder).is_dir():
        return path
    if path.name == layout.folder and any(
        (path.parent / marker.split("{")[0]).exists() for marker in layout.markers
    ):
        return path.parent
    return None


def read_torchvision(known: KnownSet, root: Path, split: str) -> RawPictures:
    """Read a set with torchvision's class.

    Raises:
        DataError: If a file is missing or is not the official one (md5), or there is no such split.
    """
    layout = _LAYOUTS[known.identifier]
    split = "val" if split in ("valid", "validation") else split
    theirs = dict(layout.splits).get(split, split)
    markers = [marker.format(split=theirs) for marker in layout.markers]
    if not any((root / marker).exists() for marker in markers):
        raise DataError(
            f"{root}: {known.title} is expected as torchvision lays it out, with "
            f"{' or '.join(markers)}; it is not there."
        )
    try:
        return layout.read(root, theirs)
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).partition("You can")[0].strip()
        raise DataError(
            f"{root / markers[0]}: torchvision does not read {known.title}, split {theirs!r} "
            f"({type(error).__name__}: {reason[:200]}). A file is missing, or is not the official "
            "one (md5). Fetch it again."
        ) from error


def expected_at(known: KnownSet) -> str:
    """Name the path that torchvision expects; empty if it has no class."""
    layout = _LAYOUTS.get(known.identifier)
    return "" if layout is None else layout.markers[0].format(split=known.split)


def _torchvision(name: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, name)


def _files(
    root: Path,
    folder: str,
    paths: Sequence[Any],
    labels: Sequence[int],
    classes: Sequence[str],
    split: str,
    **more: Any,
) -> RawPictures:
    """List pictures in files, sorted by keys below the set's folder."""
    base = root / folder
    rows = sorted(
        (Path(path).relative_to(base).as_posix(), int(label))
        for path, label in zip(paths, labels, strict=True)
    )
    files = [
        PictureFile(key=key, caption=classes[label], path=str(base / key), where=str(base / key))
        for key, label in rows
    ]
    where = f"{base}, split {split}"
    pictures = PictureFiles(_some(files, where), source=where)
    return RawPictures(
        pictures, [label for _, label in rows], tuple(classes), where=where, split=split, **more
    )


def _some(files: list[PictureFile], where: str) -> list[PictureFile]:
    if not files:
        raise DataError(f"{where}: there is no picture. Fetch the set again.")
    return files


def _arrays(
    root: Path,
    folder: str,
    array: Callable[[int], np.ndarray],
    labels: Any,
    classes: Sequence[str],
    split: str,
    **more: Any,
) -> RawPictures:
    """List pictures within larger files, named by their number."""
    where, numbers = f"{root / folder}, split {split}", [int(label) for label in labels]
    keys = tuple(f"{split}/{i:06d}" for i in range(len(numbers)))
    return RawPictures(
        PictureArrays(keys, array, where=where),
        numbers,
        tuple(classes),
        where=where,
        split=split,
        **more,
    )


def _listed(name: str, folder: str, *, files: str = "_image_files", **options: Any) -> Reader:
    """Make a reader for classes that list files, labels and class names."""

    def read(root: Path, split: str) -> RawPictures:
        data = _torchvision(name)(root, split=split, **options)
        return _files(
            root,
            folder,
            getattr(data, files),
            data._labels,
            data.classes,
            split,
            classes_are_named=True,
        )

    return read


def _sampled(
    name: str, folder: str, attribute: str, classes: Sequence[str] | None = None
) -> Reader:
    """Make a reader for classes that list (file, label)."""

    def read(root: Path, split: str) -> RawPictures:
        data = _torchvision(name)(root, split=split)
        paths, labels = zip(*getattr(data, attribute))
        named = classes if classes is not None else data.classes
        return _files(root, folder, paths, labels, named, split, classes_are_named=classes is None)

    return read


def _cifar(name: str, folder: str) -> Reader:
    def read(root: Path, split: str) -> RawPictures:
        data = _torchvision(name)(root, train=_is_train(split))
        return _arrays(
            root,
            folder,
            partial(array_row, data.data),
            data.targets,
            data.classes,
            split,
            classes_are_named=True,
        )

    return read


def _is_train(split: str) -> bool:
    if split not in ("train", "test"):
        raise ValueError(f"there is no split {split!r}, only train and test")
    return split == "train"


def _mnist(root: Path, split: str) -> RawPictures:
    data = _torchvision("MNIST")(root, train=_is_train(split))
    digits = [str(digit) for digit in range(10)]
    return _arrays(
        root,
        "MNIST",
        partial(array_row, data.data.numpy()),
        data.targets,
        digits,
        split,
        classes_are_named=True,
    )


def _stl10(root: Path, split: str) -> RawPictures:
    data = _torchvision("STL10")(root, split=split)
    pixels = np.transpose(data.data, (0, 2, 3, 1))
    return _arrays(
        root,
        "stl10_binary",
        partial(array_row, pixels),
        data.labels,
        data.classes,
        split,
        classes_are_named=True,
    )


def _fer2013(root: Path, split: str) -> RawPictures:
    data = _torchvision("FER2013")(root, split=split)
    labels = [label for _, label in data._samples]
    if None in labels:
        raise DataError(
            f"{root / 'fer2013'}: test.csv gives no labels. Put fer2013.csv or icml_face_data.csv "
            "there, which hold both splits."
        )
    notes = (
        ("Split test is the public and the private test pictures together.",)
        if split == "test"
        else ()
    )
    pixels = np.stack([picture.numpy() for picture, _ in data._samples])
    return _arrays(
        root, "fer2013", partial(array_row, pixels), labels, FER_LABELS, split, notes=notes
    )


def _pcam(root: Path, split: str) -> RawPictures:
    import h5py

    data = _torchvision("PCAM")(root, split=split)
    pictures, targets = (
        data._base_folder / data._FILES[split][kind][0] for kind in ("images", "targets")
    )
    with h5py.File(targets) as file:
        labels = file["y"][:, 0, 0, 0]
    return _arrays(
        root, "pcam", partial(_pcam_picture, pictures), labels, ("no_tumor", "tumor"), split
    )


def _pcam_picture(path: Path, i: int) -> np.ndarray:
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["x"][i])


def _clevr(root: Path, split: str) -> RawPictures:
    data = _torchvision("CLEVRClassification")(root, split=split)
    if None in data._labels:
        raise DataError(
            f"{root / 'clevr'}: split {split!r} of CLEVR has no labels. Choose train or val."
        )
    counts = sorted(set(data._labels))
    labels = [counts.index(count) for count in data._labels]
    return _files(
        root, "clevr/CLEVR_v1.0", data._image_files, labels, [str(count) for count in counts], split
    )


def _flowers(root: Path, split: str) -> RawPictures:
    data = _torchvision("Flowers102")(root, split=split)
    numbers = [str(number) for number in range(1, 103)]
    return _files(root, "flowers-102", data._image_files, data._labels, numbers, split)


def _sun397(root: Path, split: str) -> RawPictures:
    data = _torchvision("SUN397")(root)
    names = [name.replace("/", " ") for name in data.classes]
    note = "torchvision knows no splits of SUN397: all its pictures are used."
    return _files(
        root,
        "SUN397",
        data._image_files,
        data._labels,
        names,
        "all",
        notes=(note,),
        classes_are_named=True,
    )


def _eurosat(root: Path, split: str) -> RawPictures:
    parts = {"train": (0, 1000), "val": (1000, 1500)}
    choose = None
    if split in parts:
        first, end = parts[split]
        note = (
            f"Split {split!r} by VISSL's rule: of each class's sorted file names, numbers {first} "
            f"to {end - 1} from 0."
        )
        choose = choose_range(first, end, note)
    elif split != "all":
        raise ValueError(f"there is no split {split!r}, only train, val and all")
    raw = read_folders(root / "eurosat" / "2750", split=None, default_split=None, choose=choose)
    return replace(raw, split=split)


def _caltech101(root: Path, split: str) -> RawPictures:
    return read_folders(
        root / "caltech101" / "101_ObjectCategories", split=None, default_split=split
    )


def _kitti(root: Path, split: str) -> RawPictures:
    """Index KITTI's training pictures by the distance to the nearest vehicle."""
    base = root / "Kitti" / "raw" / "training"
    pictures = sorted((base / "image_2").glob("*.png"))
    labels = [
        kitti_label((base / "label_2" / f"{picture.stem}.txt").read_text()) for picture in pictures
    ]
    note = "All training pictures are used: the published split was drawn without a seed."
    return _files(root, "Kitti/raw/training", pictures, labels, KITTI_LABELS, "all", notes=(note,))


def kitti_label(text: str) -> int:
    """Compute the index into `KITTI_LABELS` from the text of a label file.

    A line has the type first and the camera's z in metres fourteenth. Source of the limits: VTAB
    and VISSL.

    Raises:
        ValueError: If a line is no KITTI label.
    """
    distances = []
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] in _KITTI_VEHICLES:
            if len(fields) < 15:
                raise ValueError(f"expected 15 fields of a label, got {line[:60]!r}")
            distances.append(float(fields[13]))
    return bisect_left(KITTI_LIMITS, min(distances, default=float("-inf")))


_VALID = (("val", "valid"),)
_LAYOUTS: dict[str, _Layout] = {
    "food101": _Layout(("food-101/meta/{split}.json",), _listed("Food101", "food-101")),
    "cifar10": _Layout(("cifar-10-batches-py",), _cifar("CIFAR10", "cifar-10-batches-py")),
    "cifar100": _Layout(("cifar-100-python",), _cifar("CIFAR100", "cifar-100-python")),
    "sun397": _Layout(("SUN397/ClassName.txt",), _sun397),
    "cars": _Layout(
        ("stanford_cars/devkit/cars_meta.mat",),
        _sampled("StanfordCars", "stanford_cars", "_samples"),
    ),
    "aircraft": _Layout(
        ("fgvc-aircraft-2013b/data/variants.txt",),
        _listed("FGVCAircraft", "fgvc-aircraft-2013b/data", annotation_level="variant"),
    ),
    "dtd": _Layout(("dtd/dtd/labels",), _listed("DTD", "dtd/dtd", partition=1)),
    "pets": _Layout(
        ("oxford-iiit-pet/annotations",),
        _listed("OxfordIIITPet", "oxford-iiit-pet", files="_images"),
        (("train", "trainval"),),
    ),
    "caltech101": _Layout(("caltech101/101_ObjectCategories",), _caltech101),
    "flowers": _Layout(("flowers-102/setid.mat",), _flowers),
    "mnist": _Layout(("MNIST/raw",), _mnist),
    "fer2013": _Layout(
        tuple(f"fer2013/{name}" for name in ("fer2013.csv", "icml_face_data.csv", "test.csv")),
        _fer2013,
    ),
    "stl10": _Layout(("stl10_binary",), _stl10),
    "eurosat": _Layout(("eurosat/2750",), _eurosat),
    "gtsrb": _Layout(
        ("gtsrb/GT-final_test.csv",),
        _sampled("GTSRB", "gtsrb/GTSRB", "_samples", [f"{number:05d}" for number in range(43)]),
    ),
    "country211": _Layout(
        ("country211/{split}",), _sampled("Country211", "country211", "samples"), _VALID
    ),
    "patch_camelyon": _Layout(("pcam/camelyonpatch_level_2_split_valid_x.h5", "pcam"), _pcam),
    "clevr_counts": _Layout(("clevr/CLEVR_v1.0",), _clevr),
    "rendered_sst2": _Layout(
        ("rendered-sst2",), _sampled("RenderedSST2", "rendered-sst2", "_samples")
    ),
    "kitti_distance": _Layout(("Kitti/raw/training/label_2",), _kitti),
}
