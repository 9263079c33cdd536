#!/bin/sh
# torch 2.14.1: in eval mode, with a padding mask, nn.TransformerEncoder gives other outputs under
# torch.no_grad() than with gradients: zeros at padded places instead of features.
#
# Expected: no_grad changes what is recorded, not what is computed. Without gradients the encoder takes
# its nested-tensor path, which fills padding with zeros. A mean over positions, and the loss behind it,
# is then another number where the loss is evaluated (no_grad) than where it is differentiated, so
# differences of losses do not fit gradients. enable_nested_tensor=False is the same in both.
# Output seen: loss without no_grad 0.1698, with no_grad 0.0761; kept positions differ by 9e-16;
#              with enable_nested_tensor=False 0.1698 and 0.1698
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

torch.manual_seed(0)
x = torch.randn(2, 6, 16, dtype=torch.float64)
padding = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1]]).bool()

def encoder(**options):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 1, **options).double().eval()

def outputs(model):
    # The features with and without gradients.
    with torch.no_grad():
        without = model(x, src_key_padding_mask=padding)
    return model(x, src_key_padding_mask=padding).detach(), without

def loss(features):
    return features.mean(dim=1).square().mean().item()

recorded, unrecorded = outputs(encoder())
kept = float((recorded - unrecorded)[~padding].abs().max())
plain = [loss(features) for features in outputs(encoder(enable_nested_tensor=False))]
print(
    f"loss without no_grad {loss(recorded):.4f}, with no_grad {loss(unrecorded):.4f}; "
    f"kept positions differ by {kept:.0e};"
)
print(f"with enable_nested_tensor=False {plain[0]:.4f} and {plain[1]:.4f}")
changed = abs(loss(recorded) / loss(unrecorded) - 1) < 0.1 or kept > 1e-9 or unrecorded[padding].any()
raise SystemExit(changed or abs(plain[0] - plain[1]) > 1e-9)
P
