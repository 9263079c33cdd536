"""Ways to spoil the texts of the study: manifests, the configuration of the model, the table of
pairs.
"""

import json
import random
import re
from pathlib import Path

# As they stand in YAML.
_VALUES = (
    "",
    "~",
    "true",
    "-1",
    "0",
    "1",
    "1.5",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "1e-400",
    "1e300",
    "99999999999999999999999",
    "-0",
    "[]",
    "{}",
    "[[[[1]]]]",
    "[1, a, ~]",
    "{a: {b: c}}",
    '"\\0"',
    '"\\ud800"',
    '"a\\nb"',
    "\U0001f4a5",
    "FILL_IN",
    "../../../..",
    "/dev/zero",
    "/dev/null",
    ".",
    "2024-01-01",
    "0x10",
    "1_000",
    "*x",
    "&x y",
    "!!python/object/apply:builtins.open [CANARY, w]",
    "!!binary aGVsbG8=",
    "'" + "a" * 9000 + "'",
    "[" * 40 + "]" * 40,
    "{0..999999999}.tar",
    "'x{1..9}{1..9}.tar'",
    "http://localhost/x.tar",
    "'pipe:touch CANARY'",
    "pics",
    "run",
    "tiny.json",
    "m.yaml",
    "local-dir:run",
    "hf-hub:a/b",
    "timm:resnet18",
    "ViT-B-32",
    "(",
    "'*'",
)
_KEYS = (
    "version",
    "data",
    "source",
    "split",
    "num_samples",
    "batch_size",
    "seed",
    "hessian",
    "objective",
    "parameters",
    "weight_decay",
    "k",
    "max_matvecs",
    "tol",
    "series",
    "name",
    "label",
    "config",
    "checkpoints",
    "epoch",
    "path",
)
_MORE_KEYS = {
    "data": (
        "image_size",
        "augmentation",
        "separator",
        "image_key",
        "caption_key",
        "encoding",
        "quoting",
        "on_bad_picture",
    ),
    "hessian": ("method", "which", "dtype"),
    "series": (
        "model_args",
        "preprocess",
        "num_classes",
        "loss",
        "label_smoothing",
        "weights",
        "run_files",
        "epochs",
        "from",
        "model",
    ),
    "": ("epoch_zero", "extra"),
}
_INSIDE = (
    "{force_image_size: 100000}",
    "{force_image_size: -1}",
    "{force_context_length: 1000000000}",
    "{force_quick_gelu: 3}",
    "{size: 1000000}",
    "{mean: [.nan, 0, 0]}",
    "{std: [1e-300, 1, 1]}",
    "{interpolation: random}",
    "{resize_mode: x}",
    "{a: b}",
    "{output_dict: true}",
)


def yaml_value(path: Path, rng: random.Random) -> None:
    key, value = rng.choice(_KEYS), rng.choice(_VALUES)
    text = path.read_text()
    if f"{key}: {{" in text or re.search(rf"{key}:\n", text):
        text = re.sub(
            rf"\b{key}:.*?(?=\n\w|\Z)",
            lambda match: f"{key}: {value}",
            text,
            count=1,
            flags=re.DOTALL,
        )
    else:
        text = re.sub(
            rf"\b{key}: (\[[^\]]*\]|[^,}}\n]*)", lambda match: f"{key}: {value}", text, count=1
        )
    path.write_text(text, encoding="utf-8")


def yaml_key(path: Path, rng: random.Random) -> None:
    section = rng.choice(list(_MORE_KEYS))
    key = rng.choice(_MORE_KEYS[section])
    value = rng.choice(
        _INSIDE if key in ("model_args", "preprocess") and rng.random() < 0.8 else _VALUES
    )
    text = path.read_text()
    line = f"{key}: {value}"
    place = {
        "data": ("data: {", f"data: {{{line}, "),
        "hessian": ("hessian:\n", f"hessian:\n  {line}\n"),
    }
    place |= {
        "series": ("    label: ViT\n", f"    label: ViT\n    {line}\n"),
        "": ("version: 1\n", f"version: 1\n{line}\n"),
    }
    path.write_text(text.replace(*place[section]), encoding="utf-8")


