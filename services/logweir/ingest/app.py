"""Ingest: one HTTP request in, one block on the journal.

    request -> admit -> read -> decompress -> decode -> group -> append -> 200 with a receipt

The steps up to the group are pure functions of admission.py, body.py and native.py; this file puts
them in order. A 2xx means that the journal holds every accepted record, fsynced.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from logweir.backends import journal
from logweir.core import block, bounds, errors, idempotency
from logweir.core.binding import IngestBinding, JournalServer, Login
from logweir.core.names import PipelineId, TenantId
from logweir.ingest import admission, body, group, native
from logweir.runtime import bindings, life, logs, metrics, web
from logweir.runtime.settings import Settings

logger = logging.getLogger(__name__)

REVOCATION_POLL_S = 2.0
UNBOUND_POLL_S = 0.05
GONE_STATUS = 499
"""Stands in metrics for a sender who went away before the answer."""

DEBT_REMEMBERED_S = 1.0
"""For how long at most an over-limit answer is given again without asking the journal."""

ROUTES = {"/ingest": native.decode}
"""Hot routes, by the path after the pipeline's base URL, with the decoder of their form."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a 200. `expired` and `repeated` appear only when they say something."""

    receipt: str
    accepted: int
    rejected: list[native.Rejected]
    expired: list[int] = []
    repeated: bool = False


_answer_encoder = msgspec.json.Encoder()


class _Debt(msgspec.Struct, frozen=True):
    """An over-limit answer that is given again until a moment of the monotonic clock; `again_s` is
    when to come back."""

    until_s: float
    again_s: float
    message: str
    hint: str


class _Link(msgspec.Struct, frozen=True):
    """Where a tenant's blocks go, and as whom."""

    server: JournalServer
    login: Login


