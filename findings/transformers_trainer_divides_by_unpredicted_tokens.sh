#!/bin/sh
# transformers 5.24.0 with torch 2.14.1: for GPT-2, the loss of Trainer, in training and in evaluation, is
# (n - 1) / n of the model's own loss of the same texts of n tokens; for Llama it is the model's loss.
#
# Expected: the mean over predicted tokens, as model(input_ids, labels=...).loss is. The Trainer counts
# the labels to divide by. It leaves out the first of each row, which nothing predicts, only where it
# knows the class as a causal language model by its name, and GPT2LMHeadModel is not in its table.
# Perplexities of texts of few tokens are too small, and so are the gradients.
# Output seen: Trainer's loss over the model's own, for texts of 4 tokens
#   LlamaForCausalLM: evaluation 1.000, training 1.000
#   GPT2LMHeadModel: evaluation 0.750, training 0.750
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
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
shared = {"vocab_size": 20, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = (
    LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **shared
    ),
    GPT2Config(
        n_positions=32, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        **shared,
    ),
)
ids = torch.randint(1, 20, (8, 4))
rows = [{"input_ids": row, "labels": row} for row in ids]

def ratios(config, folder):
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        own = model(ids, labels=ids).loss.item()
    arguments = TrainingArguments(
        folder, per_device_eval_batch_size=8, per_device_train_batch_size=8, max_steps=1,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.train()
    trained = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return type(model).__name__, round(evaluated / own, 3), round(trained / own, 3)

print("Trainer's loss over the model's own, for texts of 4 tokens")
seen = {}
with tempfile.TemporaryDirectory() as folder:
    for config in CONFIGS:
        name, evaluated, trained = ratios(config, folder)
        print(f"  {name}: evaluation {evaluated:.3f}, training {trained:.3f}")
        seen[name] = (evaluated, trained)
raise SystemExit(seen != {"LlamaForCausalLM": (1, 1), "GPT2LMHeadModel": (0.75, 0.75)})
P
