"""A training run of a second or two: a CLIP of one layer per tower on pictures of noise. Also a
program, for tests that kill it.

The model drops patches at random in training, so a run that loses its random state ends with other
weights.
"""

import dataclasses
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from landscape.cli import main
from landscape.clip.recipes import RECIPES
from landscape.clip.train import TrainReport, train
from landscape.errors import LandscapeError
from landscape.manifest import DataSettings

NUM_PAIRS = 26
WORDS = ("red", "blue", "small", "large", "cat", "dog", "tree", "house", "sun")


VISION = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8}


def config_of(**vision: Any) -> dict[str, Any]:
    """The architecture as open_clip writes it."""
    return {
        "embed_dim": 8,
        "vision_cfg": {**VISION, **vision},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }


def register(name: str, **vision: Any) -> str:
    folder = Path(tempfile.mkdtemp(prefix="landscape-tiny-"))
    (folder / f"{name}.json").write_text(json.dumps(config_of(**vision)))
    open_clip.add_model_config(folder)
    shutil.rmtree(folder)
    return name


def _read_vocabulary_once() -> None:
    """Give all tokenizers of a process the tables of the first; reading them takes a tenth of a
    second for every series.
    """
    tables = SimpleTokenizer()
    make = SimpleTokenizer.__init__

    def init(self: SimpleTokenizer, *arguments: Any, **options: Any) -> None:
        if arguments or options.keys() - {"context_length"}:
            make(self, *arguments, **options)
        else:
            self.__dict__.update(tables.__dict__ | {"cache": dict(tables.cache)} | options)

    SimpleTokenizer.__init__ = init


_read_vocabulary_once()

# "vit" in the name decides what open_clip_train takes for Adam.
MODEL = register("tiny_vit_with_dropout", patch_dropout=0.25)
PLAIN = register("tiny_vit")
RESNET = register("tiny_resnet", image_size=32, layers=[1, 1, 1, 1], patch_size=None)
# The gradient of a key's bias is zero but for rounding, and Adam would divide it by its own size; a
# larger eps does not, so that two ways of computing the same step stay together.
RECIPE = dataclasses.replace(
    RECIPES["clip_mamba"], name="tiny", epochs=3, batch_size=8, eps=1e-4, precision="fp32"
)


def write_pairs(folder: Path, num_pairs: int = NUM_PAIRS) -> Path:
    """Pictures of noise and a table of them, as open_clip reads it."""
    generator = np.random.default_rng(0)
    rows = ["filepath\ttitle"]
    for i in range(num_pairs):
        picture = Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        picture.save(folder / f"{i}.png")
        rows.append(f"{folder / f'{i}.png'}\ta {' '.join(generator.choice(WORDS, 3))}")
    table = folder / "pairs.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table


def run(output: Path, table: Path, **options: Any) -> TrainReport:
    data = DataSettings(source=str(table), split="all", num_samples=20, batch_size=5)
    return train(
        **{
            "model": MODEL,
            "output": output,
            "data": data,
            "recipe": RECIPE,
            "progress": False,
            **options,
        }
    )


def take_place(rank: int, world_size: int, port: int) -> None:
    """Set the variables that torchrun sets for one of several processes."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ.update({name: str(value) for name, value in place.items()})


def run_as(
    rank: int, world_size: int, port: int, output: Path, table: Path, options: dict[str, Any]
) -> None:
    """`run` as one of several processes that torchrun would start; an error becomes the file
    OUTPUT.RANK.error.
    """
    take_place(rank, world_size, port)
    try:
        run(output, table, **options)
    except LandscapeError as error:
        output.with_name(f"{output.name}.{rank}.error").write_text(str(error))


def command_as(rank: int, world_size: int, port: int, arguments: list[str]) -> None:
    """Run the command line as one of several processes that torchrun would start."""
    take_place(rank, world_size, port)
    main(arguments)


def join_two_processes(
    context: ForkServerContext, target: Callable[..., None], *arguments: Any
) -> None:
    """Run `target` as process 0 and 1 of 2; both must end with exit status 0."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        context.Process(target=target, args=(rank, 2, port, *arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
