"""A run is measured as the function that it trained: real runs of open_clip_train, each with a flag
that changes the function.

The truth is built by open_clip itself from the same flags; nothing of it passes through the code
under test.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from landscape import pipeline
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.curvature.objective import Objective, select_parameters
from landscape.errors import LandscapeError
from landscape.manifest import Manifest
from landscape.store import SpectrumStore
from tests.helpers.loggers import loggers_put_back
from tests.helpers.oracles import dense_hessian
from tests.helpers.tiny_run import PLAIN, write_pairs

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]
BATCH = 5
OWN = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 6, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
# The flags of the command line, and the same as arguments of open_clip.create_model_and_transforms.
FLAGS = {
    "plain": ([], {}),
    "quick_gelu": (["--force-quick-gelu"], {"force_quick_gelu": True}),
    "mean_std": (
        ["--image-mean", "0.1", "0.2", "0.3", "--image-std", "0.5", "0.6", "0.7"],
        {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)},
    ),
    "interpolation": (["--image-interpolation", "bilinear"], {"image_interpolation": "bilinear"}),
    "resize_mode": (["--image-resize-mode", "squash"], {"image_resize_mode": "squash"}),
    "image_size": (["--force-image-size", "24"], {"force_image_size": 24}),
    "custom_text": (["--force-custom-text"], {"force_custom_text": True}),
    "context_length": (["--force-context-length", "5"], {"force_context_length": 5}),
    "siglip": (["--siglip"], {"init_logit_bias": -10}),
    "bf16": (["--precision", "pure_bf16"], {"precision": "pure_bf16"}),
}


def train(folder: Path, table: Path, *flags: str, model: str = PLAIN) -> Path:
    """One epoch by open_clip_train's own main; its folder of checkpoints."""
    from open_clip_train.main import main

    arguments = [
        "--train-data",
        str(table),
        "--dataset-type",
        "csv",
        "--batch-size",
        "8",
        "--workers",
        "0",
        "--epochs",
        "1",
    ]
    arguments += [
        "--warmup",
        "1",
        "--lr",
        "1e-2",
        "--logs",
        str(folder),
        "--name",
        "run",
        "--device",
        "cpu",
    ]
    arguments += ["--model", model, "--precision", "fp32", *flags]
    with loggers_put_back():
        main(arguments)
    return folder / "run" / "checkpoints"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures that are not square, so that the way of resizing them shows."""
    folder = tmp_path_factory.mktemp("pairs")
    path = write_pairs(folder)
    for i, file in enumerate(sorted(folder.glob("*.png"))):
        Image.open(file).resize((20 + 3 * (i % 4), 30)).save(file)
    return path


def write_manifest(
    folder: Path, table: Path, checkpoints: object, *, model: str = PLAIN, **series: object
) -> Path:
    path = folder / "m.yaml"
    document = {
        "version": 1,
        "epoch_zero": "optional",
        "data": {
            "source": str(table),
            "split": "all",
            "num_samples": 2 * BATCH,
            "batch_size": BATCH,
        },
        "hessian": {
            "objective": "contrastive",
            "parameters": PATTERNS,
            "k": 3,
            "tol": 1e-6,
            "dtype": "float64",
        },
        "series": [{"name": "s", "model": model, "checkpoints": checkpoints, **series}],
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def true_loss(model, batch, *, siglip: bool):
    output = model(batch["image"], batch["text"])
    image, text = output["image_features"], output["text_features"]
    logits = output["logit_scale"] * image @ text.T
    rows = torch.arange(len(image))
    if siglip:
        signs = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
        return -F.logsigmoid(signs * (logits + output["logit_bias"])).sum() / len(image)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def true_eigenvalues(checkpoint: Path, data, arguments: dict, *, model: str = PLAIN) -> np.ndarray:
    """The top three by magnitude of each batch, of the model as open_clip builds it from the flags,
    in float64.
    """
    network, _, transform = open_clip.create_model_and_transforms(
        model, load_weights=False, output_dict=True, **arguments
    )
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    network = network.double().eval()
    tokenizer = open_clip.get_tokenizer(model, context_length=arguments.get("force_context_length"))
    options = {
        "num_samples": 2 * BATCH,
        "batch_size": BATCH,
        "seed": 0,
        "transform": transform,
        "tokenizer": tokenizer,
    }
    batches = curvature_batches(open_pairs(data), **options)
    siglip = "init_logit_bias" in arguments
    objective = Objective.from_closure(
        network, lambda net, batch: true_loss(net, batch, siglip=siglip)
    )
    params = select_parameters(network, PATTERNS)
    rows = []
    for batch in batches:
        exact = np.linalg.eigvalsh(
            dense_hessian(objective, params, {**batch, "image": batch["image"].double()}).numpy()
        )
        rows.append(exact[np.argsort(-np.abs(exact))][:3])
    return np.stack(rows)


def measured(manifest: Path) -> tuple[np.ndarray, dict]:
    output = manifest.with_suffix(".h5")
    report = pipeline.run(Manifest.load(manifest), output, unaudited=True, progress=False)
    assert report.complete, report.failures
    with SpectrumStore.open(output) as store:
        table = store.records("s", store.epochs("s")[-1])
        return table.eigenvalues, table.settings["as_trained"]


@pytest.mark.parametrize("name", FLAGS)
def test_a_run_of_open_clip_train_is_measured_as_the_function_that_it_trained(
    name, table, tmp_path
):
    flags, arguments = FLAGS[name]
    checkpoints = train(tmp_path, table, *flags)
    manifest = write_manifest(tmp_path, table, str(checkpoints))
    values, _ = measured(manifest)
    exact = true_eigenvalues(checkpoints / "epoch_1.pt", Manifest.load(manifest).data, arguments)
    np.testing.assert_allclose(values, exact, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["quick_gelu", "mean_std", "interpolation", "resize_mode", "context_length", "siglip"]
)
def test_the_flags_matter_a_model_by_its_name_alone_is_another_function_or_is_refused(
    name, table, tmp_path
):
    flags, arguments = FLAGS[name]
    checkpoints = train(tmp_path, table, *flags)
    manifest = write_manifest(tmp_path, table, str(checkpoints), run_files="ignore")
    try:
        values, _ = measured(manifest)
    except LandscapeError:
        return
    exact = true_eigenvalues(checkpoints / "epoch_1.pt", Manifest.load(manifest).data, arguments)
    assert np.abs(values / exact - 1).max() > 1e-4


def test_a_run_of_an_own_architecture_is_measured_from_its_file(table, tmp_path):
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "own_tiny_vit.json").write_text(json.dumps(OWN))
    open_clip.add_model_config(tmp_path / "cfg")
    checkpoints = train(tmp_path, table, model="own_tiny_vit")
    exact = None
    for number, (model, more) in enumerate(
        (
            ("cfg/own_tiny_vit.json", {}),
            ("own_tiny_vit", {"config": "cfg/own_tiny_vit.json"}),
            ("local-dir:hub", {}),
        )
    ):
        hub = tmp_path / "hub"
        hub.mkdir(exist_ok=True)
        (hub / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": OWN, "preprocess_cfg": {}})
        )
        manifest = write_manifest(tmp_path, table, str(checkpoints), model=model, **more)
        manifest = manifest.rename(tmp_path / f"m{number}.yaml")
        values, used = measured(manifest)
        if exact is None:
            exact = true_eigenvalues(
                checkpoints / "epoch_1.pt", Manifest.load(manifest).data, {}, model="own_tiny_vit"
            )
        np.testing.assert_allclose(values, exact, rtol=1e-5)
        assert used["activation"] == [
            "QuickGELU",
            "open_clip_config.json" if "local-dir" in model else "own_tiny_vit.json",
        ]
