#!/bin/sh
# lightning 2.6.6: "epoch" in a checkpoint counts in two ways, and nothing but `loops` tells which.
#
# ModelCheckpoint's file after the first finished epoch says epoch 0 (k means k + 1 finished), so one adds 1. But
# trainer.save_checkpoint after fit() of 2 epochs says epoch 2 (k means k finished), with the weights of ModelCheckpoint's
# epoch 1. Two files of one run with equal weights carry the numbers 1 and 2. Both counters are in the file:
# loops.fit_loop.epoch_progress.current.processed is 2 in both.
#
# Seen: "ModelCheckpoint epoch=1 -> epoch 1, processed 2" and "save_checkpoint after fit -> epoch 2, processed 2".
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q lightning==2.6.6 numpy
cd "$folder" && "$folder/venv/bin/python" - 2>/dev/null <<'PY'
import lightning, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

loader = torch.utils.data.DataLoader(RandomDataset(32, 12), batch_size=4)
saver = ModelCheckpoint("each", filename="{epoch}", save_top_k=-1)
trainer = lightning.Trainer(max_epochs=2, limit_val_batches=0, accelerator="cpu", logger=False, callbacks=[saver],
                            enable_progress_bar=False, enable_model_summary=False)
trainer.fit(BoringModel(), loader)
trainer.save_checkpoint("after.ckpt")
last, after = (torch.load(file, weights_only=False) for file in ("each/epoch=1.ckpt", "after.ckpt"))
said = [(c["epoch"], c["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]) for c in (last, after)]
equal = all(torch.equal(last["state_dict"][name], after["state_dict"][name]) for name in last["state_dict"])
print(f"ModelCheckpoint epoch=1 -> epoch {said[0][0]}, processed {said[0][1]}")
print(f"save_checkpoint after fit -> epoch {said[1][0]}, processed {said[1][1]}; equal weights: {equal}")
raise SystemExit(not (equal and said == [(1, 2), (2, 2)]))
PY
