"""A CLIP of a few hundred parameters around any image tower, and the check of its second
derivatives.
"""

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import HessianOperator, Objective, Params, select_parameters, unflatten
from landscape.linalg.operator import seeded
from tests.conftest import contrastive_loss, scramble
from tests.helpers.oracles import dense_hessian, difference_product, relative_error


def toy_pictures(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=seeded(2), dtype=torch.float64)


def make_toy_clip(tower: nn.Module) -> nn.Module:
    """An open_clip model of six features with `tower`, which must give six, in the place of its
    image encoder.
    """
    model = CLIP(
        embed_dim=6,
        vision_cfg=CLIPVisionCfg(layers=1, width=4, head_width=4, patch_size=16, image_size=16),
        text_cfg=CLIPTextCfg(
            context_length=3, vocab_size=10, width=4, heads=1, layers=1, mlp_ratio=1.0
        ),
    )
    model = model.double()
    scramble(model, seed=5, scale=0.2)
    model.visual = tower
    return model.eval()


def _toy_problem(tower: nn.Module) -> tuple[Objective, Params, dict[str, Tensor], Tensor]:
    model = make_toy_clip(tower)
    batch = {
        "image": toy_pictures(4),
        "text": torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]]),
    }
    params = select_parameters(model, ["visual.*", "logit_scale"])
    directions = torch.randn(
        sum(p.numel() for p in params.values()), 3, generator=seeded(7), dtype=torch.float64
    )
    return (
        Objective.from_closure(model, contrastive_loss),
        params,
        batch,
        directions / directions.norm(dim=0),
    )


def assert_products_are_true(tower: nn.Module) -> None:
    """Compare Hessian-vector products, by double backward and by forward over reverse, with
    differences of first gradients.

    Measured: they agree to 4e-11 at a step of 1e-4 and to 4e-9 at 1e-6. The step is small because a
    difference must not cross a kink of a ReLU in Simba's stem; at 1e-3 it does.
    """
    objective, params, batch, directions = _toy_problem(tower)
    products = HessianOperator(objective, params, batch) @ directions
    for direction, product in zip(directions.T, products.T):
        assert (
            relative_error(
                difference_product(objective, params, batch, direction, step=1e-4), product
            )
            < 1e-8
        )
        tangent = unflatten(direction, params)
        with sdpa_kernel(SDPBackend.MATH):
            pushed = jvp(grad(lambda params: objective(params, batch)), (params,), (tangent,))[1]
        assert (
            relative_error(torch.cat([part.flatten() for part in pushed.values()]), product) < 1e-10
        )


def assert_hessian_is_true(tower: nn.Module) -> None:
    """Compare products with the dense Hessian by double backward, and that with itself and with
    differences.
    """
    objective, params, batch, directions = _toy_problem(tower)
    dense = dense_hessian(objective, params, batch)
    assert relative_error(dense, dense.T) < 1e-10
    assert (
        relative_error(HessianOperator(objective, params, batch) @ directions, dense @ directions)
        < 1e-8
    )
    difference = difference_product(objective, params, batch, directions[:, 0], step=1e-4)
    assert relative_error(difference, dense @ directions[:, 0]) < 1e-8
