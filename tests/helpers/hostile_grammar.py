"""The grammar of hostile inputs: which command is given what, by kind of input. Input i is a
function of the seed and i alone.
"""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.hostile_files import ANY, Spoil, pictures, tars, weights
from tests.helpers.hostile_stores import stores
from tests.helpers.hostile_study import NUM_PAIRS
from tests.helpers.hostile_texts import config_text, table_text, yaml_key, yaml_text, yaml_value

_SPECTRA = "spectra m.yaml -o out.h5 --unaudited"
_DENSITY = "density m.yaml -o out.png --probes 1 --matvecs 5 --dense-limit 0 --unaudited"
_SURFACE = "surface m.yaml -o out.png --dimensions 1 --points 5"
_TRAIN = "train --model tiny.json --data pairs.tsv --split all --batch-size 4 -o out --epochs"
_MEASURING = (_SPECTRA, "spectra m.yaml -o out.h5 --dry-run", _DENSITY, _SURFACE)
_DRAWING = (
    "figure s.h5 -o out.png",
    "figure s.h5 -o out.svg --kind sharpness",
    "figure s.h5 -o out.pdf --kind modules",
    "report s.h5 -o out.html --resamples 99",
    "compare s.h5 --resamples 99",
    "compare s.h5 -o out.csv --resamples 99",
    "compare s.h5 s.h5 --format json",
    "density s.h5 -o out.png",
)
_OF_STORES = {
    "s.h5": (
        "info s.h5",
        *_DRAWING,
        "spectra m.yaml -o s.h5 --per-module --modules visual.transformer.*",
    ),
    "d.h5": ("info d.h5", "density m.yaml -o d.png --probes 1 --matvecs 5 --dense-limit 0"),
    "f.h5": ("info f.h5", "surface m.yaml -o f.png --dimensions 1 --points 5"),
}


@dataclass(frozen=True)
class Hostile:
    """An input: what is done to the study, and the command that meets it.

    Attributes:
        environment: Variables, None for one that is removed.
        streams: "" or which of stdin, stdout, stderr is what.
        signal: A signal and after how many seconds it is sent.
        limit: A resource limit by the name of the resource, and its value.
        fresh: Whether a new interpreter is started, for what is read once when libraries are
            loaded.
    """

    kind: str
    rule: str
    argv: tuple[str, ...]
    change: Callable[[Path], None] = lambda folder: None
    environment: dict[str, str | None] = field(default_factory=dict)
    streams: str = ""
    signal: tuple[int, float] | None = None
    limit: tuple[str, int] | None = None
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.rule}: {' '.join(argument[:60] for argument in self.argv)}"


def _on(
    kind: str,
    rule: str,
    command: str,
    file: str,
    spoil: Spoil,
    rng: random.Random,
    **options: object,
) -> Hostile:
    seed = rng.randrange(2**32)

    def change(folder: Path) -> None:
        spoil(folder / file, random.Random(seed))

    return Hostile(kind, f"{rule} of {file}", tuple(command.split()), change, **options)  # type: ignore[arg-type]


def _manifest(rng: random.Random) -> Hostile:
    commands = ("info m.yaml", "info m.yaml", *_MEASURING, "audit m.yaml")
    rules = (
        [("value", yaml_value)] * 5
        + [("key", yaml_key)] * 4
        + [("text", yaml_text)] * 2
        + [("configuration", config_text)] * 3
    )
    name, spoil = rng.choice(
        [*rules, *((name, spoil) for name, spoil in ANY.items() if rng.random() < 0.3)]
    )
    file = (
        "tiny.json"
        if spoil is config_text
        else rng.choice(["m.yaml", "m.yaml", "m.yaml", "tiny.json"])
        if name in ANY
        else "m.yaml"
    )
    return _on("manifest", name, rng.choice(commands), file, spoil, rng)


