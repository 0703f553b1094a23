"""What Ctrl-C and SIGTERM do to a short verb: it ends within about a second, whatever its threads are waiting for.

The first is raised in the main thread, where what was begun is given up, as a KeyboardInterrupt with its number. That
may take longer than anybody waits: a thread that reads cannot be told to end before its store's deadlines, and the main
thread hears of nothing while it is in a library that knows no signals. So a thread is told as well, and ends the
process: what a verb leaves then is what a kill leaves, which the next run can live with. Daemons put handlers of their
own in place, and are left alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import types
from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END_S = 1.0


class Interrupts:
    """Of this process, from the main thread. ``say`` tells the user that it was interrupted, and is called once."""

    def __init__(self, say: Callable[[], None]) -> None:
        self.code = 128 + signal.SIGINT
        self._say = say
        self._is_said = threading.Lock()
        self._heard = -1
        self._has_come = False
        threading.excepthook = self._thread_failed
        # Also where a shell that started us in the background had SIGINT ignored.
        for number in _SIGNALS:
            signal.signal(number, self._raise)

    def bound(self) -> None:
        """From here on the process ends within a second of the first signal."""
        self._heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._end_in_time, name="interrupts", daemon=True).start()

    def say(self) -> None:
        if self._is_said.acquire(blocking=False):
            self._say()

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """A pool whose processes were ended with us may break while its futures are being cancelled; the thread that
        finds it broken then fails (CPython, concurrent/futures/process.py, terminate_broken). That is no news."""
        if not (self._has_come and failed.exc_type.__name__ == "InvalidStateError"):
            threading.__excepthook__(failed)

    def _raise(self, number: int, frame: types.FrameType | None) -> None:
        self._has_come = True
        self.code = 128 + number
        raise KeyboardInterrupt(number)

    def _end_in_time(self) -> None:
        while True:
            number = os.read(self._heard, 1)[0]
            # By now the main thread may have put other handlers in place, to give up what was begun undisturbed.
            if number not in _SIGNALS or not (self._has_come or signal.getsignal(number) == self._raise):
                continue
            time.sleep(_END_S)
            self.code = 128 + number
            if self._is_said.acquire(blocking=False):
                self._say()
            else:
                time.sleep(_END_S)  # the main thread is just saying it
            os._exit(self.code)
