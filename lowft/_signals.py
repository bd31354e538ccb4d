"""Stopping a run at a step boundary when the user or the system asks for it."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, Ctrl-C and SIGTERM ask for a stop instead of breaking in.

    Once a stop is asked for, Ctrl-C does what it did before. Outside the main thread, where Python allows no
    handlers, nothing is installed.

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the caller's handlers back."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def pass_on(self) -> None:
        """After SIGTERM, call the caller's own handler, then exit with the status that a terminated process has.

        Raises:
            SystemExit: With 128 + 15 = 143.
        """
        if self.received is signal.SIGTERM:
            previous = self._previous.get(signal.SIGTERM)
            if callable(previous):
                previous(signal.SIGTERM, None)
            raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            previous = self._previous[signal.SIGINT]
            if callable(previous):
                previous(number, frame)
            return
        self.received = signal.Signals(number)