def _table(rng: random.Random) -> Hostile:
    commands = (
        *_MEASURING,
        _SPECTRA,
        f"{_TRAIN} 0",
        f"{_TRAIN} 1",
        "audit m.yaml",
        "init run -o out.yaml --data pairs.tsv --force",
    )
    rules = [("text", table_text)] * 14 + list(ANY.items())
    name, spoil = rng.choice(rules)
    return _on("table", name, rng.choice(commands), "pairs.tsv", spoil, rng)


def _picture(rng: random.Random) -> Hostile:
    command = rng.choice((*_MEASURING, _SPECTRA, f"{_TRAIN} 1"))
    name, spoil = rng.choice([*pictures().items(), *pictures().items(), *ANY.items()])
    number, skip, seed = rng.randrange(NUM_PAIRS), rng.random() < 0.3, rng.randrange(2**32)

    def change(folder: Path) -> None:
        chosen = [number] if seed % 3 else range(NUM_PAIRS)
        for i in chosen:
            spoil(folder / f"pics/{i}.png", random.Random(seed))
        if skip:
            (folder / "m.yaml").write_text(
                (folder / "m.yaml")
                .read_text()
                .replace("split: all", "split: all, on_bad_picture: skip")
            )

    which = f"pics/{number}.png" if seed % 3 else "all pictures"
    return Hostile(
        "picture", f"{name} of {which}{', skipped' if skip else ''}", tuple(command.split()), change
    )


def _shard(rng: random.Random) -> Hostile:
    commands = [command.replace("m.yaml", "shards.yaml") for command in (*_MEASURING, _SPECTRA)]
    commands += [
        f"{_TRAIN} 0".replace("pairs.tsv", "data-{0..0}.tar"),
        f"{_TRAIN} 0".replace("pairs.tsv", "*.tar"),
    ]
    name, spoil = rng.choice([*tars().items(), *tars().items(), *ANY.items()])
    return _on("shard", name, rng.choice(commands), "data-0.tar", spoil, rng)


def _checkpoint(rng: random.Random) -> Hostile:
    name, spoil = rng.choice([*weights().items(), *weights().items(), *ANY.items()])
    file = "run/checkpoints/epoch_1.pt"
    if name in ANY:
        file = rng.choice([file, file, "w.safetensors", "old.pt"])
    command = rng.choice(
        [
            f"info {file}",
            f"info {file}",
            *_MEASURING,
            "audit m.yaml",
            f"{_TRAIN} 1".replace("-o out", "-o run"),
        ]
    )
    if rng.random() < 0.1:
        command = "surface m.yaml -o out.png --directions line --points 5"
    return _on("checkpoint", name, command if "/" in file else f"info {file}", file, spoil, rng)


def _store(rng: random.Random) -> Hostile:
    file = rng.choice(["s.h5", "s.h5", "s.h5", "d.h5", "f.h5"])
    name, spoil = rng.choice(
        [*stores().items(), *stores().items(), *stores().items(), *ANY.items()]
    )
    return _on("store", name, rng.choice(_OF_STORES[file]), file, spoil, rng)


def _run_folder(rng: random.Random) -> Hostile:
    """What a run writes beside its checkpoints, read by `init`, `train` and every manifest."""
    file = rng.choice(
        [
            "run/checkpoints.yaml",
            "run/settings.json",
            "run/log.jsonl",
            "run/open_clip_config.json",
            "run/.lock",
            "run/params.txt",
        ]
    )
    name, spoil = rng.choice(list(ANY.items()))
    resumed = f"{_TRAIN} 2".replace("-o out", "-o run")
    command = rng.choice(
        [
            resumed,
            "info run/checkpoints.yaml",
            "spectra run/checkpoints.yaml -o out.h5 --dry-run",
            "init run -o out.yaml",
        ]
    )
    if file == "run/.lock" and name in ("cut", "cut_front", "flip", "flip_head", "zeros"):
        name, spoil = "folder", ANY["folder"]
    hostile = _on("run", name, command, file, spoil, rng)

    def change(folder: Path) -> None:
        if file.endswith("params.txt"):
            (folder / file).write_text("model: ViT-B-32\nbatch_size: 4\nname: x\nlr: 0.1\n")
        hostile.change(folder)

    return Hostile("run", hostile.rule, hostile.argv, change)


