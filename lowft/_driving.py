"""A run with somebody watching: a progress bar for each stage, and an orderly stop at the end of a step."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from lowft._progress import progress_bar
from lowft._signals import StopRequest

if TYPE_CHECKING:
    import signal
    from collections.abc import Generator

    from lowft._run_folder import RunFolder
    from lowft.loop import Loop
    from lowft.results import StepResult

__all__ = ["drive"]

_logger = logging.getLogger("lowft")


def drive(steps: Generator[StepResult], loop: Loop, folder: RunFolder | None) -> None:
    """Make all steps of a run, with a progress bar, until its end or until Ctrl-C or SIGTERM asks for a stop.

    Args:
        steps: The steps, which are made as they are taken.
        loop: The run that makes them.
        folder: Where a run that is stopped is saved; None where nowhere.
    """
    shown = loop.config.progress if loop.placement.is_main else False
    bar, stage = progress_bar(None, "", shown=False), ""
    with StopRequest() as stop, contextlib.closing(steps):
        try:
            for result in steps:
                state = loop.attached.state
                if result.stage != stage or state.stage_step == 1:
                    bar.close()
                    stage = result.stage
                    done, total = state.stage_step - 1, state.stage_steps
                    bar = progress_bar(None, stage, shown=shown, total=total, initial=done)
                bar.set_postfix(_postfix(loop, result), refresh=False)
                bar.update()
                asked = [number for number in loop.placement.gather(stop.received) if number is not None]
                if asked:
                    stop.received = max(asked)  # every process ends in the same way
                    _save(loop, folder, stop.received)
                    break
        finally:
            bar.close()
    stop.pass_on()


def _save(loop: Loop, folder: RunFolder | None, number: signal.Signals) -> None:
    """Save the run where it is, and say so."""
    saved = f"; saved {folder.save_once()}" if folder is not None else ""
    _logger.warning("stopped by %s after step %d%s", number.name, loop.attached.state.step, saved)


def _postfix(loop: Loop, result: StepResult) -> dict[str, str]:
    """Return what stands behind the bar."""
    shown = {"loss": f"{result.loss:.3f}"}
    best = loop.kept.best_value
    return shown if best is None else {**shown, f"best {loop.best_metric[0]}": f"{best:.4f}"}