class Ingest:
    """The ASGI application of the role; what it serves comes from the binding.

    Args:
        now_s: the clock.
        body_timeout_s: how long a sender may take to send a body.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        body_timeout_s: float = bounds.BODY_TIMEOUT_S,
    ) -> None:
        self._now_s = now_s
        self._monotonic_s = monotonic_s
        self._body_timeout_s = body_timeout_s
        self._known: admission.Directory | None = None
        self._appenders: dict[TenantId, tuple[_Link, journal.Appender]] = {}
        self._groups: dict[tuple[TenantId, PipelineId], group.Group] = {}
        self._refused: dict[tuple[TenantId, PipelineId], Counter[str]] = {}
        self._news: dict[TenantId, admission.News] = {}
        self._debts: dict[TenantId, _Debt] = {}
        self._held = body.Held()
        self._closing: set[asyncio.Task[None]] = set()
        metrics.INGEST_BODY_BYTES.set_function(lambda: self._held.size_bytes)
        metrics.REVOCATIONS_AGE_SECONDS.labels("ingest").set_function(self._news_age_s)

    async def bind(self, binding: IngestBinding) -> None:
        """Serve what the binding says from now on; what was accepted before still goes in.

        Raises:
            SetupError: something in it is no secret; what was served before still is.
        """
        directory = admission.directory(binding)
        before, self._appenders = self._appenders, {}
        for tenant in binding.tenants:
            link = _Link(tenant.journal, tenant.login)
            known = before.get(tenant.tenant)
            if known is not None and known[0] == link:
                self._appenders[tenant.tenant] = before.pop(tenant.tenant)
            else:
                made = journal.Appender(link.server, link.login, tenant.tenant)
                self._appenders[tenant.tenant] = (link, made)
        self._regroup(binding, gone=before)
        fresh = [name for name in self._appenders if name not in self._news]
        self._news = {name: self._news[name] for name in self._appenders if name in self._news}
        await self._learn(fresh)
        self._known = directory

    def _regroup(
        self, binding: IngestBinding, gone: dict[TenantId, tuple[_Link, journal.Appender]]
    ) -> None:
        """Have a group for each pipeline; groups that are not served any more end in peace."""
        before, self._groups = self._groups, {}
        counted, self._refused = self._refused, {}
        for tenant in binding.tenants:
            appender = self._appenders[tenant.tenant][1]
            for pipeline in tenant.pipelines:
                key = (tenant.tenant, pipeline.id)
                # Counts outlive a group: another one takes over when a password changes.
                refused = self._refused[key] = counted.get(key, Counter())
                if key in before and tenant.tenant not in gone:
                    self._groups[key] = before.pop(key)
                else:
                    made = group.Group(*key, appender, now_s=self._now_s, refused=refused)
                    self._groups[key] = made
        for name, (_, appender) in gone.items():
            groups = [one for (owner, _), one in before.items() if owner == name]
            task = asyncio.create_task(_close(groups, appender), name="close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._request(scope, receive, send)
        except errors.LogweirError as error:
            await _answer_error(send, error)
        except ConnectionResetError:
            pass  # nobody is left to be answered
        except Exception:
            logger.exception("request failed", extra={"path": scope["path"][:200]})
            failed = errors.UnavailableError("Ingest failed on this request; it is in its log.")
            await web.answer_error(send, failed)

    async def _request(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        tenant, pipeline, rest = admission.split_path(scope["path"])
        headers = web.headers_of(scope["headers"])
        try:
            target = self._admit((tenant, pipeline), headers)
        except errors.LogweirError as error:
            metrics.INGEST_REQUESTS.labels("", "", error.status).inc()
            metrics.refused(error)
            raise
        decoder = ROUTES.get(rest)
        if decoder is None:
            raise errors.NotFoundError(
                f"There is no {rest[:80]!r} here.", hint=f"Known: {', '.join(ROUTES)}."
            )
        if scope["method"] != "POST":
            raise errors.MethodNotAllowedError(f"{rest} takes POST.")
        status = 503
        try:
            answer = await self._take(target, decoder, headers, receive)
            status = 200
        except errors.LogweirError as error:
            status = error.status
            self._refuse(target, error)
            raise
        except ConnectionResetError:
            status = GONE_STATUS
            raise
        finally:
            labels = (target.tenant, target.pipeline.name, status)
            metrics.counter(metrics.INGEST_REQUESTS, *labels).inc()
        await web.answer(send, 200, answer)

    def _admit(self, address: tuple[str, str], headers: dict[bytes, bytes]) -> admission.Target:
        if self._known is None:
            raise errors.UnavailableError("This process does not know yet what it serves.")
        return admission.admit(self._known, address, headers, self._now_s(), self._news)

    def _refuse(self, target: admission.Target, error: errors.LogweirError) -> None:
        found = self._groups.get((target.tenant, target.pipeline.id))
        if found is not None:
            found.refuse(error.code)

    async def _take(
        self,
        target: admission.Target,
        decoder: Callable[[bytes, native.Rules], native.Decoded],
        headers: dict[bytes, bytes],
        receive: web.Receive,
    ) -> bytes:
        self._check_debt(target.tenant)
        body.check_content_type(headers.get(b"content-type", b""))
        body.check_length(headers.get(b"content-length", b""))
        identity = idempotency.identity(
            headers.get(b"idempotency-key"), target.tenant, target.pipeline.id
        )
        with body.Holding(self._held) as holding:
            raw = await body.read(receive, holding, self._body_timeout_s)
            text = body.decompress(raw, headers.get(b"content-encoding", b""))
            del raw
            holding.text(len(text))
            return await self._store(target, decoder, text, identity)

    async def _store(
        self,
        target: admission.Target,
        decoder: Callable[[bytes, native.Rules], native.Decoded],
        text: bytes,
        identity: idempotency.Identity,
    ) -> bytes:
        rules = native.Rules(
            arrival_ns=int(self._now_s() * 1e9),
            retention_days=target.pipeline.retention_days,
            promote=target.pipeline.labels,
        )
        decoded = decoder(text, rules)
        if not decoded.accepted:
            raise AllRejectedError(decoded.rejected)
        request = block.Request(
            records=decoded.part.n,
            expired=len(decoded.expired),
            size_bytes=len(text),
            fingerprint=idempotency.fingerprint(text),
            key=identity.key,
            producer=identity.producer,
            epoch=identity.epoch,
            sequence=identity.sequence,
        )
        outcome = await self._submit(target, request, decoded.part)
        self._count(target, decoded, outcome, len(text))
        return _answer_encoder.encode(
            Answer(
                receipt=str(outcome.receipt),
                accepted=decoded.accepted,
                rejected=decoded.rejected,
                expired=decoded.expired,
                repeated=outcome.is_repeated,
            )
        )

    def _count(
        self,
        target: admission.Target,
        decoded: native.Decoded,
        outcome: group.Outcome,
        size_bytes: int,
    ) -> None:
        labels = (target.tenant, target.pipeline.name)
        records = metrics.INGEST_RECORDS
        if outcome.is_repeated:
            metrics.counter(records, *labels, "repeated").inc(decoded.accepted)
            return
        metrics.counter(metrics.INGEST_BYTES, *labels).inc(size_bytes)
        metrics.counter(records, *labels, "accepted").inc(decoded.accepted)
        if decoded.rejected:
            metrics.counter(records, *labels, "rejected").inc(len(decoded.rejected))
        if decoded.expired:
            metrics.counter(records, *labels, "expired").inc(len(decoded.expired))

    async def _submit(
        self, target: admission.Target, request: block.Request, part: block.Part
    ) -> group.Outcome:
        found = self._groups.get((target.tenant, target.pipeline.id))
        if found is None:  # it went while the body came
            raise errors.UnauthorizedError
        try:
            return await found.submit(request, part)
        except errors.OverLimitError as error:
            now_s = self._monotonic_s()
            until_s = now_s + min(error.sure_s, DEBT_REMEMBERED_S)
            again_s = now_s + error.retry_after_s
            self._debts[target.tenant] = _Debt(until_s, again_s, error.message, error.hint)
            raise

    def _check_debt(self, tenant: TenantId) -> None:
        debt = self._debts.get(tenant)
        if debt is None:
            return
        now_s = self._monotonic_s()
        if now_s >= debt.until_s:
            del self._debts[tenant]
            return
        raise errors.OverLimitError(
            debt.message, retry_after_s=debt.again_s - now_s, hint=debt.hint
        )

    def _news_age_s(self) -> float:
        """Seconds since it was heard which keys are revoked, of the tenant that waits longest."""
        heard = [self._news.get(name, admission.NO_NEWS).at_s for name in self._appenders]
        return self._now_s() - min(heard) if heard else 0.0

    async def watch(self, running: life.Life) -> None:
        """Learn of revoked keys, and report whether the journals answer, until the end."""
        running.expect("journal")
        wait_s = 0.0
        while not await running.pause(wait_s):
            wait_s = UNBOUND_POLL_S
            if self._known is not None:
                running.report("journal", await self._learn(self._appenders))
                wait_s = REVOCATION_POLL_S

    async def _learn(self, names: Iterable[TenantId]) -> str:
        """Ask all journals at once for revoked keys; return what is wrong with the first of them.

        One that hangs holds up the others for `journal.REVOKED_TIMEOUT_S`, not longer.
        """
        asked = [self._learn_one(name, self._appenders[name][1]) for name in names]
        problems = await asyncio.gather(*asked)
        return next(filter(None, problems), "")

    async def _learn_one(self, tenant: TenantId, appender: journal.Appender) -> str:
        at_s = self._now_s()
        try:
            found = await appender.revocations()
        except errors.LogweirError as error:
            return f"{tenant}: {error}"
        before = self._news.get(tenant)
        if before is not None and before.told == found.told:
            at_s = before.at_s
        self._news[tenant] = admission.News(found.revoked, at_s, found.ends, found.told)
        return ""

    async def drain(self) -> None:
        """Finish what was accepted, then close the connections."""
        await asyncio.gather(
            *self._closing,
            *(
                _close(self._groups_of(tenant), appender)
                for tenant, (_, appender) in self._appenders.items()
            ),
        )

    def _groups_of(self, tenant: TenantId) -> list[group.Group]:
        return [one for (owner, _), one in self._groups.items() if owner == tenant]


async def _close(groups: Sequence[group.Group], appender: journal.Appender) -> None:
    await asyncio.gather(*(one.drain() for one in groups))
    await appender.close()


async def _answer_error(send: web.Send, error: errors.LogweirError) -> None:
    if isinstance(error, AllRejectedError):
        await web.answer(send, error.status, error.body())
    elif isinstance(error, errors.MethodNotAllowedError):
        await web.answer_error(send, error, ((b"allow", b"POST"),))
    elif isinstance(error, errors.TimeoutReachedError):
        await web.answer_error(send, error, ((b"connection", b"close"),))
    else:
        await web.answer_error(send, error)


class AllRejectedError(errors.BadRequestError):
    """Every record of the request was refused; each is named in the answer."""

    code = "all_rejected"

    def __init__(self, rejected: list[native.Rejected]) -> None:
        first = rejected[0]
        super().__init__(
            f"None of the {len(rejected)} records is good; record {first.index}: {first.reason}."
        )
        self.rejected = rejected

    def body(self) -> bytes:
        """Return the JSON of the answer: the error's, and the refused records."""
        return (
            web.error_body(self)[:-1] + b',"rejected":' + msgspec.json.encode(self.rejected) + b"}"
        )


async def work(binding: Path, running: life.Life, serve: web.Serve) -> None:
    """Be the role until `serve` returns: no request is left."""
    app = Ingest()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bindings.follow(binding, IngestBinding, app.bind, running))
        tasks.create_task(app.watch(running))
        await serve(app)
    await app.drain()


async def run(settings: Settings, running: life.Life) -> None:
    """Serve in a process of its own until it is told to stop."""
    await web.serve_role(settings, running, work)


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("ingest", settings.log_format)
    life.run(lambda running: run(settings, running))
