"""The files that landscape writes follow the specification, docs/store.md prints it, and the
validator sees what deviates.
"""

import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.errors import StoreError
from landscape.store import (
    SCHEMA_VERSION,
    SpectrumWriter,
    surfaces,
    validate,
    write_densities,
    write_surface,
)
from landscape.store.densities import DENSITY_SCHEMA_VERSION
from landscape.store.predictions import PREDICTION_SCHEMA_VERSION, write_predictions
from landscape.store.specified_files import (
    DENSITY_FILE,
    FILES,
    PREDICTION_FILE,
    SPECTRA_FILE,
    SURFACE_FILE,
)
from landscape.store.specified_spectra import SPECTRA
from landscape.store.xarray import VARIABLES
from tests.helpers.folders import ROOT
from tests.helpers.store_records import manifest_of, record_of
from tests.helpers.store_vectors import vector_record_of
from tests.store.test_damage import density, module_record, surface
from tests.store.test_predictions import make_store

PAGE = ROOT / "docs" / "store.md"
VIT = "spectra/wide/0"


def printed(group):
    """The table of a group as docs/store.md prints it."""
    lines = ["| name | kind | type | shape | unit | meaning |", "|---|---|---|---|---|---|"]
    for entry in group.entries:
        kind = "dataset" if entry.is_dataset else "attribute"
        shapes = () if entry.shape is None else (entry.shape, *entry.others)
        shape = " or ".join(" × ".join(axes) for axes in shapes)
        allowed = entry.value if isinstance(entry.value, tuple) else (entry.value,)
        value = "" if entry.value is None else f": {' or '.join(map(str, allowed))}"
        missing = " (may be missing)" if entry.is_optional else ""
        empty = " (may be empty)" if entry.may_be_empty and "empty" not in entry.meaning else ""
        meaning = f"{entry.meaning}{value}{missing}{empty}".replace("|", "\\|")
        type_name = f"`{entry.type}`" if entry.is_dataset and entry.type != "text" else entry.type
        lines.append(
            f"| `{entry.name}` | {kind} | {type_name} | {shape} | {entry.unit} | {meaning} |"
        )
    return "\n".join(lines)


def write_all(folder):
    """One file of each kind, as the writers of the program write it."""
    folder.mkdir(exist_ok=True)
    with SpectrumWriter(folder / "spectra.h5", manifest_of(folder, num_batches=2)) as writer:
        for key in writer.plan.keys():
            writer.add_all([record_of(key)], vectors=[vector_record_of(key, writer.plan)])
            writer.add_modules(module_record(key))
        writer.merge()
    write_densities(folder / "densities.h5", [density()])
    write_surface(folder / "surface.h5", surface())
    write_predictions(folder / "predictions.h5", make_store())
    return folder


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("intact"))


KINDS = {
    "spectra.h5": SPECTRA_FILE,
    "densities.h5": DENSITY_FILE,
    "surface.h5": SURFACE_FILE,
    "predictions.h5": PREDICTION_FILE,
}


@pytest.fixture
def changed(intact, tmp_path):
    """Change a copy of a file, and return what the command says of it."""

    def change(how, name="spectra.h5"):
        path = tmp_path / name
        shutil.copy(intact / name, path)
        with h5py.File(path, "r+") as file:
            how(file)
        return CliRunner().invoke(main, ["info", str(path), "--validate"])

    return change


def replaced(file, name, data, **options):
    del file[name]
    file.create_dataset(name, data=data, **options)


@pytest.mark.parametrize("name", KINDS)
def test_what_the_program_writes_conforms(intact, name):
    result = validate(intact / name)
    assert result.deviations == () and result.specification is KINDS[name]
    # Everything in the file was looked at.
    with h5py.File(intact / name) as file:
        kinds = [h5py.Group]
        file.visititems(lambda _, item: kinds.append(type(item)))
    assert (result.num_groups, result.num_datasets) == (
        kinds.count(h5py.Group),
        kinds.count(h5py.Dataset),
    )
    said = CliRunner().invoke(main, ["info", str(intact / name), "--validate"])
    assert said.exit_code == 0 and said.output.count("\n") == 1
    assert f"conforms to schema version 1 of {KINDS[name].kind}" in said.output


EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.h5"))


@pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=lambda path: f"{path.parent.parent.name}/{path.name}"
)
def test_the_stores_of_the_experiments_conform(path):
    assert validate(path).deviations == ()


