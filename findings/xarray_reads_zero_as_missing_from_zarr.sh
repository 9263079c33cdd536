#!/bin/sh
# xarray 2026.9.0 with zarr 3.1.6: whole numbers that zarr wrote to a store of format 2 come back from
# open_zarr as floats, with NaN in place of every 0. Stores of format 3 come back as written.
#
# Expected: the numbers. The fill value of format 2, which zarr sets to 0 by itself, is taken for a mark
# of missing values, and a mean leaves those out: of labels, of counts, of answers that are right (1) or
# wrong (0), whose accuracy becomes 1. mask_and_scale=False reads them as written.
# Output seen:
#   format 2: written [0, 1, 1, 0], read [nan, 1.0, 1.0, nan], mean 1.0
#   format 3: written [0, 1, 1, 0], read [0, 1, 1, 0], mean 0.5
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet xarray==2026.9.0 zarr==3.1.6 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'P'
import tempfile

import numpy as np
import xarray
import zarr

RIGHT = np.array([0, 1, 1, 0])
seen = {}
for version in (2, 3):
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=version)
        names = {} if version == 2 else {"dimension_names": ["row"]}
        array = group.create_array("right", data=RIGHT, **names)
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = ["row"]
        read = xarray.open_zarr(folder, consolidated=False).right.load()
    seen[version] = float(read.mean())
    print(f"  format {version}: written {RIGHT.tolist()}, read {read.values.tolist()}, mean {seen[version]}")
raise SystemExit(seen != {2: 1.0, 3: 0.5})
P
