"""Specifications of all HDF5 files that landscape writes.

They hold spectra, densities, loss surfaces and predictions.

Shapes: probe = random vectors over all batches, m = nodes of a quadrature, c = eigenvalues known
individually, n = parameters, t = stored classes of each picture.
"""

from landscape.store.specification import (
    BOOLEAN,
    DIGEST,
    FLOAT,
    INTEGER,
    JSON,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    FileSpecification,
    GroupSpecification,
    attribute,
    dataset,
)
from landscape.store.specified_spectra import AT_LEAST, SPECTRA_FILE
from landscape.store.table import UNIT

_SLOPE, _CURVATURE = "nat per unit of the axis", "nat per squared unit of the axis"

DENSITY_FILE = FileSpecification(
    kind="densities",
    version_key="density_schema_version",
    version=1,
    writers=("landscape density",),
    groups=(
        GroupSpecification(
            path="/",
            meaning="the whole file",
            entries=(
                attribute(
                    "density_schema_version", WHOLE, "version of this specification", value=1
                ),
                attribute("landscape_version", TEXT, "version of landscape that wrote the file"),
                attribute("unit", TEXT, "unit of the eigenvalues", value=UNIT),
            ),
        ),
        GroupSpecification(path="/density", meaning="all densities", is_optional=True),
        GroupSpecification(path="/density/<series>", meaning="one series"),
        GroupSpecification(
            path="/density/<series>/<epoch>",
            meaning="one checkpoint over a few mini-batches, measured with probes of its own",
            entries=(
                attribute("label", TEXT, "what figures call the series"),
                attribute("model", TEXT, "model of the series"),
                attribute("n", WHOLE, "size of the Hessian", unit="1"),
                attribute(
                    "checkpoint_sha256", TEXT, "digest of the weights; empty for random weights"
                ),
                attribute("settings", JSON, "how it was measured"),
                attribute("audited", TRUTH, "whether the products passed an audit"),
                attribute(
                    "resolution",
                    NUMBER,
                    "eigenvalues nearer to zero than this count as zero",
                    unit=UNIT,
                ),
                attribute("rounding", NUMBER, "unit of rounding of the products", unit="1"),
                attribute("num_matvecs", WHOLE, "Hessian-vector products spent", unit="1"),
                attribute(
                    "orthogonality_defect", NUMBER, "max |VᵀV − I| of the Krylov bases", unit="1"
                ),
                dataset(
                    "nodes",
                    FLOAT,
                    ("probe", "m"),
                    UNIT,
                    "nodes of the quadrature of each probe; short rows end in NaN",
                ),
                dataset("weights", FLOAT, ("probe", "m"), "1", "their weights"),
                dataset(
                    "operators",
                    INTEGER,
                    ("probe",),
                    "1",
                    "index of the batch of each probe among the stored ones",
                ),
                dataset(
                    "remainders",
                    FLOAT,
                    ("probe",),
                    UNIT,
                    "off-diagonal entry that would continue the tridiagonal matrix; NaN where it "
                    "was not kept",
                ),
                dataset("exact", FLOAT, ("batch", "c"), UNIT, "eigenvalues known one by one"),
                dataset("exact_residuals", FLOAT, ("batch", "c"), UNIT, "their residual norms"),
                dataset("num_zeros", INTEGER, ("batch",), "1", "eigenvalues that are exactly zero"),
                dataset(
                    "dense_eigenvalues",
                    FLOAT,
                    ("batch", "n"),
                    UNIT,
                    "all eigenvalues, from the assembled matrix; empty where it is too large",
                    may_be_empty=True,
                ),
                dataset(
                    "num_negative",
                    INTEGER,
                    ("batch",),
                    "1",
                    AT_LEAST.format("negative"),
                    may_be_empty=True,
                ),
            ),
        ),
    ),
)
SURFACE_FILE = FileSpecification(
    kind="loss surface",
    version_key="schema_version",
    version=1,
    writers=("landscape surface",),
    groups=(
        GroupSpecification(
            path="/",
            meaning="one loss slice or surface",
            entries=(
                attribute("schema_version", WHOLE, "version of this specification", value=1),
                attribute("kind", TEXT, "what the file holds", value="loss surface"),
                attribute("landscape_version", TEXT, "version of landscape that wrote the file"),
                attribute("request", JSON, "everything that decides its numbers"),
                attribute(
                    "directions_sha256",
                    TEXT,
                    "digest of the directions; empty where the request decides them",
                ),
                attribute(
                    "as_trained",
                    JSON,
                    "how the model was trained, with who states it",
                    is_optional=True,
                ),
                attribute("unit", TEXT, "unit of the losses", value="nat"),
                attribute(
                    "cosine",
                    NUMBER,
                    "cosine of the angle between the axes; NaN of one axis",
                    unit="1",
                ),
                dataset(
                    "losses",
                    FLOAT,
                    ("x",),
                    "nat",
                    "loss; NaN where not computed, or not a number",
                    others=(("x", "y"),),
                ),
                dataset(
                    "computed",
                    BOOLEAN,
                    ("x",),
                    "1",
                    "whether the point was evaluated",
                    others=(("x", "y"),),
                ),
            ),
        ),
        GroupSpecification(path="/axes", meaning="one or two axes"),
        GroupSpecification(
            path="/axes/<number>",
            meaning="one axis, from 0",
            entries=(
                attribute("name", TEXT, "heading of the axis"),
                attribute("unit", TEXT, "unit of the coordinates"),
                attribute("norm", NUMBER, "length of the direction", unit="1"),
                attribute(
                    "eigenvalue", NUMBER, "eigenvalue of the direction; NaN of others", unit=UNIT
                ),
                attribute(
                    "bound", NUMBER, "residual bound of the eigenvalue; NaN of others", unit=UNIT
                ),
                attribute(
                    "converged", WHOLE, "1 or 0; -1 of a direction that is no eigenvector", unit="1"
                ),
                attribute(
                    "fit_value",
                    NUMBER,
                    "curvature by differences of losses; NaN where not fitted",
                    unit=_CURVATURE,
                ),
                attribute(
                    "fit_error", NUMBER, "its error; infinite where the fit failed", unit=_CURVATURE
                ),
                attribute(
                    "fit_step", NUMBER, "largest step of the differences, in the unit of the axis"
                ),
                dataset(
                    "coordinates",
                    FLOAT,
                    ("point",),
                    "",
                    "coordinates, ascending, in the unit of the axis",
                ),
            ),
        ),
        GroupSpecification(
            path="/local",
            meaning="the quadratic that derivatives predict",
            is_optional=True,
            entries=(
                attribute("loss", NUMBER, "loss at the origin", unit="nat"),
                dataset("slopes", FLOAT, ("axis",), _SLOPE, "first derivatives along the axes"),
                dataset(
                    "hessian",
                    FLOAT,
                    ("axis", "axis"),
                    _CURVATURE,
                    "second derivatives along the axes",
                ),
            ),
        ),
    ),
)
PREDICTION_FILE = FileSpecification(
    kind="predictions",
    version_key="schema_version",
    version=1,
    writers=("landscape evaluate", "landscape ood"),
    groups=(
        GroupSpecification(
            path="/",
            meaning="the whole file",
            entries=(
                attribute("schema_version", WHOLE, "version of this specification", value=1),
                attribute("kind", TEXT, "what the file holds", value="predictions"),
                attribute("landscape_version", TEXT, "version of landscape that wrote the file"),
                dataset(
                    "answers",
                    "u1",
                    ("byte",),
                    "",
                    "CSV of the answers of people and of other models, UTF-8",
                    is_optional=True,
                ),
            ),
        ),
        GroupSpecification(path="/sets", meaning="the data sets, each in one condition"),
        GroupSpecification(
            path="/sets/<number>",
            meaning="one set",
            entries=(
                attribute(
                    "facts", JSON, "name, condition, metric, class names, digests, sources, notes"
                ),
                dataset("keys", "u1", ("byte",), "", "names of the pictures: a JSON list, UTF-8"),
                dataset("labels", "<i4", ("picture",), "1", "class of each picture, from 0"),
            ),
        ),
        GroupSpecification(path="/predictions", meaning="all answers of the models"),
        GroupSpecification(path="/predictions/<series>", meaning="one series"),
        GroupSpecification(
            path="/predictions/<series>/<epoch>",
            meaning="one checkpoint",
            entries=(
                attribute("model", TEXT, "model of the series"),
                attribute("label", TEXT, "what tables and figures call the series"),
                attribute("checkpoint_sha256", DIGEST, "digest of the weights"),
                attribute("settings", JSON, "how scores were computed"),
                attribute("as_trained", JSON, "how the model was trained, with who states it"),
            ),
        ),
        GroupSpecification(
            path="/predictions/<series>/<epoch>/<number>",
            meaning="its answers to the set of this number",
            entries=(
                attribute("unread", JSON, "why a picture could not be read, by its place"),
                dataset(
                    "top",
                    "<i4",
                    ("picture", "t"),
                    "1",
                    "the best classes, the best first; -1 where there is no answer",
                ),
                dataset(
                    "scores",
                    "<f4",
                    ("picture", "t"),
                    "1",
                    "their scores; NaN where there is no answer",
                ),
                dataset("done", BOOLEAN, ("picture",), "1", "whether the picture was shown"),
            ),
        ),
    ),
)
FILES = (SPECTRA_FILE, DENSITY_FILE, SURFACE_FILE, PREDICTION_FILE)
