"""How much is kept, of what and of whom: one limit over everything in the store, and a share of it for each tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


class StoreFull(Exception):
    """There is no room for another file or job. The text is for callers."""


@dataclass(slots=True)
class Space:
    max_bytes: int
    tenant_share: float = 1.0
    """Of ``max_bytes``, for what one tenant's files and jobs take; an open server has one, with no bound."""
    has_others: Callable[[str], bool] = lambda _: True
    """Whether anybody but this tenant may come to want room. Where nobody may, all of it is the tenant's."""
    files: Counter[str] = field(default_factory=Counter)
    """Bytes of callers' files, by tenant: they stay, and a full store refuses more."""
    jobs: Counter[str] = field(default_factory=Counter)
    """Bytes that jobs take, or may come to take: they stay likewise."""
    pictures: int = 0
    """Bytes of pictures behind urls: the oldest make room."""

    @property
    def excess(self) -> int:
        """Bytes above the limit; none when negative."""
        return self._staying + self.pictures - self.max_bytes

    def check(self, tenant: str, nbytes: int) -> None:
        """Whether so many more may stay; pictures behind urls give way. Raises ``StoreFull``."""
        if self._staying + nbytes > self.max_bytes:
            raise StoreFull("The store is full")
        own, share = self.files[tenant] + self.jobs[tenant], int(self.max_bytes * self.tenant_share)
        if tenant and own + nbytes > share and self.has_others(tenant):
            raise StoreFull(
                f"Your files and jobs take {own} bytes of the {share} that you may have, and this would take {nbytes}"
            )

    @property
    def _staying(self) -> int:
        return self.files.total() + self.jobs.total()
