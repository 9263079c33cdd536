"""The spectra of modules in a store and through the command: kept, resumed and refused like those
of the whole.
"""

import hashlib
import json

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landscape import pipeline
from landscape.cli import main
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import coordinates_of, modules_of
from landscape.errors import NumericalError, StoreError
from landscape.manifest import Manifest
from landscape.store import ModuleRecord, SpectrumStore, SpectrumWriter, parts_folder
from landscape.store.agreement import differing_field
from landscape.store.module_record import MODULE_LATER
from tests.helpers.oracles import dense_hessian
from tests.helpers.spectra_study import BATCH_SIZE, MODEL, NUM_BATCHES, make_study
from tests.helpers.store_records import K, as_parts, manifest_of, record_of

MODULES = ("patch", "blocks.0", "scale")
SIZES = np.array([40, 70, 1])


def modules_record(key: str, **changes) -> ModuleRecord:
    """Random numbers that depend on the key alone; the last module has one parameter."""
    series, epoch, batch = key.split("/")
    generator = np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"modules {key}".encode()).digest()[:8], "little")
    )
    there = np.arange(K) < SIZES[:, None]

    def values():
        return np.where(there, generator.standard_normal((3, K)), np.nan)

    like = record_of(key)
    fields = {
        "series": series,
        "epoch": int(epoch),
        "batch": int(batch),
        "modules": MODULES,
        "module_params": SIZES,
        **{name: values() for name in ("eigenvalues", "smallest", "largest")},
        **{
            name: np.abs(values())
            for name in ("residuals", "smallest_residuals", "largest_residuals", "value_bounds")
        },
        **{name: generator.random(3) for name in ("missed_distance", "missed_probability")},
        "converged": there & (generator.random((3, K)) < 0.5),
        **{
            name: generator.integers(0, 20, 3)
            for name in ("num_negative", "num_positive", "num_matvecs")
        },
        **{
            name: getattr(like, name)
            for name in ("loss", "batch_sha256", "checkpoint_sha256", "num_params", "seconds")
        },
        "settings": {"device": "cpu"},
        "extras": {"audit": {"passed": True}},
    }
    return ModuleRecord(**{**fields, **changes})


@pytest.fixture
def manifest(tmp_path):
    return manifest_of(tmp_path)


def fill(writer, manifest, *, whole=True, modules=True):
    for key in writer.plan.keys():
        if whole and key not in writer.completed_keys():
            writer.add(record_of(key, checkpoint_sha256=digest_of(manifest, key)))
        if modules and key not in writer.completed_modules():
            writer.add_modules(modules_record(key, checkpoint_sha256=digest_of(manifest, key)))


def digest_of(manifest, key):
    series = next(one for one in manifest.series if one.name == key.split("/")[0])
    return series.checkpoints[series.epochs.index(int(key.split("/")[1]))].sha256


def assert_stored(path, manifest):
    """Every number of every record, bit for bit, under its coordinates."""
    with SpectrumStore.open(path) as store:
        assert store.completed_modules() == frozenset(store.plan.keys())
        for series in ("wide", "narrow"):
            assert store.module_names(series) == MODULES
            for epoch in (0, 2):
                table = store.modules(series, epoch)
                assert table.modules == MODULES and table.batch.tolist() == [0, 1, 2, 3]
                assert table.module_params.tolist() == SIZES.tolist()
                for row, key in enumerate(table.keys):
                    record = modules_record(key)
                    for name in (*MATRICES, *MODULE_LATER, "num_negative", "num_matvecs"):
                        np.testing.assert_array_equal(
                            getattr(table, name)[row], getattr(record, name), strict=True
                        )
                    assert (
                        table.batch_sha256[row] == record.batch_sha256
                        and table.loss[row] == record.loss
                    )
                expected = [modules_record(key).num_not_converged for key in table.keys]
                assert table.num_not_converged == sum(expected) and table.num_records == 4
                assert table.extras == {"audit": {"passed": True}}


