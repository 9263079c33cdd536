#!/bin/sh
# laplace-torch 0.3 with torch 2.14.1: in a regression, the empirical Fisher is 2 sigma_noise**2
# times that of the likelihood: twice for the noise 1 of the default, half for a noise of 0.5.
#
# Expected: the sum over the rows of the outer product of the gradient of log N(y | f(x), sigma**2).
# The squared error is multiplied by 1/2 to become that likelihood, and by 1 / sigma**2; the same
# two factors are applied once to products of two gradients. So marginal likelihoods and tuned
# noise of CurvlinopsEF, BackPackEF and AsdlEF are those of another model. Classification is right,
# and so are the GGN backends. No error, no warning.
# Output seen: trace of the likelihood's part of the posterior precision over the true one
#   noise 1.0: CurvlinopsEF 2.00, BackPackEF 2.00; CurvlinopsGGN 1.00
#   noise 0.5: CurvlinopsEF 0.50, BackPackEF 0.50; CurvlinopsGGN 1.00
# PYTHON=... uses a Python that has torch 2.14.1 and SciPy instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet scipy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" laplace-torch==0.3 \
    curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 einops==0.8.2 einconv==0.1.0 \
    linear_operator==0.6.1 jaxtyping==0.3.11 wadler-lindig==0.1.8 opt-einsum==3.4.0 \
    unfoldnd==0.2.3 tqdm==4.70.1 mpmath==1.4.1 torchmetrics==1.9.0 lightning-utilities==0.15.3 \
    packaging==26.4 asdfghjkl==0.1a4
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import copy

import torch
from laplace import Laplace
from laplace.curvature import BackPackEF, CurvlinopsEF, CurvlinopsGGN
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
x, y = torch.randn(12, 4), torch.randn(12, 1)
params = {name: value.detach() for name, value in network.named_parameters()}

def flat(rows):
    return torch.cat([rows[name].reshape(len(x), -1) for name in params], dim=1)

def output(params, x):
    return torch.func.functional_call(network, params, (x[None],))[0, 0]

def likelihood(params, x, y, noise):
    return torch.distributions.Normal(output(params, x), noise, validate_args=False).log_prob(y[0])

def truth(backend, noise):
    """Trace of the sum of outer products, from the definition."""
    if backend is CurvlinopsGGN:
        rows = torch.func.vmap(torch.func.grad(output), (None, 0))(params, x)
        return float((flat(rows) / noise).square().sum())
    rows = torch.func.vmap(torch.func.grad(likelihood), (None, 0, 0, None))(params, x, y, noise)
    return float(flat(rows).square().sum())

def fitted(backend, noise):
    laplace = Laplace(
        copy.deepcopy(network),
        "regression",
        subset_of_weights="all",
        hessian_structure="full",
        backend=backend,
        sigma_noise=noise,
        prior_precision=1.0,
    )
    laplace.fit(DataLoader(TensorDataset(x, y), batch_size=5))
    return float((laplace.posterior_precision - torch.eye(laplace.n_params)).trace())

print("trace of the likelihood's part of the posterior precision over the true one")
holds = True
for noise in (1.0, 0.5):
    ef, other, ggn = (
        round(fitted(backend, noise) / truth(backend, noise), 2)
        for backend in (CurvlinopsEF, BackPackEF, CurvlinopsGGN)
    )
    print(
        f"  noise {noise}: CurvlinopsEF {ef:.2f}, BackPackEF {other:.2f}; CurvlinopsGGN {ggn:.2f}"
    )
    holds = holds and (ef, other, ggn) == (2 * noise**2, 2 * noise**2, 1)
raise SystemExit(not holds)
P
