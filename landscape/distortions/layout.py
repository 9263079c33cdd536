"""Names of distorted pictures, with the folders and fields of model-vs-human.

Sets of several levels are
`<set>/dnn/session-1/0000_<experiment>_dnn_<level>_<category>_00_<key>.png`, sets of one level
`<set>/<category>/<key>.png`. Fields are split at "_", so within category and key "%", "/" and "_"
are written %25, %2F and %5F; `urllib.parse.unquote` reads them. The first field, the number of a
trial, is 0000: otherwise its value would change whenever a picture is added or removed.
"""

import os
from pathlib import Path

from landscape.distortions.levels import Level
from landscape.distortions.registry import Kind
from landscape.distortions.sources import SourcePicture
from landscape.errors import DataError

# The limit of file systems, less the ending of a temporary name.
_LONGEST_NAME = 255 - len("..tmp")


def escaped(name: str) -> str:
    """Write a name as one field of a file name."""
    return name.replace("%", "%25").replace("/", "%2F").replace("_", "%5F")


def relative_path(kind: Kind, level: Level, picture: SourcePicture, suffix: str) -> Path:
    """Return the path of a distorted picture below the output folder.

    Raises:
        DataError: If its name is longer than a file's can be.
    """
    category, key = escaped(picture.category), escaped(picture.key)
    if kind.is_parametric:
        folder = Path(kind.name, "dnn", "session-1")
        name = f"0000_{kind.experiment}_dnn_{level.text}_{category}_00_{key}.{suffix}"
    else:
        folder, name = Path(kind.name, category), f"{key}.{suffix}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise DataError(
            f"{picture.where}: its distorted picture, {name}, would have too long a name for a "
            "file. Rename it."
        )
    return folder / name
