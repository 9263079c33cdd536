"""From the record of a monitor to a figure file."""

from pathlib import Path

from landscape.compare.sentences import counted
from landscape.errors import StoreError
from landscape.figures import save_figure, training
from landscape.figures.from_store import check_figure_name
from landscape.figures.page_options import PageOptions
from landscape.monitor import read_record


def draw_training(
    path: Path,
    output: Path,
    *,
    title: str | None = None,
    keep_unconverged: bool = False,
    page_options: PageOptions | None = None,
) -> str:
    """Draw the record of a monitor into a file; see `landscape.figures.training`.

    Returns:
        A sentence that says what was written.

    Raises:
        LandscapeError: If the output is no figure.
        StoreError: If the record cannot be read or has nothing to draw, or the figure cannot be
            written.
    """
    check_figure_name(output)
    record = read_record(path)
    try:
        drawn = training(
            record, title=title, keep_unconverged=keep_unconverged, page_options=page_options
        )
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    return (
        f"{output}: {counted(len(record.steps), 'measurement', 'measurements')}, steps "
        f"{record.steps[0]} to {record.steps[-1]}."
    )