def test_spectra_of_modules_come_back_from_parts_and_from_the_merged_file(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest)
        assert_stored(path, manifest)
        writer.merge()
    assert not parts_folder(path).exists()
    assert_stored(path, manifest)
    with h5py.File(path) as file:
        group = file["modules/wide/2"]
        assert group["eigenvalues"].shape == (4, 3, K) and group["num_matvecs"].shape == (4, 3)
        assert (
            tuple(group["modules"].asstr()[()]) == MODULES
            and group.attrs["unit"] == "nat per squared parameter"
        )
        assert list(file["modules/wide"]) == ["0", "2"]


def test_modules_from_before_the_later_columns_are_read_with_unknown_values_and_can_grow(
    tmp_path, manifest
):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        writer.add_modules(
            modules_record("wide/0/1", checkpoint_sha256=digest_of(manifest, "wide/0/1"))
        )
        writer.merge()
    with h5py.File(path, "r+") as file:
        for name in MODULE_LATER:
            del file[f"modules/wide/0/{name}"]
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest, whole=False)
        writer.merge()
    with SpectrumStore.open(path) as store:
        table, old = store.modules("wide", 0), store.stored_module_record("wide", 0, 1)
    # What is stored without them is the same measurement.
    new = modules_record("wide/0/1", checkpoint_sha256=digest_of(manifest, "wide/0/1"))
    assert differing_field(old, new) is None and differing_field(new, old) == "value_bounds"
    for name in MODULE_LATER:
        column = getattr(table, name)
        assert np.isnan(column[1]).all()
        np.testing.assert_array_equal(column[2], getattr(modules_record("wide/0/2"), name))


def test_modules_are_added_to_a_finished_store_and_to_half_of_one(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest, modules=False)
        writer.merge()
    before = path.read_bytes()
    with SpectrumWriter(path, manifest) as writer:
        for key in ("wide/0/1", "wide/0/3", "narrow/2/0"):
            writer.add_modules(modules_record(key, checkpoint_sha256=digest_of(manifest, key)))
        writer.merge()
    assert path.read_bytes() != before
    with SpectrumWriter(path, manifest) as writer:
        assert writer.completed_modules() == {"wide/0/1", "wide/0/3", "narrow/2/0"}
        with pytest.raises(ValueError, match="wide/0/1 is stored already"):
            writer.add_modules(
                modules_record("wide/0/1", checkpoint_sha256=digest_of(manifest, "wide/0/1"))
            )
        fill(writer, manifest)
        # Rows of the merged file and of parts, in one table.
        assert_stored(path, manifest)
        writer.merge()
    assert_stored(path, manifest)
    with SpectrumStore.open(path) as store:
        assert store.completed_keys() == frozenset(store.plan.keys())


def test_modules_alone_make_a_store_too(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest, whole=False)
        writer.merge()
    assert_stored(path, manifest)
    with SpectrumStore.open(path) as store:
        assert store.series() == () and not store.completed_keys()
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest)
        writer.merge()
    assert_stored(path, manifest)


def test_what_was_not_measured_is_said_with_what_was(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest, modules=False)
        writer.merge()
    with SpectrumStore.open(path) as store:
        assert store.module_names("wide") is None and not store.completed_modules()
        with pytest.raises(
            StoreError,
            match="no spectra of modules of wide epoch 0, but of none at all.*--per-module",
        ):
            store.modules("wide", 0)


