"""The record of the settings with which an output folder's pictures were made.

So a resumed run makes the same ones. OUTPUT/distort.json holds, for every set, the settings on
which the pixels or names of its pictures depend.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.errors import DataError
from landscape.files import read_regular, write_atomically

RECORD_FILE = "distort.json"
_VERSION = 1
_LARGEST = 2**20

Settings = Mapping[str, Any]


def check_record(output: Path, wanted: Mapping[str, Settings]) -> dict[str, Settings]:
    """Compare the settings of each set with those of its stored pictures.

    Args:
        wanted: Settings of each set that is about to be made.

    Returns:
        The record to write: what is known of other sets, and what is wanted.

    Raises:
        DataError: If a set has pictures that were made with other settings, or with settings that
            are not recorded.
    """
    known = _read(output / RECORD_FILE)
    for name, settings in wanted.items():
        if not (output / name).exists():
            continue
        if name not in known:
            raise DataError(
                f"{output / name}: there is such a folder, but {RECORD_FILE} beside it does not "
                "say what its pictures were made with, and two kinds would be mixed. Choose "
                "another output, or remove it."
            )
        differing = [
            key
            for key in sorted({*settings, *known[name]})
            if settings.get(key) != known[name].get(key)
        ]
        if differing:
            key = differing[0]
            raise DataError(
                f"{output / name}: its pictures were made with {key} {known[name].get(key)}, now "
                f"it is {settings.get(key)}, and both would be mixed. Choose another output, or "
                "remove it."
            )
    return known | dict(wanted)


def write_record(output: Path, sets: Mapping[str, Settings]) -> None:
    """Write the record.

    Raises:
        OSError: If it cannot be written.
    """
    content = json.dumps({"version": _VERSION, "sets": sets}, indent=2, sort_keys=True) + "\n"
    write_atomically(output / RECORD_FILE, content.encode())


def _read(path: Path) -> dict[str, Settings]:
    try:
        document = json.loads(read_regular(path, largest=_LARGEST))
        sets = document["sets"]
        if document["version"] != _VERSION or not all(
            isinstance(settings, dict) for settings in sets.values()
        ):
            raise ValueError("another version or no sets")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({' '.join(str(error).split())}), so it is unknown how the "
            "pictures beside it were "
            "made. Choose another output, or remove them all."
        ) from error
    return dict(sets)
