#!/bin/sh
# torch 2.14.1: on a CPU in float32, torch.linalg.vector_norm of 100 million numbers is 1.1 % too
# small, and the cosine of such a vector with itself is 1.022. A norm of fewer numbers is off less.
#
# Expected: a relative error of about 1e-7, as (v * v).sum().sqrt() has, whose sum is pairwise, or 1e-4
# from a plain loop at worst. The kernel keeps few running sums in float32. What is affected has the
# size of a model: the norm of a gradient, clip_grad_norm_, distances and angles between checkpoints.
# dtype=torch.float64 is right. It does not depend on the number of threads or vector instructions.
# Output seen:
#       10,000,000 numbers: vector_norm off by -3.7e-04, clip_grad_norm_ by -3.7e-04, cosine by +7.3e-04
#      100,000,000 numbers: vector_norm off by -1.1e-02, clip_grad_norm_ by -1.1e-02, cosine by +2.2e-02
#   the same by (v * v).sum().sqrt(): -3.6e-08; by dtype=torch.float64: +6.9e-13
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -W ignore - <<'P'
import torch

def off(count):
    v = torch.randn(count, generator=torch.Generator().manual_seed(0))
    truth = sum(float((part.double() ** 2).sum()) for part in v.split(10**6)) ** 0.5
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.data, parameter.grad = v, v
    clipped = float(torch.nn.utils.get_total_norm([parameter.grad]))
    cosine = float(torch.nn.functional.cosine_similarity(v, v, dim=0))
    norm = float(torch.linalg.vector_norm(v))
    print(
        f"{count:16,} numbers: vector_norm off by {norm / truth - 1:+.1e}, "
        f"clip_grad_norm_ by {clipped / truth - 1:+.1e}, cosine by {cosine - 1:+.1e}"
    )
    by_sum = float((v * v).sum().sqrt()) / truth - 1
    by_double = float(torch.linalg.vector_norm(v, dtype=torch.float64)) / truth - 1
    return norm / truth - 1, cosine - 1, by_sum, by_double

off(10**7)
norm, cosine, by_sum, by_double = off(10**8)
print(f"  the same by (v * v).sum().sqrt(): {by_sum:+.1e}; by dtype=torch.float64: {by_double:+.1e}")
changed = not (norm < -5e-3 and cosine > 1e-2 and abs(by_sum) < 1e-6 and abs(by_double) < 1e-9)
raise SystemExit(changed)
P
