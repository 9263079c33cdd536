#!/bin/sh
# open_clip_train's CSV data set trains on other captions than the table holds, without a word, for ordinary captions:
#   - a caption that begins with a quotation mark takes in every row up to the next one that ends with a mark;
#   - marks around the first words of a caption are dropped;
#   - the captions "None", "NA" and "null", and an empty one, become the word "nan".
# Its table is read by pandas.read_csv with defaults: quoting, and missing values that str() then spells out. No option of
# open_clip_train's command line changes either. The class is run as published, with pandas alone (torch is not needed to read).
#
# Seen with open_clip_torch 3.3.0 and pandas 3.0.0 (Python 3.11):
#   9 rows written, 7 captions read:
#   'Sunset over the hills\n1.png\ta red square\n2.png\tbridge at night'
#   'Golden Gate at dawn'
#   'a blue circle'
#   'nan'
#   'nan'
#   'nan'
#   'nan'
# Exits with 0 if it is still so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.0.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import ast, logging, sysconfig
from pathlib import Path

import pandas as pd

source = (Path(sysconfig.get_path("purelib")) / "open_clip_train" / "data.py").read_text()
(node,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "CsvDataset"]
names = {"Dataset": object, "logging": logging, "pd": pd}
exec(compile(ast.Module([node], []), "open_clip_train/data.py", "exec"), names)

written = ['"Sunset over the hills', "a red square", 'bridge at night"', '"Golden Gate" at dawn', "a blue circle"]
written += ["None", "NA", "null", ""]
table = "filepath\ttitle\n" + "".join(f"{i}.png\t{caption}\n" for i, caption in enumerate(written))
Path("pairs.tsv").write_text(table)
read = names["CsvDataset"]("pairs.tsv", None, "filepath", "title")
# What __getitem__ gives to the tokenizer.
captions = [str(caption) for caption in read.captions]
print(f"{len(written)} rows written, {len(captions)} captions read:")
print(*map(repr, captions), sep="\n")
joined = "Sunset over the hills\n1.png\ta red square\n2.png\tbridge at night"
assert captions == [joined, "Golden Gate at dawn", "a blue circle", "nan", "nan", "nan", "nan"], "the behaviour has changed"
END
