"""The elastic policies as one set, for the gateway and the simulator alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.coming import Coming
from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile, bundled
from scheduler.elastic.admission import PredictedCompletion
from scheduler.elastic.batching import LeastDelay
from scheduler.elastic.book import Book
from scheduler.elastic.fairness import Fairness
from scheduler.elastic.guidance import SharedGuidance
from scheduler.elastic.migration import StepMigration
from scheduler.elastic.order import StageOrder
from scheduler.elastic.placement import Backpressure
from scheduler.elastic.preemption import ShortestRemaining
from scheduler.elastic.previews import WhileThereIsTime
from scheduler.elastic.roles import ElasticRoles
from scheduler.elastic.room import AdmitWhereThereIsRoom
from scheduler.elastic.settings import ElasticSettings
from scheduler.elastic.suspects import Suspects
from scheduler.elastic.unknown import AdmitUnknown
from scheduler.policy import Admission, Policies


@dataclass(frozen=True, slots=True)
class Elastic:
    """The policies of one scheduler, and those of them that operators look into."""

    policies: Policies
    roles: ElasticRoles | None
    """None where roles stay as servers announce them."""
    suspects: Suspects


def elastic_policies(settings: ElasticSettings | None = None, profiles: Iterable[Profile] | None = None) -> Policies:
    """New policies of one scheduler; they learn, so they are not shared. ``profiles``: the bundled ones by default."""
    return elastic(settings, profiles).policies


def elastic(settings: ElasticSettings | None = None, profiles: Iterable[Profile] | None = None) -> Elastic:
    """``elastic_policies``, and what operators look into."""
    settings = settings or ElasticSettings()
    fairness = Fairness(settings.tenant_shares)
    suspects = Suspects(settings.suspect_failures, settings.probation_seconds)
    order = StageOrder(settings, fairness)
    book = Book(order)
    coming = Coming()
    admission = PredictedCompletion(settings, order, book, fairness, coming)
    placement = Backpressure(settings, suspects)
    previews = WhileThereIsTime()
    roles = ElasticRoles(settings, book, suspects) if settings.elastic_roles else None
    batching = LeastDelay(settings, fairness)
    admits: Admission = AdmitUnknown(admission)
    policies = Policies(
        admission=admits if roles is None else AdmitWhereThereIsRoom(admits, roles, coming),
        order=order,
        placement=placement,
        batching=batching,
        preemption=ShortestRemaining(settings) if settings.preemption else None,
        migration=StepMigration(settings, suspects) if settings.migration else None,
        guidance=SharedGuidance(settings, suspects) if settings.share_guidance else None,
        previews=previews,
        roles=roles,
        coming=coming,
        room=roles,
        cost=CostModel(bundled() if profiles is None else profiles),
        # In any order: each keeps its own record, and none reads another's while it is told. Admission does read the
        # book, but before anybody is told of the request, or it would count the request as work ahead of itself.
        observers=(fairness, suspects, book, admission, placement, batching, previews),
    )
    return Elastic(policies, roles, suspects)
