"""What a tuning run shows: a live table, plain lines, or JSON lines."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING

from tvmops.cli.text import config_text, json_line, time_of
from tvmops.records import NOMINAL_HERTZ

if TYPE_CHECKING:
    from rich.table import Table

    from tvmops.tuner.progress import JobStatus
    from tvmops.workloads import Workload

_STARTING = "starting: loading the compiler; on a machine's first run, measuring its peak"
_QUIET_SECONDS = 5.0  # plain lines: how long a job that finds nothing new keeps silent
_NEWS = 0.99  # a best time below this share of the last one shown is news


class Watcher:
    """An `Observer` that is shown from entering it to leaving it; keeps the latest status."""

    def __init__(self) -> None:
        self.jobs: list[JobStatus] = []

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        self.jobs = jobs

    def conclude(self) -> None:
        """Print a line a workload: the winner and why the search ended."""
        for job in self.jobs:
            print(_conclusion(job))

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


class LiveTable(Watcher):
    """A table that redraws itself in a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        super().__init__()
        self._running = _STARTING
        self._budget: float | None = None
        self._started = time.monotonic()
        self._live = Live(get_renderable=self._table, refresh_per_second=4)

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        super().update(jobs, running, elapsed, budget)
        self._running, self._budget = running, budget
        self._started = time.monotonic() - elapsed

    def __enter__(self) -> Watcher:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = ""
        self._live.transient = not self.jobs  # a run that was refused leaves no empty table
        self._live.stop()

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        caption = Text(self._caption(), style="dim", no_wrap=True, overflow="ellipsis")
        table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
        table.add_column("workload", overflow="fold")
        for title in ("trials", "failures", "best", "of roofline"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("state")
        for job in self.jobs:
            table.add_row(
                str(job.workload), str(job.trials), str(job.failures), _rate(job), _share(job), job.state
            )
        return table

    def _caption(self) -> str:
        elapsed = time.monotonic() - self._started
        left = f"{elapsed:.0f} s" if self._budget is None else f"{max(0, self._budget - elapsed):.0f} s left"
        return f"{left}  {self._running}"


class PlainLines(Watcher):
    """A line whenever a search starts, finds something faster or ends, and now and then between."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[Workload, tuple[JobStatus, float]] = {}  # and when

    def __enter__(self) -> Watcher:
        print(_STARTING, flush=True)
        return self

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        super().update(jobs, running, elapsed, budget)
        for job in jobs:
            last, when = self._shown.setdefault(job.workload, (job, elapsed))
            late = job.trials != last.trials and elapsed - when > _QUIET_SECONDS
            if job.state != last.state or job.best < _NEWS * last.best or late:
                self._shown[job.workload] = job, elapsed
                print(_progress(job, elapsed), flush=True)


class JsonLines(Watcher):
    """A JSON object for each workload whose status changed, and one for each at the end."""

    def update(self, jobs: list[JobStatus], running: str, elapsed: float, budget: float | None) -> None:
        known = {job.workload: job for job in self.jobs}
        super().update(jobs, running, elapsed, budget)
        for job in jobs:
            if known.get(job.workload) != job:
                self._print("progress", job, elapsed=round(elapsed, 3), running=running)

    def conclude(self) -> None:
        for job in self.jobs:
            winner = job.winner
            template, config = (winner.template, dict(winner.config)) if winner else (None, None)
            self._print("result", job, template=template, config=config)

    def _print(self, event: str, job: JobStatus, **more: object) -> None:
        line = json_line(
            event=event,
            workload=str(job.workload),
            trials=job.trials,
            failures=job.failures,
            kind="modelled" if job.is_modelled else "measured",
            seconds=None if job.is_modelled else job.best,
            default_seconds=None if job.is_modelled else job.default,
            cycles=job.best * NOMINAL_HERTZ if job.is_modelled else None,
            rate=job.rate,
            unit=job.unit,
            roofline_share=job.roofline_share,
            state=job.state,
            **more,
        )
        print(line, flush=True)


def _progress(job: JobStatus, elapsed: float) -> str:
    found = f"best {_rate(job)}, {_share(job)} of the roofline; " if job.rate else ""
    return (
        f"{elapsed:6.1f} s  {job.workload}: {job.trials} trials, {job.failures} failures; {found}{job.state}"
    )


def _conclusion(job: JobStatus) -> str:
    if job.winner is None:
        return f"{job.workload}: no config ran, {job.failures} failed; the log says why; {job.state}"
    return (
        f"{job.workload}: {time_of(job.winner)}, {_rate(job)} ({_share(job)} of the roofline), "
        f"{_gain(job)}; {job.state}; {job.winner.template} {config_text(job.winner)}"
    )


def _gain(job: JobStatus) -> str:
    if not math.isfinite(job.default):
        return "the default config did not run"
    return f"{job.default / job.best:.2f} times the default's speed"


def _rate(job: JobStatus) -> str:
    return f"{job.rate:.4g} {job.unit}" if job.rate else "-"


def _share(job: JobStatus) -> str:
    return f"{job.roofline_share:.0%}" if job.rate else "-"
