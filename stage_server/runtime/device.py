"""The servers of one process: one for each model that it may serve, on one device."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence

from stage_server.runtime.server import StageServer
from wire.errors import USER_MISTAKE

log = logging.getLogger(__name__)


class ServersOfOneDevice:
    """``run`` once, on an event loop of its own. The first one is that of ``--model``."""

    def __init__(self, servers: Sequence[StageServer]) -> None:
        self._servers = tuple(servers)

    async def run(self) -> int:
        """Serve until told to leave; the exit status.

        A further model that the gateway refuses, as one does that knows nothing of it, is left out. Whatever else ends
        a server unbidden, such as a device that hangs, ends all of them.
        """
        first, *others = self._servers
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._run(first, is_first=True), name="stage server")]
            running += [tasks.create_task(self._run(other, is_first=False), name="stage server") for other in others]
        return max(task.result() for task in running)

    async def _run(self, server: StageServer, *, is_first: bool) -> int:
        status = await server.run()
        if status == USER_MISTAKE and not is_first:
            log.warning("going on without %s: see above", server.model)
            return 0
        if status:
            for other in self._servers:
                if other is not server:
                    other.abandon(f"the server of {server.model} has ended, and with it the process")
        return status

    def terminate(self) -> None:
        """Finish what was accepted, then leave; the second time at once. To be called on the event loop."""
        for server in self._servers:
            server.terminate()

    def thread_died(self, hook: threading.ExceptHookArgs) -> None:
        """See ``StageServer``."""
        for server in self._servers:
            server.thread_died(hook)

    @property
    def idle(self) -> bool:
        """No thread is left that uses an engine."""
        return all(server.idle for server in self._servers)
