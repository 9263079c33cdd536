"""Specification of the store of spectra, schema version 1.

It has the columns of whole models and of modules.

Shapes: batch = records of a checkpoint, k = eigenvalues per record, m = Ritz pairs of a record, the
longest in a table, module = diagonal blocks of the Hessian, n = parameters under study, parameter =
tensors that hold them.
"""

from typing import Any

from landscape.store.specification import (
    BOOLEAN,
    DIGEST,
    DIGESTS,
    FLOAT,
    HALF,
    INTEGER,
    JSON,
    TEXT,
    WHOLE,
    Entry,
    FileSpecification,
    GroupSpecification,
    attribute,
    dataset,
)
from landscape.store.table import PRECONDITIONED_UNIT, UNIT

_PER_VALUE, _PER_BATCH, _PER_NODE = ("batch", "k"), ("batch",), ("batch", "m")
_BLOCK_VALUE, _BLOCK = ("batch", "module", "k"), ("batch", "module")


def _column_of_values(
    name: str, unit: str, meaning: str, *, shape: tuple[str, ...] = _PER_VALUE, **more: Any
) -> Entry:
    return dataset(name, FLOAT, shape, unit, meaning, **more)


_RELATIVE = "‖Hv − λv‖ / |λ|"
_BATCH = dataset(
    "batch",
    INTEGER,
    _PER_BATCH,
    "1",
    "index of the mini-batch in the order in which the seed draws them, from 0",
)
_LOSS = _column_of_values("loss", "nat", "loss of the batch", shape=_PER_BATCH)
_BATCH_DIGEST = dataset(
    "batch_sha256", DIGESTS, _PER_BATCH, "", "digest of the samples of the batch"
)
_SECONDS = _column_of_values("seconds", "s", "CPU time", shape=_PER_BATCH)
# Facts that the tables of whole models and of modules have in common.
_FACTS = (
    attribute(
        "settings",
        JSON,
        "how it was computed where the protocol leaves freedom (device, threads, strategy)",
    ),
    attribute("versions", JSON, "versions of the packages that measured"),
    attribute("extras", JSON, "further facts; 'audit' is the verdict of the audit"),
    attribute(
        "num_params",
        WHOLE,
        "size n of the Hessian, parameters that a batch does not use included",
        unit="1",
    ),
    attribute("checkpoint_sha256", DIGEST, "digest of the weights"),
    attribute("model", TEXT, "model of the series"),
    attribute("label", TEXT, "what tables and figures call the series"),
    attribute("num_records", WHOLE, "batches that are stored", unit="1"),
    attribute("num_planned", WHOLE, "batches that the manifest asks for", unit="1"),
    attribute(
        "num_not_converged",
        WHOLE,
        "eigenvalues whose residual did not meet the tolerance",
        unit="1",
    ),
    attribute("unit", TEXT, "unit of the eigenvalues", value=(UNIT, PRECONDITIONED_UNIT)),
)


def _ends(shape: tuple[str, ...], **more: Any) -> tuple[Entry, ...]:
    """Specify both ends of the spectrum with their residuals.

    They have the axes of a table.
    """
    return tuple(
        entry
        for end in ("smallest", "largest")
        for entry in (
            _column_of_values(
                end,
                UNIT,
                f"the {end} Ritz values, outermost first; NaN where there are fewer",
                shape=shape,
                **more,
            ),
            _column_of_values(
                f"{end}_residuals", "1", f"{_RELATIVE} of each of them", shape=shape, **more
            ),
        )
    )


_VALUE_BOUNDS = (
    "bounds of |λ − value|, quadratic in the residuals, if all unseen eigenvalues lie in the hull "
    "of the unwanted Ritz values with their residuals; NaN where not known"
)
_MISSED_DISTANCE = (
    "an eigenvalue beyond the last, missed with more than 1 % probability, is this near to a "
    "computed value, as a fraction of it; NaN where no look was made"
)
_MISSED_PROBABILITY = (
    "the largest probability that one farther than 5 % (or the tolerance) from every computed "
    "value was missed; NaN where no look was made"
)
AT_LEAST = "at least so many eigenvalues are {} (interlacing; certified); -1 where unknown"

