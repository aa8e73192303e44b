"""The contact sheet of a sample: one page with its pictures embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
from markupsafe import Markup

from tlray.audit.form import ANSWER, NONE, RIGHT
from tlray.audit.form import NAME as FORM
from tlray.audit.sample import Drawn, Sample, name_round
from tlray.console import Stage
from tlray.images.limits import Limits
from tlray.report.page import format_moment, render
from tlray.report.thumbnails import make_thumbnails
from tlray.sources.reading import read_rows
from tlray.version import __version__

NAME = "sheet.html"

_SIDE_PX = 128
_MAX_PICTURE_BYTES = 6 * 2**20
_SHOWN_CLASSES = 200


@dataclass(frozen=True)
class Section:
    """One predicted class of the page.

    Attributes:
        class_name: predicted class.
        in_archive: rows of the archive with that class.
        rows: rows drawn from them.
    """

    class_name: str
    in_archive: int
    rows: list[Drawn]


def make_sheet(
    sample: Sample, drawn: Sequence[Drawn], planned: pa.Table, limits: Limits, image_column: str | None
) -> tuple[bytes, int]:
    """Return the page as UTF-8, and its number of pictures.

    Args:
        sample: the sample.
        drawn: the rows of one of its rounds.
        planned: these rows of the plan, ascending.
        limits: limits of the prediction run.
        image_column: of Parquet inputs.
    """

    def read(row_ids: Sequence[int]) -> Iterator[bytes | None]:
        fetched = read_rows(planned, limits.max_bytes, image_column)
        with Stage("sheet", len(row_ids)) as stage:
            for answer in fetched:
                stage.advance(1)
                yield answer.data if isinstance(answer.data, bytes) else None

    pictures = make_thumbnails(planned["row_id"].to_pylist(), read, _MAX_PICTURE_BYTES, _SIDE_PX, limits)
    page = render(
        NAME,
        title=f"tlray audit: {len(drawn):,} rows to look at",
        version=__version__,
        sample=sample,
        rows=drawn,
        sections=[
            Section(name, sample.rows_by_class[name], list(rows))
            for name, rows in groupby(drawn, key=lambda row: row.class_name)
        ],
        picture=pictures.get,
        thumbnails_full=pictures.full,
        form=name_round(FORM, drawn[0].round),
        answer=ANSWER,
        right=RIGHT,
        no_class=NONE,
        shown_classes=_SHOWN_CLASSES,
        facts=[
            ("Labels of", format_moment(sample.finished)),
            ("Seed", str(sample.seed)),
            ("Model id", Markup("<code>{}</code>").format(sample.model_id)),
        ],
    )
    return page, len(pictures.uris)
