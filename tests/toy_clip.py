"""A CLIP of a few hundred parameters around any image tower, and the check of its second derivatives."""

import torch
from conftest import contrastive_loss, scramble
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from oracles import dense_hessian, difference_product, relative_error
from torch import Tensor, nn

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.linalg.operator import seeded


def toy_pictures(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=seeded(2), dtype=torch.float64)


def make_toy_clip(tower: nn.Module) -> nn.Module:
    """An open_clip model of six features with `tower`, which must give six, in the place of its image encoder."""
    model = CLIP(
        embed_dim=6,
        vision_cfg=CLIPVisionCfg(layers=1, width=4, head_width=4, patch_size=16, image_size=16),
        text_cfg=CLIPTextCfg(context_length=3, vocab_size=10, width=4, heads=1, layers=1, mlp_ratio=1.0),
    )
    model = model.double()
    scramble(model, seed=5, scale=0.2)
    model.visual = tower
    return model.eval()


def assert_hessian_is_the_true_one(tower: nn.Module) -> None:
    """Compare products with the dense Hessian by double backward, and those with differences of first gradients.

    The differences know nothing of second derivatives. Their error is 1e-9 of the gradient's scale where the loss
    bends on a scale of one; these toys bend on a scale of 0.1 to 1, which leaves 1e-6 with room.
    """
    model = make_toy_clip(tower)
    text = torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]])
    batch = {"image": toy_pictures(4), "text": text}
    objective = Objective.from_closure(model, contrastive_loss)
    params = select_parameters(model, ["visual.*", "logit_scale"])
    operator = HessianOperator(objective, params, batch)
    directions = torch.randn(operator.n, 3, generator=seeded(7), dtype=torch.float64)
    directions /= directions.norm(dim=0)
    products = operator @ directions
    dense = dense_hessian(objective, params, batch)
    assert relative_error(dense, dense.T) < 1e-10
    assert relative_error(products, dense @ directions) < 1e-8
    for i in range(3):
        assert relative_error(difference_product(objective, params, batch, directions[:, i]), products[:, i]) < 1e-6