def test_a_slice_of_one_dimension_conforms_too(tmp_path):
    from landscape.store import StoredSurface
    from landscape.surface import Axis, LossSlice

    axis = Axis(name="x", unit="1", coordinates=np.linspace(-1, 1, 5), norm=1.0)
    result = LossSlice(axis=axis, losses=np.ones(5), computed=np.ones(5, dtype=bool), local=None)
    write_surface(tmp_path / "line.h5", StoredSurface(result=result, request={"points": 5}))
    assert validate(tmp_path / "line.h5").conforms


def number(file):
    file["spectra"].create_group("narrow/7x")


def link(file):
    file[VIT]["extra"] = h5py.ExternalLink("elsewhere.h5", "/")


DEVIATIONS = {
    "a dataset is gone": (
        lambda file: file[VIT].__delitem__("loss"),
        f"/{VIT}: dataset loss is missing.",
    ),
    "a group is gone": (lambda file: file.__delitem__("plan"), "/: group plan is missing."),
    "an attribute is gone": (
        lambda file: file[VIT].attrs.__delitem__("versions"),
        f"/{VIT}: attribute versions is missing.",
    ),
    "another type": (
        lambda file: replaced(file, f"{VIT}/loss", np.zeros(2, dtype="<f4")),
        f"/{VIT}: dataset loss holds float32, not float64.",
    ),
    "numbers for texts": (
        lambda file: replaced(file, "plan/label", np.zeros(4)),
        "/plan: dataset label holds float64, not text.",
    ),
    "another number of axes": (
        lambda file: replaced(file, f"{VIT}/loss", np.zeros((2, 3))),
        f"/{VIT}: dataset loss has shape (2, 3), not (batch).",
    ),
    "another length": (
        lambda file: replaced(file, f"{VIT}/seconds", np.zeros(5)),
        f"/{VIT}: dataset seconds has shape (5,), but its axis batch has length 2 in batch.",
    ),
    "an extra group": (
        lambda file: file.create_group("more"),
        "/: unexpected group more (expected plan or spectra or modules or vectors).",
    ),
    "an extra dataset": (
        lambda file: file[VIT].create_dataset("more", data=1),
        f"/{VIT}: unexpected dataset more.",
    ),
    "an extra attribute": (lambda file: file.attrs.update(more=1), "/: unexpected attribute more."),
    "an epoch that is no number": (
        number,
        "/spectra/narrow: unexpected group 7x (expected <epoch>).",
    ),
    "a link to another file": (link, f"/{VIT}: unexpected link extra."),
    "a group for a dataset": (
        lambda file: (file[VIT].__delitem__("loss"), file[VIT].create_group("loss")),
        f"/{VIT}: loss is a group, not a dataset.",
    ),
    "another unit": (
        lambda file: file[VIT].attrs.update(unit="nat"),
        f"/{VIT}: attribute unit is 'nat', not 'nat per squared parameter' or '1 / learning rate'.",
    ),
    "text for a number": (
        lambda file: file[VIT].attrs.update(num_params="many"),
        f"/{VIT}: attribute num_params is 'many', not a whole number.",
    ),
    "no JSON": (
        lambda file: file[VIT].attrs.update(settings="[1"),
        f"/{VIT}: attribute settings is '[1', not a mapping in JSON.",
    ),
    "no digest": (
        lambda file: file.attrs.update(manifest_sha256="ff"),
        "/: attribute manifest_sha256 is 'ff', not a SHA-256.",
    ),
    "another version": (
        lambda file: file.attrs.update(schema_version=2),
        "/: attribute schema_version is 2, not 1; nothing else was checked.",
    ),
}


@pytest.mark.parametrize("what", DEVIATIONS)
def test_each_deviation_is_one_line_and_the_status_is_1(changed, what):
    change, line = DEVIATIONS[what]
    said = changed(change)
    first, *rest = said.output.splitlines()
    assert said.exit_code == 1 and first == line
    assert len(rest) == 1 and "1 deviation from schema version 1 of spectra" in rest[0]


def test_all_deviations_are_told_at_once(changed):
    def spoil(file):
        del file[VIT]["loss"]
        replaced(file, f"{VIT}/residuals", np.zeros((2, 3), dtype="<f4"))
        file.attrs["more"] = 1

    said = changed(spoil)
    assert (
        said.exit_code == 1 and len(said.output.splitlines()) == 4 and "3 deviations" in said.output
    )


def test_a_value_that_no_measurement_gives_is_a_deviation(changed):
    def spoil(file):
        file[f"{VIT}/loss"][0] = np.nan

    said = changed(spoil)
    assert (
        said.exit_code == 1
        and said.output.startswith("values: ")
        and "loss of wide/0/0 is nan" in said.output
    )


