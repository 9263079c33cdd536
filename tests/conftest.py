"""Small real problems, in float64, that several test files share."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature.hvp.traced import forget_graphs
from landscape.curvature.objective import Objective, Params, select_parameters
from landscape.linalg.operator import seeded
from tests.helpers.folders import ROOT
from tests.helpers.oracles import dense_hessian

# Processes of pytest-xdist have it, and texts would be broken at its width.
os.environ.pop("COLUMNS", None)
# Files that take longest, the longest first: their tests start processes or compile.
LONG = (
    "test_sharded",
    "test_compiled",
    "test_runner",
    "test_shards",
    "test_kills",
    "test_surface_command",
    "test_density_command",
    "test_several_processes",
    "test_store",
    "test_notebooks",
    "test_memory",
    "test_shards_language",
    "test_evaluation",
    "test_ood",
    "test_threads",
    "test_hostile",
    "test_audit",
    "test_dask_pool",
    "test_figure3_study",
    "test_train",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process waits for the last of them."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@dataclass(frozen=True)
class Problem:
    """A model with its loss and batch, and the dense Hessian of it all by the oracle."""

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batch: Any
    weight_decay: float

    @property
    def objective(self) -> Objective:
        return Objective.from_closure(self.model, self.loss, weight_decay=self.weight_decay)

    @property
    def params(self) -> Params:
        return select_parameters(self.model)


@pytest.fixture(scope="session", autouse=True)
def requests_to_stop_arrive() -> Iterator[None]:
    """`nohup … &` lets a process ignore them, and its children too; a handler stops that."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in handlers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def same_weights_in_every_run() -> None:
    """Modules are initialised from torch's global generator; a tolerance that holds today must hold
    tomorrow.
    """
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> None:
    """Models of one kind share recorded graphs."""
    forget_graphs()


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Forks from a process that has imported everything and computed nothing: a child takes a
    second, not ten.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.tiny_run"])
    return context


def scramble(model: nn.Module, *, seed: int, scale: float) -> None:
    """Move every parameter off its initial value, so that no gain is 1, no bias 0, and no block of
    the Hessian empty.
    """
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            )


def contrastive_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The symmetric contrastive loss written out: every row is compared with every other."""
    image = F.normalize(model.encode_image(batch["image"]), dim=-1)
    text = F.normalize(model.encode_text(batch["text"]), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    return -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2


def make_clip_problem() -> Problem:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    model = CLIP(
        embed_dim=6,
        vision_cfg=CLIPVisionCfg(
            layers=1, width=8, head_width=4, patch_size=4, image_size=8, mlp_ratio=1.0
        ),
        text_cfg=CLIPTextCfg(
            context_length=5, vocab_size=20, width=8, heads=2, layers=1, mlp_ratio=1.0
        ),
    )
    model = model.double().eval()
    scramble(model, seed=1, scale=0.2)
    generator = seeded(2)
    text = torch.randint(1, 19, (6, 5), generator=generator)
    # Text is pooled at the largest token; it stands at another place in every row.
    text[torch.arange(6), torch.tensor([4, 3, 2, 4, 1, 3])] = 19
    batch = {
        "image": torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64),
        "text": text,
    }
    return Problem(model, contrastive_loss, batch, weight_decay=0.0)


def make_mlp_problem() -> Problem:
    model = (
        nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 3))
        .double()
        .eval()
    )
    scramble(model, seed=3, scale=0.7)
    generator = seeded(4)
    batch = (
        torch.randn(9, 4, generator=generator, dtype=torch.float64),
        torch.randint(0, 3, (9,), generator=generator),
    )
    return Problem(
        model,
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        batch,
        weight_decay=0.3,
    )


@pytest.fixture(scope="session")
def clip_problem() -> Problem:
    """A CLIP of open_clip: ViT, text transformer, logit scale, six pairs, all rows coupled;
    float64, n of about 1,800.
    """
    return make_clip_problem()


@pytest.fixture(scope="session")
def mlp_problem() -> Problem:
    """A classifier of 93 parameters with an L2 term, in float64."""
    return make_mlp_problem()


@pytest.fixture(scope="session")
def clip_hessian(clip_problem: Problem) -> Tensor:
    """The oracle's dense Hessian of `clip_problem`."""
    return dense_hessian(clip_problem.objective, clip_problem.params, clip_problem.batch)


@pytest.fixture(scope="session")
def mlp_hessian(mlp_problem: Problem) -> Tensor:
    """The oracle's dense Hessian of `mlp_problem`, L2 term included."""
    return dense_hessian(mlp_problem.objective, mlp_problem.params, mlp_problem.batch)
