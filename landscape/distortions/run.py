"""The distortion of a folder: skip what is there, distribute the rest, report.

The same request writes the same bytes, for any number of processes and after any number of
interruptions.
"""

from dataclasses import dataclass
from pathlib import Path

from landscape import threads
from landscape.distortions.layout import relative_path
from landscape.distortions.own_spectrum import make_mean_spectrum
from landscape.distortions.plan import DistortRequest, Plan, left_out, make_plan
from landscape.distortions.record import write_record
from landscape.distortions.registry import kind_of
from landscape.distortions.task import write_distorted
from landscape.errors import DataError
from landscape.workers import InlinePool, LocalPool, Pool, call_all
from landscape.workers.progress import Progress, show_notes

# Seconds of work below which more processes do not pay; each takes about one to start.
_SMALL_JOB = 10.0


@dataclass(frozen=True, kw_only=True)
class DistortReport:
    """The result of a request.

    Attributes:
        num_written, num_skipped: Distorted pictures that were written now, and that were there
            already.
        num_left: Pictures that are missing: those of a dry run, or of pictures that cannot be read.
        problems: A line for each picture that cannot be read.
        notes: What was left out, a sentence each.
    """

    output: Path
    num_written: int
    num_skipped: int
    num_left: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Tell whether every picture could be read."""
        return not self.problems

    def summary(self) -> str:
        """Return a line for each failed picture, and a line of counts."""
        if self.dry_run:
            return (
                f"{self.output}: {self.num_left} pictures to write, {self.num_skipped} are there."
            )
        lines = [f"failed: {problem}" for problem in self.problems]
        counts = f"{self.num_written} pictures written, {self.num_skipped} were there"
        failed = f"{len(self.problems)} of the clean ones cannot be read"
        return "\n".join([*lines, f"{self.output}: {counts}, {failed}."])


def distort_folder(request: DistortRequest) -> DistortReport:
    """Distort the pictures of a folder, except what is there already.

    Raises:
        LandscapeError: If the request does not fit the pictures or the output folder; nothing is
            written then.
    """
    plan = make_plan(request)
    show_notes(plan.notes, shown=request.progress)
    if request.dry_run:
        return DistortReport(
            output=request.output,
            num_written=0,
            num_skipped=plan.num_skipped,
            num_left=plan.num_left,
            dry_run=True,
        )
    if not plan.wanted:
        return DistortReport(
            output=request.output, num_written=0, num_skipped=plan.num_skipped, notes=plan.notes
        )
    _make_folders(plan)
    with _pool(request, plan) as pool, _progress(request, plan) as progress:
        if (
            plan.job.mean_spectrum is not None
            and request.mean_spectrum is None
            and not plan.job.mean_spectrum.exists()
        ):
            progress.begin("mean spectrum of the pictures")
            make_mean_spectrum(
                plan.job.mean_spectrum, plan.source.pictures, plan.job.size, pool, progress.tick
            )
        return _run(request, plan, pool, progress)


def _run(request: DistortRequest, plan: Plan, pool: Pool, progress: Progress) -> DistortReport:
    progress.begin("distorting pictures")
    pictures = list(plan.wanted)
    calls = [(plan.job, picture, plan.wanted[picture]) for picture in pictures]
    problems: dict[int, str] = {}
    opaque: list[int] = []
    num_written = 0
    for index, outcome in call_all(pool, write_distorted, calls, tick=progress.tick):
        num_written += outcome.num_written
        if outcome.problem is not None:
            problems[index] = outcome.problem
        if outcome.opaque:
            opaque.append(index)
        num_failed = len(calls[index][2]) - outcome.num_written
        progress.add("all", num_done=outcome.num_written, num_failed=num_failed, seconds=0.0)
    notes = left_out([pictures[index] for index in sorted(opaque)], len(plan.source.pictures))
    show_notes(notes, shown=request.progress)
    return DistortReport(
        output=request.output,
        num_written=num_written,
        num_skipped=plan.num_skipped,
        num_left=plan.num_left - num_written - len(opaque),
        problems=tuple(problems[index] for index in sorted(problems)),
        notes=(*plan.notes, *notes),
    )


def _make_folders(plan: Plan) -> None:
    """Make the folders, and record the settings of the pictures.

    Raises:
        DataError: If that cannot be written.
    """
    output, suffix = plan.job.output, plan.job.suffix
    folders = {
        relative_path(kind, kind.level(level), picture, suffix).parent
        for picture, wanted in plan.wanted.items()
        for kind, level in ((kind_of(name), level) for name, level in wanted)
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_record(output, plan.record)
        for folder in sorted(folders):
            (output / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{error.filename or output}: cannot be written ({error.strerror or error}). Choose "
            "another output folder."
        ) from error


def _pool(request: DistortRequest, plan: Plan) -> InlinePool | LocalPool:
    number = request.num_workers
    if number is None:
        number = threads.free_cores() if plan.seconds() > _SMALL_JOB else 1
    number = min(number, len(plan.wanted))
    return InlinePool() if number == 1 else LocalPool(number)


def _progress(request: DistortRequest, plan: Plan) -> Progress:
    return Progress(
        num_planned=plan.num_skipped + plan.num_left,
        num_stored=plan.num_skipped,
        noun="pictures",
        folder=plan.job.output,
        shown=request.progress,
    )
