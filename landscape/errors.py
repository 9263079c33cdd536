"""Every exception that landscape raises on purpose, each with the exit status of the command line.

A message says where - what (expected, got) - why it matters - what to do, on one line.
"""


class LandscapeError(Exception):
    """A wrong file, setting or run; the command line prints it on one line and exits with `exit_code`."""

    exit_code = 2


class ManifestError(LandscapeError):
    """The manifest is missing, malformed, or describes something that is not there."""


class DataError(LandscapeError):
    """The image-text pairs are missing, too few, or unreadable."""


class PictureError(DataError):
    """One picture cannot be read: its batch fails, the others can be measured.

    Args:
        problem: Which picture, and why.
        advice: What to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem} {advice}".strip())
        self.problem = problem


class AnswersError(LandscapeError):
    """Answers of observers to pictures are missing, unreadable, or contradict each other."""


class DistortionError(LandscapeError):
    """A distortion, its level, or something that it needs is missing or not valid."""


class ModelError(LandscapeError):
    """The model is unknown, or cannot be built from its configuration."""


class CheckpointError(LandscapeError):
    """A checkpoint is missing, truncated, unsafe to load, or does not fit its model."""


class ObjectiveError(LandscapeError):
    """The loss is not a twice differentiable, deterministic function of the parameters."""


class StoreError(LandscapeError):
    """The output file has another schema, another manifest, or cannot be written."""


class MissingDependencyError(LandscapeError):
    """An optional package is needed for what was asked; the message names the extra to install."""


class WorkerError(LandscapeError):
    """A process that calculates cannot start, does not fit this one, or takes no more work."""


class WorkerDied(WorkerError):
    """A process that calculates ended in the middle of a call; the call may be sent again."""

    exit_code = 1


class NumericalError(LandscapeError):
    """A product or a loss overflowed: this task failed, others may go on."""

    exit_code = 1


class MemoryLimitError(LandscapeError, MemoryError):
    """No way of computing what was asked for fits in the memory that is free, or that was allowed."""


def first_line(error: BaseException) -> str:
    """Say in one short line what went wrong: the first line of the message, or the class where there is none."""
    return str(error).partition("\n")[0][:300] or type(error).__name__