def test_a_flipped_bit_is_a_deviation(intact, tmp_path):
    content = bytearray((intact / "spectra.h5").read_bytes())
    with h5py.File(intact / "spectra.h5") as file:
        offset = file[f"{VIT}/ritz_values"].id.get_chunk_info(0).byte_offset
    content[offset] ^= 1
    (tmp_path / "s.h5").write_bytes(content)
    said = CliRunner().invoke(main, ["info", str(tmp_path / "s.h5"), "--validate"])
    assert said.exit_code == 1 and said.output.startswith("values: damaged")


@pytest.mark.parametrize(
    "name, change, line",
    [
        (
            "densities.h5",
            lambda file: file["density/a/0"].__delitem__("nodes"),
            "/density/a/0: dataset nodes is missing.",
        ),
        (
            "densities.h5",
            lambda file: file["density/a/0"].attrs.update(n=2.5),
            "/density/a/0: attribute n is 2.5, not a whole number.",
        ),
        (
            "surface.h5",
            lambda file: file["axes/1"].__delitem__("coordinates"),
            "/axes/1: dataset coordinates is missing.",
        ),
        (
            "surface.h5",
            lambda file: file.attrs.update(unit="bit"),
            "/: attribute unit is 'bit', not 'nat'.",
        ),
        (
            "predictions.h5",
            lambda file: replaced(file, "predictions/vit/5/0/done", np.zeros(3, dtype=bool)),
            "/predictions/vit/5/0: dataset done has shape (3,), but its axis picture has length ",
        ),
        (
            "predictions.h5",
            lambda file: file.attrs.update(schema_version=9),
            "/: attribute schema_version is 9, not 1;",
        ),
    ],
)
def test_files_of_other_kinds_are_checked_against_their_own_schema(changed, name, change, line):
    said = changed(change, name)
    assert said.exit_code == 1 and said.output.startswith(line)


def test_older_files_lack_columns_and_conform(changed):
    def forget(file):
        for entry in SPECTRA.datasets.values():
            if entry.is_optional:
                del file[VIT][entry.name]
        del file["modules"], file["vectors"], file.attrs["trained"]

    assert changed(forget).exit_code == 0


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_what_is_no_store_ends_with_2_and_one_line(tmp_path, content):
    path = tmp_path / "x.h5"
    if content is None:
        with h5py.File(path, "w") as file:
            file.attrs["other"] = 1
    else:
        path.write_bytes(content)
    said = CliRunner().invoke(main, ["info", str(path), "--validate"])
    assert (
        said.exit_code == 2 and len(said.output.splitlines()) == 1 and "landscape:" in said.output
    )


def test_a_missing_file_and_a_growing_store_are_refused_by_name(tmp_path):
    with pytest.raises(StoreError, match="there is no such file"):
        validate(tmp_path / "none.h5")
    with SpectrumWriter(tmp_path / "s.h5", manifest_of(tmp_path)) as writer:
        writer.add(record_of("wide/0/0"))
        with pytest.raises(StoreError, match="is not finished"):
            validate(tmp_path / "s.h5")


@pytest.mark.parametrize("specification", FILES, ids=lambda one: one.kind)
def test_the_page_prints_the_specification_and_nothing_else(specification):
    page = PAGE.read_text()
    titles = {
        "spectra": "Spectra",
        "densities": "Densities",
        "loss surface": "Loss surfaces",
        "predictions": "Predictions",
    }
    after = page.split(f"\n## {titles[specification.kind]}, version {specification.version}\n", 1)[
        1
    ]
    section = after.split("\n## ", 1)[0]
    groups = [group for group in specification.groups if group.entries]
    for group in groups:
        table = printed(group)
        assert f"### `{group.path}`" in section and table in section, (
            f"docs/store.md should hold:\n\n{table}"
        )
    assert section.count("\n### ") == len(groups) and section.count("\n| `") == sum(
        len(group.entries) for group in groups
    )


def test_versions_and_units_agree_with_the_code_that_writes_and_reads():
    versions = (
        SCHEMA_VERSION,
        DENSITY_SCHEMA_VERSION,
        surfaces._SCHEMA_VERSION,
        PREDICTION_SCHEMA_VERSION,
    )
    assert (
        tuple(one.version for one in (SPECTRA_FILE, DENSITY_FILE, SURFACE_FILE, PREDICTION_FILE))
        == versions
    )
    for name, (_, unit, _) in VARIABLES.items():
        assert SPECTRA.datasets[name].unit == unit, name
