"""Run as a program: a small training with a monitor, that saves its state at every tenth step and
goes on from the last.

Prints a line "measured STEP" once a measurement is on the disk. Arguments: folder, number of steps.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from landscape.files import save_atomically
from landscape.monitor import CsvSink, SharpnessMonitor

RECORD, CHECKPOINT, TABLE = "sharpness.jsonl", "last.pt", "sharpness.csv"


def loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def train(folder: Path, num_steps: int, *, monitored: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.randn(64, 4).double(), torch.randn(64, 1).double()
    done = 0
    if (folder / CHECKPOINT).exists():
        state = torch.load(folder / CHECKPOINT, weights_only=True)
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    monitor = None
    if monitored:
        options = {
            "budget": None,
            "every": 3,
            "start_step": done,
            "sinks": [CsvSink(folder / TABLE)],
        }
        monitor = SharpnessMonitor(model, loss, data, output=folder / RECORD, **options)
    for step in range(done + 1, num_steps + 1):
        optimizer.zero_grad()
        rows = torch.randint(64, (16,), generator=torch.Generator().manual_seed(step))
        loss(model, (data[0][rows], data[1][rows])).backward()
        optimizer.step()
        if monitor is not None and monitor.step() is not None:
            print(f"measured {step}", flush=True)
        if step % 10 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_atomically(folder / CHECKPOINT, lambda stream: torch.save(state, stream))
    if monitor is not None:
        monitor.close()
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]))
