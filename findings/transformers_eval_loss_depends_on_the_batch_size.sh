#!/bin/sh
# transformers 5.24.0 with torch 2.14.1: eval_loss of Trainer.evaluate, and the perplexity made of it,
# changes with per_device_eval_batch_size where texts differ in length.
#
# Expected: the mean over the tokens, whatever the batches are. The loss of a batch is the mean over its
# tokens, and the Trainer weighs it by the rows of the batch. So with one row it is the mean over texts,
# and only a batch of all rows is the mean over tokens.
# Output seen: rows in a batch 1: 4.9606, 2: 4.8338, 4: 4.9295, 8: 4.8941; per token 4.8941
# PYTHON=... uses a Python that has torch 2.14.1 and transformers 5.24.0 with accelerate 1.15.0 instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -W ignore - <<'P'
import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

torch.manual_seed(0)
LENGTHS = (4, 5, 6, 30, 7, 28, 4, 31)
config = LlamaConfig(
    vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, initializer_range=0.5, bos_token_id=0, eos_token_id=0,
)
model = AutoModelForCausalLM.from_config(config).eval()
texts = [torch.randint(1, 20, (length,)) for length in LENGTHS]

def collate(rows):
    tokens = [row["input_ids"] for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(tokens, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad(tokens, batch_first=True, padding_value=-100),
    }

def loss(rows, folder):
    arguments = TrainingArguments(
        folder, per_device_eval_batch_size=rows, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return trainer.evaluate([{"input_ids": text} for text in texts])["eval_loss"]

with torch.no_grad():
    sums = [model(text[None], labels=text[None]).loss * (len(text) - 1) for text in texts]
truth = float(sum(sums)) / sum(length - 1 for length in LENGTHS)
with tempfile.TemporaryDirectory() as folder:
    seen = {rows: loss(rows, folder) for rows in (1, 2, 4, 8)}
listed = ", ".join(f"{rows}: {value:.4f}" for rows, value in seen.items())
print(f"rows in a batch {listed}; per token {truth:.4f}")
raise SystemExit(not (abs(seen[8] / truth - 1) < 1e-4 and abs(seen[1] / truth - 1) > 0.01))
P