def test_other_modules_weights_pairs_and_numbers_are_refused(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    key = "wide/0/0"
    good = modules_record(key, checkpoint_sha256=digest_of(manifest, key))
    with SpectrumWriter(path, manifest) as writer:
        writer.add_modules(good)
        other = {"checkpoint_sha256": digest_of(manifest, "wide/0/1")}
        with pytest.raises(StoreError, match=r"3 modules, and these are 3 others \(blocks\.1\)"):
            writer.add_modules(
                modules_record("wide/0/1", modules=("patch", "blocks.1", "scale"), **other)
            )
        with pytest.raises(StoreError, match="its weights are not those"):
            writer.add_modules(modules_record("wide/0/1", checkpoint_sha256="0" * 64))
        with pytest.raises(StoreError, match="its pairs are not those"):
            writer.add(
                record_of(
                    "wide/2/0",
                    checkpoint_sha256=digest_of(manifest, "wide/2/0"),
                    batch_sha256="0" * 64,
                )
            )
        with pytest.raises(ValueError, match="not a measurement of this manifest"):
            writer.add_modules(modules_record("wide/1/0"))
        narrow = {
            name: getattr(good, name)[:, :2]
            for name in vars(good)
            if getattr(good, name) is not None and name in MATRICES
        }
        with pytest.raises(ValueError, match="has 2 eigenvalues, but the manifest asks for 3"):
            writer.add_modules(modules_record("wide/0/1", **{**narrow, **other}))
        writer.merge()
    # A series keeps its modules after a merge too.
    with SpectrumWriter(path, manifest) as writer:
        with pytest.raises(StoreError, match="others"):
            writer.add_modules(modules_record("wide/2/0", modules=("a", "b", "c")))


ENDS = ("smallest", "smallest_residuals", "largest", "largest_residuals")
MATRICES = ("eigenvalues", "residuals", "converged", *ENDS, "value_bounds")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": ("a", "a", "b")}, "different names"),
        ({"modules": ("a", "b")}, r"must have shape \(2,\)"),
        ({"module_params": np.array([2, 70, 1])}, "as many finite eigenvalues as its size allows"),
        ({"module_params": np.array([40, 70, 2])}, "as many finite eigenvalues as its size allows"),
        (
            {"residuals": np.full((3, K), np.nan), "converged": np.ones((3, K), dtype=bool)},
            "cannot count as converged",
        ),
        ({"smallest": np.zeros((3, K + 1))}, r"smallest \(3, 4\)"),
        ({"batch_sha256": "short"}, "hexadecimal"),
        ({"loss": np.nan}, "finite loss"),
    ],
)
def test_a_record_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        modules_record("wide/0/0", **changes)


