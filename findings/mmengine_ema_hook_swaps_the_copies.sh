#!/bin/sh
# mmengine 0.10.7, EMAHook: the file's "state_dict" is the average, and "ema_state_dict" holds what was trained.
#
# Names suggest the opposite. The hook swaps the two before the file is written, so that plain loading evaluates the average.
# "ema_state_dict" also has `steps` and the prefix `module.`, as the average would have.
# Lightning's EMAWeightAveraging (`state_dict` average, `current_model_state` trained) does likewise; timm and torchvision do not.
#
# Seen: "state_dict is the average: True; ema_state_dict, without module., is what was trained: True".
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.14.1 "setuptools<81"
cd "$folder" && "$folder/venv/bin/python" - 2>/dev/null <<'PY'
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner

trained = {}
class Model(BaseModel):
    def __init__(self):
        super().__init__(); self.net = torch.nn.Linear(4, 3)
    def forward(self, inputs, labels, mode):
        return {"loss": torch.nn.functional.cross_entropy(self.net(inputs), labels)}
    def train_step(self, *args, **keywords):
        said = super().train_step(*args, **keywords)
        trained.update({name: tensor.clone() for name, tensor in self.state_dict().items()})
        return said

data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.arange(12) % 3)
hook = EMAHook(momentum=0.5)
Runner(model=Model(), work_dir="run", train_dataloader=torch.utils.data.DataLoader(data, batch_size=4), log_level="ERROR",
       train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)), custom_hooks=[hook],
       default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1))).train()
stored = torch.load("run/epoch_1.pth", weights_only=False)
average = hook.ema_model.module.state_dict()
is_average = all(torch.equal(stored["state_dict"][name], average[name]) for name in average)
is_trained = all(torch.equal(stored["ema_state_dict"][f"module.{name}"], trained[name]) for name in trained)
differ = any(not torch.equal(average[name], trained[name]) for name in trained)
print(f"state_dict is the average: {is_average}; ema_state_dict, without module., is what was trained: {is_trained}; they differ: {differ}")
raise SystemExit(not (is_average and is_trained and differ))
PY
