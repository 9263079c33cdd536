"""`landscape spectra` of a timm classifier: cross-entropy on a table whose captions are class
numbers.
"""

import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from torch.nn import functional as F

from landscape.cli import main
from landscape.clip.image_text import PairsFromDataset, curvature_batches, open_pairs
from landscape.clip.labels import with_labels
from landscape.clip.model import preprocess_for
from landscape.errors import DataError
from landscape.manifest import DataSettings
from landscape.store import SpectrumStore

MODEL = "test_convnext"


@pytest.fixture
def study(tmp_path):
    rows = ["filepath\ttitle"]
    for index in range(6):
        Image.new("RGB", (32, 32), (40 * index, 200, 255 - 40 * index)).save(
            tmp_path / f"{index}.png"
        )
        rows.append(f"{index}.png\t{index % 3}")
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    model = timm.create_model(MODEL, pretrained=False)
    torch.save(
        {"epoch": 3, "arch": MODEL, "state_dict": model.state_dict()}, tmp_path / "timm.pth.tar"
    )
    manifest = tmp_path / "checkpoints.yaml"
    document = {
        "version": 1,
        "epoch_zero": "optional",
        "data": {"source": "labels.tsv", "split": "all", "num_samples": 6, "batch_size": 3},
        "hessian": {
            "objective": "cross_entropy",
            "k": 2,
            "parameters": ["head.fc.*"],
            "tol": 1e-5,
            "dtype": "float64",
        },
        "series": [
            {
                "name": "a",
                "model": f"timm:{MODEL}",
                "checkpoints": [{"epoch": 4, "path": "timm.pth.tar"}],
            }
        ],
    }
    manifest.write_text(yaml.safe_dump(document))
    return manifest


def test_the_hessian_of_a_linear_head_is_that_of_softmax_regression(study, tmp_path):
    result = CliRunner().invoke(main, ["spectra", str(study), "-o", str(tmp_path / "spectra.h5")])
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        table = store.records("a", 4)
    model = timm.create_model(MODEL, pretrained=False).eval()
    model.load_state_dict(torch.load(tmp_path / "timm.pth.tar", weights_only=True)["state_dict"])
    settings = DataSettings(
        source=str(tmp_path / "labels.tsv"), split="all", num_samples=6, batch_size=3
    )
    transform = preprocess_for(f"timm:{MODEL}")
    pairs = with_labels(open_pairs(settings))
    batch = curvature_batches(
        pairs, num_samples=6, batch_size=3, seed=0, transform=transform, tokenizer=None
    )[1]
    model, pictures = model.double(), batch["image"].double()
    with torch.no_grad():
        logits = model(pictures)
        features = model.forward_head(model.forward_features(pictures), pre_logits=True)
    assert table.loss[1] == pytest.approx(float(F.cross_entropy(logits, batch["label"])), rel=1e-9)
    # H = mean over rows of (diag p - p p^T) (x) x x^T, x the features with a 1 for the bias; diag p
    # - p p^T = L L^T with L = diag(sqrt p) - p sqrt(p)^T, so its nonzero eigenvalues are those of
    # the Gram matrix of all L_i (x) x_i.
    p = logits.softmax(-1)
    x = torch.cat([features, torch.ones(3, 1, dtype=torch.float64)], dim=1)
    roots = [torch.diag(row.sqrt()) - row[:, None] * row.sqrt() for row in p]
    gram = torch.cat(
        [
            torch.cat([(roots[i].T @ roots[j]) * (x[i] @ x[j]) / 3 for j in range(3)], 1)
            for i in range(3)
        ]
    )
    exact = torch.linalg.eigvalsh(gram).flip(0)[:2]
    np.testing.assert_allclose(table.eigenvalues[1], exact.numpy(), rtol=1e-8)
    assert table.converged.all()


def test_captions_that_are_no_class_numbers_are_refused(study, tmp_path):
    (tmp_path / "labels.tsv").write_text(
        (tmp_path / "labels.tsv").read_text().replace("\t2", "\ttwo")
    )
    result = CliRunner().invoke(main, ["spectra", str(study), "-o", str(tmp_path / "spectra.h5")])
    assert result.exit_code in (1, 2) and "class number" in result.output
    assert not (tmp_path / "spectra.h5").exists()


def test_labels_keep_their_order_and_change_the_digest(tmp_path):
    class Captions(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("RGB", (2, 2)), ["7", "x"][index]

    pairs = PairsFromDataset(Captions())
    labelled = with_labels(pairs)
    assert labelled[0][1] == 7 and labelled.digest != pairs.digest and len(labelled) == 2
    with pytest.raises(DataError, match="'x'.*class number"):
        labelled[1]