SPECTRA = GroupSpecification(
    path="/spectra/<series>/<epoch>",
    meaning="one checkpoint; a row for each measured batch, in order of batch",
    entries=(
        *_FACTS,
        _BATCH,
        _column_of_values("eigenvalues", UNIT, "eigenvalues in the order of the solver"),
        _column_of_values("residuals", "1", f"{_RELATIVE} of each"),
        dataset("converged", BOOLEAN, _PER_VALUE, "1", "whether the residual met the tolerance"),
        dataset("num_matvecs", INTEGER, _PER_BATCH, "1", "Hessian-vector products spent"),
        _column_of_values(
            "ritz_values",
            UNIT,
            "nodes of the Gauss quadrature of the Krylov space; short rows end in NaN",
            shape=_PER_NODE,
        ),
        _column_of_values(
            "ritz_weights", "1", "weights of the quadrature, which sum to 1", shape=_PER_NODE
        ),
        *_ends(_PER_VALUE, is_optional=True),
        _column_of_values("value_bounds", UNIT, _VALUE_BOUNDS, is_optional=True),
        _column_of_values(
            "missed_distance", "1", _MISSED_DISTANCE, shape=_PER_BATCH, is_optional=True
        ),
        _column_of_values(
            "missed_probability", "1", _MISSED_PROBABILITY, shape=_PER_BATCH, is_optional=True
        ),
        dataset(
            "num_negative", INTEGER, _PER_BATCH, "1", AT_LEAST.format("negative"), is_optional=True
        ),
        dataset(
            "num_positive", INTEGER, _PER_BATCH, "1", AT_LEAST.format("positive"), is_optional=True
        ),
        _column_of_values(
            "orthogonality_defect",
            "1",
            "max |VᵀV − I| of the Krylov basis",
            shape=_PER_BATCH,
            is_optional=True,
        ),
        _column_of_values(
            "parameter_norm",
            "1",
            "Euclidean norm of the parameters",
            shape=_PER_BATCH,
            is_optional=True,
        ),
        dataset(
            "num_unused",
            INTEGER,
            _PER_BATCH,
            "1",
            "parameters that the batch cannot move (token embeddings that it does not look up): "
            "exact zeros that Krylov vectors leave out; -1 where nobody counted",
            is_optional=True,
        ),
        _LOSS,
        _BATCH_DIGEST,
        _SECONDS,
    ),
)
MODULES = GroupSpecification(
    path="/modules/<series>/<epoch>",
    meaning=(
        "with --per-module: the diagonal block of every module; a block smaller than k has rows "
        "that end in NaN"
    ),
    entries=(
        *_FACTS,
        dataset("modules", TEXT, ("module",), "", "dotted names, in the order of the network"),
        dataset("module_params", INTEGER, ("module",), "1", "size of each block"),
        _BATCH,
        _column_of_values(
            "eigenvalues", UNIT, "eigenvalues in the order of the solver", shape=_BLOCK_VALUE
        ),
        _column_of_values("residuals", "1", f"{_RELATIVE} of each", shape=_BLOCK_VALUE),
        dataset("converged", BOOLEAN, _BLOCK_VALUE, "1", "whether the residual met the tolerance"),
        *_ends(_BLOCK_VALUE),
        _column_of_values(
            "value_bounds", UNIT, _VALUE_BOUNDS, shape=_BLOCK_VALUE, is_optional=True
        ),
        _column_of_values("missed_distance", "1", _MISSED_DISTANCE, shape=_BLOCK, is_optional=True),
        _column_of_values(
            "missed_probability", "1", _MISSED_PROBABILITY, shape=_BLOCK, is_optional=True
        ),
        dataset("num_negative", INTEGER, _BLOCK, "1", AT_LEAST.format("negative")),
        dataset("num_positive", INTEGER, _BLOCK, "1", AT_LEAST.format("positive")),
        dataset("num_matvecs", INTEGER, _BLOCK, "1", "products with each block"),
        _LOSS,
        _BATCH_DIGEST,
        _SECONDS,
    ),
)
VECTORS = GroupSpecification(
    path="/vectors/<series>/<epoch>/<number>",
    meaning=(
        "with --keep-vectors: the leading eigenvectors of the batch of this number; vector i is "
        "scales[i] times vectors[i]"
    ),
    entries=(
        attribute("batch_sha256", DIGEST, "digest of the samples of the batch"),
        attribute("checkpoint_sha256", DIGEST, "digest of the weights"),
        attribute("protocol_sha256", DIGEST, "digest of the protocol of the series"),
        dataset(
            "vectors",
            HALF,
            ("k", "n"),
            "1",
            "unit eigenvectors in half precision, each multiplied by a power of two so that its "
            "largest entry is between 2¹⁴ and 2¹⁵",
        ),
        _column_of_values("scales", "1", "the inverse of that power of two", shape=("k",)),
        _column_of_values(
            "rounding", "1", "norm of what rounding took from the unit vector", shape=("k",)
        ),
        _column_of_values(
            "eigenvalues", UNIT, "eigenvalues in the order of the solver", shape=("k",)
        ),
        _column_of_values("residuals", "1", f"{_RELATIVE} of each", shape=("k",)),
        _column_of_values(
            "rest",
            UNIT,
            "smallest and largest of the other Ritz values, with their residuals: all other "
            "eigenvalues are taken to lie between; inf and -inf where there are no others, NaN "
            "where not known",
            shape=("end",),
        ),
        dataset("parameters", TEXT, ("parameter",), "", "names of the tensors, in order"),
        dataset("parameter_sizes", INTEGER, ("parameter",), "1", "entries of each; they sum to n"),
        dataset("parameter_modules", TEXT, ("parameter",), "", "module that holds each"),
    ),
)
SPECTRA_FILE = FileSpecification(
    kind="spectra",
    version_key="schema_version",
    version=1,
    writers=("landscape spectra", "landscape merge"),
    groups=(
        GroupSpecification(
            path="/",
            meaning="the whole file",
            entries=(
                attribute("schema_version", WHOLE, "version of this specification", value=1),
                attribute("landscape_version", TEXT, "version of landscape that wrote the file"),
                attribute("manifest_sha256", DIGEST, "digest of all that the manifest means"),
                attribute("protocol", JSON, "all settings of data and Hessian"),
                attribute(
                    "protocol_sha256",
                    DIGEST,
                    "digest of the protocol, and of 'trained' where it is not empty",
                ),
                attribute(
                    "trained",
                    JSON,
                    "by series: what makes its model another than its name says",
                    is_optional=True,
                ),
                attribute(
                    "unit", TEXT, "unit of the eigenvalues", value=(UNIT, PRECONDITIONED_UNIT)
                ),
            ),
        ),
        GroupSpecification(
            path="/plan",
            meaning="a row for each planned checkpoint, in order",
            entries=(
                dataset("series", TEXT, ("checkpoint",), "", "name of the series"),
                dataset("model", TEXT, ("checkpoint",), "", "model of the series"),
                dataset(
                    "label", TEXT, ("checkpoint",), "", "what tables and figures call the series"
                ),
                dataset(
                    "epoch",
                    INTEGER,
                    ("checkpoint",),
                    "1",
                    "finished epochs of training; 0 is the initialisation",
                ),
                dataset(
                    "num_batches",
                    INTEGER,
                    ("checkpoint",),
                    "1",
                    "batches that the manifest asks for",
                ),
            ),
        ),
        GroupSpecification(path="/spectra", meaning="the spectra of whole models"),
        GroupSpecification(path="/spectra/<series>", meaning="one series"),
        SPECTRA,
        GroupSpecification(path="/modules", meaning="the spectra of modules", is_optional=True),
        GroupSpecification(path="/modules/<series>", meaning="one series"),
        MODULES,
        GroupSpecification(path="/vectors", meaning="kept eigenvectors", is_optional=True),
        GroupSpecification(path="/vectors/<series>", meaning="one series"),
        GroupSpecification(path="/vectors/<series>/<epoch>", meaning="one checkpoint"),
        VECTORS,
    ),
)
