"""Progress of a replay on a terminal's standard error; nothing where that is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bars(console: Console, draws: int) -> Iterator[Callable[[Sequence[float]], None]]:
    """Bars for both nominal runs and for all draws together; yields what takes the share done of each job."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        observe = progress.add_task("Observe (today)", total=1.0)
        enforce = progress.add_task("Enforce (policy)", total=1.0)
        drawn = progress.add_task(f"{draws} parameter draws, both", total=2.0 * draws) if draws else None

        def show(shares: Sequence[float]) -> None:
            progress.update(observe, completed=shares[0])
            progress.update(enforce, completed=shares[1])
            if drawn is not None:
                progress.update(drawn, completed=sum(shares[2:]))

        yield show
