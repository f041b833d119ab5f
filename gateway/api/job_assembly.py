"""Puts together what jobs need: the database, the file store, the runner, webhooks."""

from __future__ import annotations

from functools import partial

from gateway.addresses import AddressRules
from gateway.api.batch_work import LineOutcome, LineWork
from gateway.api.files import BATCH_SECONDS
from gateway.api.job_answer import expired
from gateway.api.job_work import JobWork
from gateway.api.models import is_known
from gateway.api.state import Api
from gateway.database.batches import Batches
from gateway.database.database import Database
from gateway.database.deliveries import Deliveries
from gateway.database.job_queue import JobQueue
from gateway.database.jobs import Jobs
from gateway.jobs.batch_runner import BatchRules, BatchRunner
from gateway.jobs.desk import JobDesk
from gateway.jobs.endings import Endings
from gateway.jobs.owner import Owner
from gateway.jobs.runner import LEASE_SECONDS, Places, Runner
from gateway.jobs.webhooks import Webhooks
from gateway.settings import Settings


def job_desk(api: Api, database: Database, owner: Owner) -> JobDesk:
    """For jobs and batches; to be run beside the API."""
    settings = api.settings
    jobs = Jobs(database)
    endings = Endings(settings.jobs_max_age_seconds, expired())
    work = JobWork(api)
    lines = LineWork(api, work)
    runner = Runner(
        jobs,
        JobQueue(database, owner.name, LEASE_SECONDS),
        owner,
        api.storage.jobs,
        lambda record, listener, fate: (work if record.batch_id is None else lines)(record, listener, fate),
        Places(settings.jobs_at_once, settings.batch_lines_at_once),
        endings,
    )
    store = Batches(database, owner.name, LEASE_SECONDS)
    rules = BatchRules(settings.batches_max_age_seconds, settings.files_max_age_seconds or BATCH_SECONDS)
    batches = BatchRunner(
        store,
        jobs,
        api.storage.files,
        api.storage.jobs,
        LineOutcome(),
        partial(is_known, api),
        rules,
        runner.wake,
        owner,
    )
    return JobDesk(jobs, api.storage.jobs, runner, endings, store, batches, _webhooks(settings, database))


def _webhooks(settings: Settings, database: Database) -> Webhooks | None:
    if settings.webhook_secret is None:
        return None
    rules = AddressRules(settings.webhook_ports, settings.allow_private_webhooks)
    return Webhooks(Deliveries(database), settings.webhook_secret.get_secret_value(), rules)