def _arguments(rng: random.Random) -> Hostile:
    options = {
        "spectra m.yaml -o out.h5": (
            "--rows",
            "--max-memory",
            "--max-basis-memory",
            "--device",
            "--threads",
            "--module-batches",
            "--method",
        ),
        "density m.yaml -o out.png": (
            "--batches",
            "--probes",
            "--matvecs",
            "--dense-limit",
            "--seed",
            "--epochs",
            "--series",
            "--title",
        ),
        "surface m.yaml -o out.png": (
            "--points",
            "--span",
            "--batches",
            "--seed",
            "--epoch",
            "--to",
            "--series",
            "--dimensions",
            "--data",
        ),
        "figure s.h5 -o out.png": ("--title", "--series", "--epochs", "--kind"),
        "report s.h5 -o out.html": ("--title", "--series", "--resamples"),
        "compare s.h5": (
            "--metric",
            "--epochs",
            "--series",
            "--resamples",
            "--seed",
            "--format",
            "-o",
        ),
        "train --model tiny.json --data pairs.tsv --split all -o out": (
            "--epochs",
            "--batch-size",
            "--seed",
            "--workers",
            "--device",
            "--name",
            "--label",
            "--recipe",
            "--image-size",
            "--model",
            "--data",
        ),
        "init run -o out.yaml": ("--data", "--name", "--epoch-numbers"),
    }
    values = (
        "-1",
        "0",
        "99999999999999999999999",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "",
        " ",
        "a\nb",
        "\x1b[31m",
        "\udcff",
        "x" * 9000,
        "\U0001f4a5",
        "$",
        "$\\frac{1}{",
        "<script>",
        "[b]",
        "../../x",
        "/dev/null",
        "meta",
        "cuda:99",
        "privateuseone",
        "mps",
        "0,0",
        "1,,2",
        "1-",
        ":",
        "a:1",
        "%s%n",
        "{0}",
        "9" * 5000,
        "0x10",
        "１",
        "None",
        "all",
    )
    command = rng.choice(list(options))
    option, value = rng.choice(options[command]), rng.choice(values)
    return Hostile("arguments", f"{option} {value[:30]!r}", (*command.split(), option, value))


def _output(rng: random.Random) -> Hostile:
    commands = (
        *_DRAWING[:4],
        "compare s.h5 -o out.csv --resamples 99",
        "density s.h5 -o out.png",
        _SPECTRA,
        _SURFACE,
        "init run -o out.yaml --force",
    )
    command = rng.choice(commands).split()
    where = command.index("-o") + 1
    suffix = Path(command[where]).suffix
    names = (
        "folder",
        "missing/out" + suffix,
        "m.yaml/out" + suffix,
        "/dev/full",
        "/dev/null",
        "pipe" + suffix,
        "loop" + suffix,
        "x" * 300 + suffix,
        "out",
        "out.xyz",
        "s.h5",
        "m.yaml",
        "pairs.tsv",
        ".",
        "",
        "/",
        "dangling" + suffix,
        "\udcff" + suffix,
        "a\nb" + suffix,
        " " + suffix,
        suffix,
        "lock" + suffix,
        "temporary" + suffix,
    )
    command[where] = name = rng.choice(names)

    def change(folder: Path) -> None:
        import os

        (folder / "folder").mkdir()
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
        (folder / f"dangling{suffix}").symlink_to("missing/there")
        (folder / f"lock{suffix}.lock").mkdir()
        (folder / f".temporary{suffix}.tmp").mkdir()

    return Hostile("output", repr(name[:30]), tuple(command), change)


