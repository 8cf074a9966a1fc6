"""Ingest: one HTTP request in, one block on the journal.

    request -> admit -> read -> decompress -> decode -> group -> append -> 200 with a receipt

The steps up to the group are pure functions of admission.py, body.py and native.py; this file puts
them in order. A 2xx means that the journal holds every accepted record, fsynced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from logweir.backends import journal
from logweir.core import block, errors, idempotency, keys
from logweir.core.binding import IngestBinding, JournalServer, Login
from logweir.core.names import PipelineId, TenantId
from logweir.ingest import admission, body, group, native
from logweir.runtime import bindings, life, logs, metrics, web
from logweir.runtime.settings import Settings

logger = logging.getLogger(__name__)

REVOCATION_POLL_S = 2.0
DEBT_REMEMBERED_S = 1.0
"""For how long an over-limit answer is given again without asking the journal."""

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


class Ingest:
    """The ASGI application of the role; what it serves comes from the binding."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._known = admission.Directory()
        self._appenders: dict[TenantId, tuple[object, journal.Appender]] = {}
        self._groups: dict[tuple[TenantId, PipelineId], group.Group] = {}
        self._revoked: dict[TenantId, frozenset[int]] = {}
        self._debts: dict[TenantId, tuple[float, errors.OverLimitError]] = {}
        self._held = body.Held()

    async def bind(self, binding: IngestBinding) -> None:
        """Serve what the binding says from now on."""
        gone = dict(self._appenders)
        for tenant in binding.tenants:
            wanted = (tenant.journal, tenant.login)
            if tenant.tenant in gone and gone[tenant.tenant][0] == wanted:
                del gone[tenant.tenant]
            else:
                self._connect(tenant.tenant, tenant.journal, tenant.login)
        self._known = admission.directory(binding)
        for name, (_, appender) in gone.items():
            if self._appenders.get(name, (None, None))[1] is appender:
                del self._appenders[name]
                self._groups = {k: g for k, g in self._groups.items() if k[0] != name}

    def _connect(self, tenant: TenantId, server: JournalServer, login: Login) -> None:
        appender = journal.Appender(server, login, tenant)
        self._appenders[tenant] = ((server, login), appender)
        self._groups = {k: g for k, g in self._groups.items() if k[0] != tenant}

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._request(scope, receive, send)
        except errors.LogweirError as error:
            await web.answer_error(send, error)
        except ConnectionResetError:
            pass  # nobody is left to be answered
        except Exception:
            logger.exception("request failed", extra={"path": scope["path"][:200]})
            failed = errors.UnavailableError("Ingest failed on this request; it is in its log.")
            await web.answer_error(send, failed)

    async def _request(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        tenant, pipeline, rest = admission.split_path(scope["path"])
        headers = dict(scope["headers"])
        target = self._admit((tenant, pipeline), headers)
        decoder = ROUTES.get(rest)
        if decoder is None:
            raise errors.NotFoundError(
                f"There is no {rest[:80]!r} here.", hint=f"Known: {', '.join(ROUTES)}."
            )
        if scope["method"] != "POST":
            raise errors.MethodNotAllowedError(f"{rest} takes POST.")
        labels = (target.tenant, target.pipeline.name)
        status = 200
        try:
            await web.answer(send, 200, await self._take(target, decoder, headers, receive))
        except errors.LogweirError as error:
            status = error.status
            self._group(target).refuse(error.code)
            if isinstance(error, AllRejectedError):
                await web.answer(send, status, error.body())
                return
            raise
        finally:
            metrics.INGEST_REQUESTS.labels(*labels, status).inc()

    def _admit(self, address: tuple[str, str], headers: dict[bytes, bytes]) -> admission.Target:
        key = keys.from_headers(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
        return admission.admit(self._known, address, key, self._now_s(), self._revoked)

    async def _take(
        self,
        target: admission.Target,
        decoder: Callable[[bytes, native.Rules], native.Decoded],
        headers: dict[bytes, bytes],
        receive: web.Receive,
    ) -> bytes:
        self._check_debt(target.tenant)
        body.check_content_type(headers.get(b"content-type", b""))
        length = body.check_length(headers.get(b"content-length", b""))
        identity = idempotency.identity(
            headers.get(b"idempotency-key", b""), target.tenant, target.pipeline.id
        )
        with self._holding(length):
            raw = await body.read(receive)
        with self._holding(len(raw)):
            text = body.decompress(raw, headers.get(b"content-encoding", b""))
            del raw
            with self._holding(len(text)):
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
            records=len(decoded.part.times_ns),
            expired=len(decoded.expired),
            size_bytes=len(text),
            fingerprint=idempotency.fingerprint(text),
            key=identity.key,
            producer=identity.producer,
            epoch=identity.epoch,
            sequence=identity.sequence,
        )
        try:
            outcome = await self._group(target).submit(request, decoded.part)
        except errors.OverLimitError as error:
            until_s = self._now_s() + min(error.retry_after_s, DEBT_REMEMBERED_S)
            self._debts[target.tenant] = (until_s, error)
            raise
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
        if outcome.is_repeated:
            metrics.INGEST_RECORDS.labels(*labels, "repeated").inc(decoded.accepted)
            return
        metrics.INGEST_BYTES.labels(*labels).inc(size_bytes)
        metrics.INGEST_RECORDS.labels(*labels, "accepted").inc(decoded.accepted)
        if decoded.rejected:
            metrics.INGEST_RECORDS.labels(*labels, "rejected").inc(len(decoded.rejected))
        if decoded.expired:
            metrics.INGEST_RECORDS.labels(*labels, "expired").inc(len(decoded.expired))

    def _check_debt(self, tenant: TenantId) -> None:
        debt = self._debts.get(tenant)
        if debt is None:
            return
        until_s, error = debt
        left_s = until_s - self._now_s()
        if left_s <= 0:
            del self._debts[tenant]
            return
        raise errors.OverLimitError(
            error.message, retry_after_s=max(left_s, error.retry_after_s), hint=error.hint
        )

    @contextlib.contextmanager
    def _holding(self, size_bytes: int) -> Iterator[None]:
        self._held.take(size_bytes)
        metrics.INGEST_BODY_BYTES.set(self._held.size_bytes)
        try:
            yield
        finally:
            self._held.give_back(size_bytes)

    def _group(self, target: admission.Target) -> group.Group:
        key = (target.tenant, target.pipeline.id)
        found = self._groups.get(key)
        if found is None:
            appender = self._appenders[target.tenant][1]
            found = self._groups[key] = group.Group(*key, appender, now_s=self._now_s)
        return found

    async def watch(self, running: life.Life) -> None:
        """Learn of revoked keys, and report whether the journals answer, until the end."""
        running.expect("journal")
        while not await running.pause(REVOCATION_POLL_S if self._appenders else 0.1):
            problem = ""
            for tenant, (_, appender) in list(self._appenders.items()):
                try:
                    self._revoked[tenant] = await appender.revoked_keys()
                except errors.LogweirError as error:
                    problem = str(error)
            running.report("journal", problem)

    async def drain(self) -> None:
        """Finish what was accepted, then close the connections."""
        await asyncio.gather(*(one.drain() for one in self._groups.values()))
        for _, appender in self._appenders.values():
            await appender.close()


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


async def run(settings: Settings, running: life.Life) -> None:
    """Serve until the process is told to stop."""
    app = Ingest()
    if settings.http is None:
        raise errors.SetupError("The ingest role needs an address for its API.")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(web.serve(web.ops_app(running), settings.ops, running))
        tasks.create_task(bindings.follow(settings.binding, IngestBinding, app.bind, running))
        tasks.create_task(app.watch(running))
        await web.serve(app, settings.http, running)
    await app.drain()


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("ingest", settings.log_format)
    life.run(lambda running: run(settings, running))
