"""The section `evaluation` of a manifest: labelled pictures for its models."""

from dataclasses import dataclass
from pathlib import Path

from landscape.manifest.document import Located, Section, kind
from landscape.manifest.reading_series import absolute

_KEYS = {"slip": str, "sets": dict}
_OF_SET = {"path": str, "split": str}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A data set for zero-shot classification.

    Args:
        name: Name of a known set, such as food101, or of the user's own set.
        path: Absolute path; None where the set needs none.
        split: Split of the set; None for its default.
    """

    name: str
    path: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The pictures and prompts on which models are evaluated.

    Args:
        sets: Data sets; an empty tuple means the embedded pictures.
        slip: Folder of SLIP's labels.json and templates.json, the published protocol; None for the
            files beside the data.
    """

    sets: tuple[EvaluationSet, ...] = ()
    slip: Path | None = None


def read_evaluation(section: Section) -> EvaluationSettings:
    """Read the section `evaluation`.

    Paths are relative to the manifest. They need not exist where only curvature is measured.

    Raises:
        ManifestError: Where, what, why, and what to do.
    """
    section.check_keys(known=_KEYS, required=())
    values = section.take(_KEYS)
    slip = values.get("slip")
    entries = []
    sets: Section | None = values.get("sets")
    for name, value in ({} if sets is None else sets.mapping).items():
        assert sets is not None
        if isinstance(value, str):
            entries.append(EvaluationSet(name=name, path=str(absolute(section.path, value))))
        elif isinstance(value, Located):
            own = Section(section.path, f"{sets.name}{name}.", value)
            own.check_keys(known=_OF_SET, required=())
            given = own.take(_OF_SET)
            path = given.get("path")
            entries.append(
                EvaluationSet(
                    name=name,
                    path=None if path is None else str(absolute(section.path, path)),
                    split=given.get("split"),
                )
            )
        elif value is None:
            entries.append(EvaluationSet(name=name))
        else:
            sets.refuse(
                f"{name}: expected the path of its files, or a mapping of path and split, got "
                f"{kind(value)}.",
                key=name,
            )
    return EvaluationSettings(
        sets=tuple(entries), slip=None if slip is None else absolute(section.path, slip)
    )