def test_damaged_and_foreign_parts_are_left_out_and_said(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest, whole=False)
        folder = parts_folder(path)
    as_parts(folder)
    truncated, renamed = folder / "wide.0.1.modules.jsonl", folder / "wide.0.2.modules.jsonl"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    renamed.rename(folder / "wide.0.2.jsonl")
    other = folder / "narrow.2.3.modules.jsonl"
    header, body, _ = other.read_bytes().split(b"\n")
    body = body.replace(b"blocks.0", b"blocks.9")
    header = json.dumps({**json.loads(header), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    other.write_bytes(header + b"\n" + body + b"\n")
    with SpectrumStore.open(path) as store:
        reasons = {part.path.name: part.reason for part in store.rejected}
        assert set(reasons) == {
            "wide.0.1.modules.jsonl",
            "wide.0.2.jsonl",
            "narrow.2.3.modules.jsonl",
        }
        assert (
            "truncated" in reasons["wide.0.1.modules.jsonl"]
            and "not a record" in reasons["wide.0.2.jsonl"]
        )
        assert "its modules are not those of the rest" in reasons["narrow.2.3.modules.jsonl"]
        assert len(store.completed_modules()) == 16 - 3


def test_a_group_that_lies_about_its_shape_is_damage(tmp_path, manifest):
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        fill(writer, manifest)
        writer.merge()
    with h5py.File(path, "r+") as file:
        group = file["modules/wide/0"]
        cut = group["residuals"][:, :2]
        del group["residuals"]
        group["residuals"] = cut
    with (
        SpectrumStore.open(path) as store,
        pytest.raises(StoreError, match="damaged.*wide/0/residuals"),
    ):
        store.modules("wide", 0)


# --- through the command --------------------------------------------------------------------------


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_per_module_spectra_of_the_command_are_those_of_the_dense_hessian(tmp_path):
    patterns = ["visual.proj", "visual.ln_post.*", "visual.class_embedding", "logit_scale"]
    manifest = make_study(tmp_path, names=("one",), parameters=patterns, dtype="float64", tol=1e-6)
    output = tmp_path / "spectra.h5"
    result = invoke(
        "spectra", manifest, "-o", output, "--per-module", "--module-batches", 2, "--device", "cpu"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "modules of 4 of 4 batches are measured (4 now, 0 before)" in result.output
    loaded = Manifest.load(manifest)
    model = build_model(MODEL, dtype=torch.float64)
    load_checkpoint(model, tmp_path / "one_1.pt")
    batches = curvature_batches(
        open_pairs(loaded.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=tokenizer_for(MODEL),
    )
    objective, params = contrastive_objective(model, parameters=patterns)
    modules = modules_of(model, params)
    with SpectrumStore.open(output) as store:
        whole, table = store.records("one", 1), store.modules("one", 1)
    assert (
        table.modules
        == tuple(modules)
        == ("logit_scale", "visual.class_embedding", "visual.proj", "visual.ln_post")
    )
    assert (
        whole.num_records == NUM_BATCHES
        and table.batch.tolist() == [0, 1]
        and table.num_params == whole.num_params
    )
    for row in range(2):
        batch = {"image": batches[row]["image"].double(), "text": batches[row]["text"]}
        dense = dense_hessian(objective, params, batch)
        assert (
            table.loss[row] == whole.loss[row]
            and table.batch_sha256[row] == whole.batch_sha256[row]
        )
        for column, names in enumerate(modules.values()):
            rows = coordinates_of(params, names)
            exact = np.linalg.eigvalsh(dense[rows][:, rows].numpy())
            top = exact[np.argsort(-np.abs(exact))][:3]
            found = table.eigenvalues[row, column]
            np.testing.assert_allclose(found[: len(top)], top, rtol=1e-6, atol=1e-9)
            assert (
                np.isnan(found[len(top) :]).all() and table.converged[row, column, : len(top)].all()
            )
            assert table.smallest[row, column, 0] == pytest.approx(exact[0], rel=1e-3, abs=1e-9)
            assert table.num_negative[row, column] <= (exact < 0).sum()
    assert table.extras["audit"]["passed"] is True and "block by block" in table.settings["product"]
    info = invoke("info", output)
    assert "one epoch 1: spectra of 4 modules on 2 batches" in info.output
    # The same command finds all done; more batches are added, other modules are not.
    again = invoke(
        "spectra", manifest, "-o", output, "--per-module", "--module-batches", 2, "--device", "cpu"
    )
    assert (
        again.exit_code == 0
        and "modules of 4 of 4 batches are measured (0 now, 4 before)" in again.output
    )
    dry = invoke("spectra", manifest, "-o", output, "--per-module", "--dry-run")
    assert dry.exit_code == 0 and "to measure: modules of one epoch 0: 1 batches (2)" in dry.output
    others = invoke(
        "spectra",
        manifest,
        "-o",
        output,
        "--per-module",
        "--modules",
        "visual.proj",
        "--device",
        "cpu",
    )
    assert others.exit_code == 2 and "4 modules, and these are 1 others" in others.stderr


def test_modules_obey_the_limits_that_the_whole_obeys_and_say_so(tmp_path):
    manifest = make_study(
        tmp_path,
        names=("one",),
        epochs=(0,),
        parameters=["visual.proj", "visual.ln_post.*"],
        dtype="float64",
    )
    plain, lean = tmp_path / "plain.h5", tmp_path / "lean.h5"
    short = [
        "--per-module",
        "--batches",
        1,
        "--module-batches",
        1,
        "--unaudited",
        "--device",
        "cpu",
    ]
    assert invoke("spectra", manifest, "-o", plain, *short).exit_code == 0
    with SpectrumStore.open(plain) as store:
        expected = store.modules("one", 0)
    assert expected.settings["product"] == "double backward, retained graph, block by block"
    assert expected.settings["product_choice"]["reason"] == "its graph fits in memory"
    # The largest of the two blocks, and the whole, may keep ten vectors.
    room = 10 * 8 * int(expected.num_params)
    limits = ["--rows", 2, "--max-basis-memory", room]
    result = invoke("spectra", manifest, "-o", lean, *limits, *short)
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(lean) as store:
        found = store.modules("one", 0)
    assert found.settings["product"] == "double backward in chunks of rows of 2, block by block"
    assert found.settings["max_basis_memory"] == room and found.converged.all()
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-5)


def test_a_limit_in_which_nothing_fits_is_refused_in_one_line_though_the_whole_is_complete(
    tmp_path,
):
    manifest = make_study(
        tmp_path, names=("one",), epochs=(0,), parameters=["visual.proj", "visual.ln_post.*"]
    )
    output = tmp_path / "spectra.h5"
    some = invoke(
        "spectra", manifest, "-o", output, "--per-module", "--module-batches", 1, "--device", "cpu"
    )
    assert some.exit_code == 0
    before = output.read_bytes()
    for option, message in (
        ("--max-basis-memory", "1,000 bytes hold"),
        ("--max-memory", "do not fit in memory"),
    ):
        result = invoke(
            "spectra", manifest, "-o", output, "--per-module", option, "1kB", "--device", "cpu"
        )
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert output.read_bytes() == before


def test_a_batch_whose_modules_fail_costs_that_batch_alone(tmp_path, monkeypatch):
    manifest = make_study(tmp_path, names=("one",), epochs=(0,), parameters=["visual.proj"])
    import landscape.pipeline.modules as measuring

    measure = measuring._measure

    def failing(bench, batch):
        if batch == 1:
            raise NumericalError("overflow")
        return measure(bench, batch)

    monkeypatch.setattr(measuring, "_measure", failing)
    result = invoke("spectra", manifest, "-o", tmp_path / "a.h5", "--per-module", "--device", "cpu")
    assert (
        result.exit_code == 1
        and "failed: modules of one epoch 0 batch 1: overflow" in result.output
    )
    monkeypatch.undo()
    result = invoke("spectra", manifest, "-o", tmp_path / "a.h5", "--per-module", "--device", "cpu")
    assert (
        result.exit_code == 0
        and "modules of 3 of 3 batches are measured (1 now, 2 before)" in result.output
    )


def test_wrong_wishes_are_refused_before_anything_is_measured(tmp_path):
    manifest, output = make_study(tmp_path, parameters=["visual.proj"]), tmp_path / "spectra.h5"
    cases = [
        (["--per-module", "--method", "power"], "--method lanczos"),
        (["--per-module", "--hvp", "finite-difference"], "double backward"),
        (["--per-module", "--module-batches", NUM_BATCHES + 1], f"{NUM_BATCHES} batches"),
        (["--per-module", "--modules", "nothing.*", "--device", "cpu"], "'nothing.*'"),
        (["--modules", "visual.*"], "--per-module"),
    ]
    for options, message in cases:
        result = invoke("spectra", manifest, "-o", output, *options)
        assert result.exit_code == 2 and message in result.stderr, (result.output, result.exception)
        assert not list(tmp_path.glob("spectra*"))


def test_the_library_measures_what_the_command_does(tmp_path):
    manifest = Manifest.load(
        make_study(tmp_path, names=("one",), epochs=(0,), parameters=["visual.proj", "logit_scale"])
    )
    whole, modules = pipeline.run_with_modules(
        manifest, tmp_path / "a.h5", modules=("visual.proj",), progress=False
    )
    assert whole.complete and modules.complete and modules.what == "modules"
    with SpectrumStore.open(tmp_path / "a.h5") as store:
        assert store.modules("one", 0).modules == ("visual.proj",)
