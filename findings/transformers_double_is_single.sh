#!/bin/sh
# transformers 5.24.0 with torch 2.14.1: a causal language model in float64 computes its loss in float32. Parameters, buffers and
# gradients are all float64, but norms, the softmax of the attention, and the logits are cast down on the way.
#
# Expected: a model after .double() computes in double precision, as other modules of torch do.
# Output seen: parameters float64, logits float64, loss float32; product off by 2e-07
# PYTHON=... uses a Python that has both instead of installing them. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet transformers==5.24.0
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" - <<'P'
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3
)
model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
ids = torch.randint(0, 20, (2, 7))
params = list(model.parameters())
vectors = [torch.randn_like(parameter) for parameter in params]

def product():
    output = model(input_ids=ids, labels=ids)
    gradients = torch.autograd.grad(output.loss, params, create_graph=True)
    return output, torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(gradients, params, vectors)])

output, single = product()
# The same code, where float32 means float64.
names = {"float32": torch.float64, "float": torch.float64}
with mock.patch.multiple(torch, **names), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
    whole, double = product()
error = float((single - double).norm() / double.norm())
kinds = {str(parameter.dtype).removeprefix("torch.") for parameter in params}
print(f"parameters {', '.join(kinds)}, logits {output.logits.dtype}, loss {output.loss.dtype}; product off by {error:.0e}")
assert kinds == {"float64"} and output.loss.dtype == torch.float32 and whole.loss.dtype == torch.float64
assert 1e-9 < error < 1e-4, error
P
