"""The page for people: what the server is, whether all is well, and the numbers that one wants to see first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.template import Tag, renderElement, tags

from storescp import __version__
from storescp.measurements import BUCKETS, Duration, Durations, Event
from storescp.metrics import Observed, Snapshot
from storescp.readiness import Readiness
from storescp.space import size_text

#: Rows of a table; the metrics have all.
MOST_ROWS = 50

#: Seconds after which a browser asks again.
REFRESH = 10

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --card: #8881; --good: #2a8a4a; --bad: #c0392b }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p, small { color: var(--dim); margin: .2rem 0 }
.state { border-radius: .4rem; color: #fff; margin: 1rem 0; padding: .5rem .9rem }
.good { background: var(--good) } .bad { background: var(--bad) }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem }
.card b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid var(--line); padding: .3rem .6rem }
th { color: var(--dim); font-weight: 500; text-align: left }
.number { text-align: right; font-variant-numeric: tabular-nums }
a { color: inherit }
"""


class Page(Resource):
    """The page at ``/``."""

    isLeaf = True

    def __init__(self, crew: Observed, readiness: Readiness) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._crew = crew
        self._readiness = readiness
        self._began = time.monotonic()

    def render_GET(self, request: Request) -> int:
        """See IResource."""
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
        snapshot = Snapshot(self._crew, self._readiness)
        page = _page(snapshot, self._readiness.faults(), time.monotonic() - self._began)
        renderElement(request, page, doctype=b"<!DOCTYPE html>")  # type: ignore[arg-type] # any tag will do
        return NOT_DONE_YET


def _page(snapshot: Snapshot, faults: Sequence[str], uptime: float) -> Tag:
    config = snapshot.config
    troubles = dict.fromkeys([*snapshot.obstacles, *faults])  # some are both
    return tags.html(
        tags.head(
            tags.meta(charset="utf-8"),
            tags.meta(name="viewport", content="width=device-width"),
            tags.meta(content=str(REFRESH), **{"http-equiv": "refresh"}),
            tags.title(f"{config.ae_title} - storescp"),
            tags.style(_STYLE),
        ),
        tags.body(
            tags.h1(config.ae_title),
            tags.p(
                f"storescp {__version__}, a DICOM Storage SCP; up for {_duration(uptime)};"
                f" storing in {config.storage_dir.absolute()}"
            ),
            tags.div("Ready: images are taken.", class_="state good")
            if not troubles
            else [tags.div(trouble, class_="state bad") for trouble in troubles],
            _cards(snapshot),
            _senders(snapshot),
            _rejected(snapshot),
            tags.p(
                "For machines: ",
                tags.a("metrics", href="metrics"),
                ", ",
                tags.a("healthz", href="healthz"),
                ", ",
                tags.a("readyz", href="readyz"),
                f". This page renews itself every {REFRESH} seconds.",
                style="margin-top: 2rem",
            ),
        ),
        lang="en",
    )


def _cards(snapshot: Snapshot) -> Tag:
    statistics, config = snapshot.statistics, snapshot.config
    answers = snapshot.measurements.durations(Duration.ANSWER)
    in_flight = sum(load.in_flight for load in snapshot.loads.values())
    beyond = statistics.refused + statistics.dropped + statistics.slow + statistics.oversized
    cards = [
        ("Images stored", f"{statistics.instances_stored:,}", size_text(statistics.bytes_stored)),
        ("Images refused", f"{statistics.instances_failed:,}", "answered with a failure"),
        (
            "Associations now",
            f"{snapshot.associations:,} of {config.max_assoc:,}",
            f"{statistics.associations:,} in all, {statistics.aborted:,} aborted",
        ),
        ("Associations rejected", f"{statistics.rejected:,}", statistics.reasons() or "for whatever reason"),
        (
            "Free on the disk",
            size_text(snapshot.space.free) if snapshot.space else "?",
            f"of {size_text(snapshot.space.total)}" if snapshot.space else "it cannot be looked at",
        ),
        ("Waiting for the disk", size_text(in_flight), "received, and not written yet"),
        ("Half of the answers", _quantile(answers, 0.5), "after the end of the image"),
        ("99 % of the answers", _quantile(answers, 0.99), "after the end of the image"),
    ]
    if config.workers > 1:
        text = f"{len(snapshot.loads)} of {config.workers}"
        cards.append(("Workers", text, f"{snapshot.restarts:,} had to be replaced"))
    if beyond or statistics.tls_failures:
        cards.append(("Beyond a limit", f"{beyond:,}", f"failures of TLS: {statistics.tls_failures:,}"))
    return tags.div(
        [tags.div(title, tags.b(value), tags.small(text), class_="card") for title, value, text in cards],
        class_="cards",
    )


def _senders(snapshot: Snapshot) -> list[Tag]:
    stored: Counter[tuple[str, str]] = Counter()
    failed: dict[tuple[str, str], Counter[str]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    for (_, (sender, modality, status)), count, size in snapshot.counted(Event.INSTANCE):
        key = sender, modality
        if status == "0000":
            stored[key] += int(count)
            sizes[key] += int(size)
        else:
            failed.setdefault(key, Counter())[status] += int(count)
    rows = [
        (
            *key,
            f"{stored[key]:,}",
            size_text(sizes[key]),
            ", ".join(f"{count:,} x {status}H" for status, count in sorted(failed.get(key, {}).items())),
        )
        for key in sorted(stored.keys() | failed.keys())
    ]
    return _table("Images", ("Sender", "Modality", "#Stored", "#Size", "#Refused"), rows)


def _rejected(snapshot: Snapshot) -> list[Tag]:
    rows = [
        (sender, reason, f"{count:,.0f}")
        for (_, (sender, reason)), count, _ in snapshot.counted(Event.REJECTED)
    ]
    return _table("Rejected associations", ("Sender", "For", "#Number"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Iterable[str]]) -> list[Tag]:
    """Columns whose names begin with # are of numbers."""
    if not rows:
        return []
    classes = ["number" if column.startswith("#") else "" for column in columns]

    def line(cell: Tag, texts: Iterable[str]) -> Tag:
        return tags.tr([cell.clone()(text, class_=name) for text, name in zip(texts, classes, strict=True)])

    more = [tags.p(f"and {len(rows) - MOST_ROWS} more")] if len(rows) > MOST_ROWS else []
    head = line(tags.th, (column.removeprefix("#") for column in columns))
    return [tags.h2(title), tags.table(head, [line(tags.td, row) for row in rows[:MOST_ROWS]]), *more]


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{days} d {hours} h" if days else f"{hours} h {rest // 60} min"


def _quantile(durations: Durations, share: float) -> str:
    """The upper bound of the bucket that it is in."""
    total = sum(durations.counts)
    if not total:
        return "-"
    so_far = 0.0
    for bound, count in zip(BUCKETS, durations.counts, strict=False):
        so_far += count
        if so_far >= share * total:
            return f"< {bound * 1000:g} ms" if bound < 1 else f"< {bound:g} s"
    return f"> {BUCKETS[-1]:g} s"