def yaml_text(path: Path, rng: random.Random) -> None:
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = rng.choice(
        [
            text.replace("\n", "\r\n").encode(),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode("utf-16"),
            text.replace("label: ViT", "label: Vi\udcffT").encode(errors="surrogateescape"),
            text.replace("  ", "\t").encode(),
            (text + lines[rng.randrange(len(lines))]).encode(),
            "".join(line for line in lines if line != rng.choice(lines)).encode(),
            (
                "a: &a [x]\n"
                + "".join(f"{c}: &{c} [*{b},*{b}]\n" for b, c in zip("abcdefgh", "bcdefghi"))
                + text
            ).encode(),
            b"{" * 3000,
            b"- " * 3000,
            b"? " * 3000,
            text.encode() + b"#" + b"x" * 2**19,
            text.encode() + b"\n---\n" + text.encode(),
            b"%YAML 9.9\n---\n" + text.encode(),
            b"[1, 2]",
            b"\0" * 100,
        ]
    )
    path.write_bytes(changed)


def config_text(path: Path, rng: random.Random) -> None:
    config = json.loads(path.read_text())
    section = rng.choice([config, config, config["vision_cfg"], config["text_cfg"]])
    key = rng.choice(
        [
            *section,
            "hf_model_name",
            "hf_tokenizer_name",
            "timm_model_name",
            "custom_text",
            "quick_gelu",
            "extra",
        ]
    )
    section[key] = rng.choice(
        [
            -1,
            0,
            1e9,
            3,
            100_000,
            2_000_000_000,
            10**22,
            None,
            "x",
            [],
            [1, 2],
            float("nan"),
            True,
            {},
            {"a": 1},
            "../run",
            ".",
        ]
    )
    if rng.random() < 0.2:
        config = {
            "model_cfg": config,
            "preprocess_cfg": rng.choice(
                [3, [], "x", None, {"mean": 1}, {"size": 10**9}, {"std": [0, 0, 0]}]
            ),
        }
    text = json.dumps(config)
    path.write_text(rng.choice([text] * 6 + ["[" * 50_000, "{}", "null", text + text]))


def table_text(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines()
    row = rng.randrange(1, len(lines))
    lines[row] = rng.choice(
        [
            lines[row].split("\t")[0],
            lines[row] + "\tmore",
            "\t",
            "",
            "\t".join(["", "caption"]),
            'pics/1.png\t"open',
            '"pics/1.png\tx',
            "pics/1.png\t" + "word " * 200_000,
            "pics/1.png\t\0",
            "../../etc/passwd\tx",
            "/dev/zero\tx",
            "pics\tx",
            "x" * 5000 + "\tx",
            "pics/1.png\t\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
            "http://localhost/1.png\tx",
            "pics/1.png\t",
            "pics/\x1b[31m.png\tx",
            "data-0.tar\tx",
            "out.h5\tx",
            "NaN\tnull",
            "pics/1.png\t" + "\U0001f468\u200d" * 500,
            "\u202epics/1.png\tx",
        ]
    )
    text = "\n".join(lines) + "\n"
    changed = rng.choice(
        [text] * 6
        + [
            text.replace("\n", "\r"),
            text.replace("filepath\ttitle", "title\ttitle"),
            text.replace("filepath\ttitle", "\t"),
            text.replace("\t", ","),
            text.split("\n")[0] + "\n",
            "\n" * 1000,
        ]
    )
    path.write_bytes(
        rng.choice(
            [changed.encode()] * 6
            + [changed.encode("utf-16"), changed.encode().replace(b"a", b"\xff")]
        )
    )