def _surroundings(rng: random.Random) -> Hostile:
    command = rng.choice(
        ("info m.yaml", "info s.h5", *_DRAWING, "spectra m.yaml -o out.h5 --dry-run", f"{_TRAIN} 0")
    )
    cheap = rng.choice(
        ("info m.yaml", "info s.h5", "figure s.h5 -o out.png", "compare s.h5 --resamples 99")
    )
    forked = [
        ("COLUMNS", rng.choice(["0", "1", "-5", "abc", "99999999", ""])),
        ("LINES", "abc"),
        ("TERM", rng.choice(["", "dumb", "nonsense"])),
        ("HOME", "/nonexistent"),
        ("HOME", None),
        ("TMPDIR", "/nonexistent"),
        ("LANG", "C"),
        ("NO_COLOR", ""),
        ("FORCE_COLOR", "1"),
        ("WORLD_SIZE", "abc"),
        ("LOCAL_RANK", "abc"),
        ("SLURM_PROCID", "abc"),
        ("CUDA_VISIBLE_DEVICES", "99"),
        ("PATH", None),
        ("LANDSCAPE_CACHE", "/dev/null/x"),
        ("XDG_CACHE_HOME", "/nonexistent"),
        ("TZ", "nonsense"),
        ("SOURCE_DATE_EPOCH", "abc"),
    ]
    fresh = [
        ("OMP_NUM_THREADS", rng.choice(["abc", "0", "-1", "1000000", ""])),
        ("MPLBACKEND", "nonsense"),
        ("MPLCONFIGDIR", "/dev/null"),
        ("PYTHONIOENCODING", "ascii"),
        ("LC_ALL", "C"),
        ("PYTHONUTF8", "0"),
        ("HDF5_USE_FILE_LOCKING", "nonsense"),
        ("HOME", "/dev/null"),
    ]
    chosen = rng.random()
    if chosen < 0.6:
        name, value = rng.choice(forked)
        return Hostile(
            "surroundings", f"{name}={value}", tuple(command.split()), environment={name: value}
        )
    if chosen < 0.75:
        name, value = rng.choice(fresh)
        return Hostile(
            "surroundings",
            f"{name}={value}",
            tuple(cheap.split()),
            environment={name: value},
            fresh=True,
        )
    if chosen < 0.85:
        streams = rng.choice(
            ["stdout full", "stdout closed", "stderr closed", "stdin closed", "stdout pipe"]
        )
        return Hostile("surroundings", streams, tuple(cheap.split()), streams=streams, fresh=True)
    limit = rng.choice(
        [
            ("RLIMIT_NOFILE", 24),
            ("RLIMIT_FSIZE", rng.choice([0, 4096, 50_000])),
            ("RLIMIT_STACK", 2**20),
        ]
    )
    measuring = rng.choice((*_DRAWING, _SPECTRA, _SURFACE, f"{_TRAIN} 1"))
    return Hostile("surroundings", f"{limit[0]}={limit[1]}", tuple(measuring.split()), limit=limit)


def _interrupted(rng: random.Random) -> Hostile:
    commands = (
        *_DRAWING[:4],
        _SPECTRA,
        _SPECTRA,
        _DENSITY,
        _SURFACE,
        f"{_TRAIN} 1",
        f"{_TRAIN} 3",
        "audit m.yaml",
        "spectra m.yaml -o s.h5",
    )
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    after = round(rng.uniform(0, 1.5), 3)
    return Hostile(
        "signal",
        f"{number.name} after {after} s",
        tuple(rng.choice(commands).split()),
        signal=(number, after),
    )


KINDS: dict[str, Callable[[random.Random], Hostile]] = {
    "manifest": _manifest,
    "table": _table,
    "picture": _picture,
    "shard": _shard,
    "checkpoint": _checkpoint,
    "store": _store,
    "run": _run_folder,
    "arguments": _arguments,
    "output": _output,
    "surroundings": _surroundings,
    "signal": _interrupted,
}


def hostile_input(number: int, *, seed: int = 0) -> Hostile:
    """Input `number` of the grammar; the kinds take turns."""
    kinds = list(KINDS)
    return KINDS[kinds[number % len(kinds)]](random.Random(f"{seed}-{number}"))
