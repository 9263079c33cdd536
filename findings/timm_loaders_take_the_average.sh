#!/bin/sh
# timm 1.0.31: create_model(checkpoint_path=...) and load_checkpoint take `state_dict_ema`, resume_checkpoint `state_dict`.
#
# A file of CheckpointSaver with ModelEmaV3 holds both copies. Which of them a script measures depends on the function that
# loads it; `checkpoint["state_dict"]`, as most analysis code reads it, is not what timm's own create_model gives.
# use_ema=False is an argument of load_checkpoint, but not of create_model.
#
# Seen: "create_model: average, load_checkpoint: average, resume_checkpoint: trained". Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q timm==1.0.31 torch==2.14.1
cd "$folder" && "$folder/venv/bin/python" - 2>/dev/null <<'PY'
import argparse, timm, torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3

model = timm.create_model("test_resnet")
ema = ModelEmaV3(model, decay=0.5)
for parameter in model.parameters():
    parameter.data += 1
ema.update(model)
torch.serialization.add_safe_globals([argparse.Namespace])
CheckpointSaver(model, torch.optim.SGD(model.parameters(), 0.1), args=argparse.Namespace(model="test_resnet"), model_ema=ema,
                checkpoint_dir=".", recovery_dir=".").save_checkpoint(0, metric=1.0)

def taken(read):
    bias = read.state_dict()["fc.bias"]
    return {True: "trained", False: "average"}[torch.equal(bias, model.state_dict()["fc.bias"])] if torch.equal(
        bias, model.state_dict()["fc.bias"]) or torch.equal(bias, ema.module.state_dict()["fc.bias"]) else "neither"

path, said = "checkpoint-0.pth.tar", {}
said["create_model"] = taken(timm.create_model("test_resnet", checkpoint_path=path))
for name, load in (("load_checkpoint", load_checkpoint), ("resume_checkpoint", resume_checkpoint)):
    read = timm.create_model("test_resnet")
    load(read, path)
    said[name] = taken(read)
print(", ".join(f"{name}: {copy}" for name, copy in said.items()))
raise SystemExit(said != {"create_model": "average", "load_checkpoint": "average", "resume_checkpoint": "trained"})
PY
