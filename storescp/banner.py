"""What the log is told of the server when it has started, and when it has stopped."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from storescp import __version__
from storescp.config import Config
from storescp.statistics import Statistics


def banner(log: Logger, config: Config, addresses: Sequence[str], web: str) -> None:
    """Tell what the server is, where it listens, and where its page is: empty if it has none."""
    log.info(
        "storescp {version}: AE title {ae_title}, {called} called titles; storing {count} SOP classes"
        " ({accept}) in {directory}; index {index}",
        version=__version__,
        ae_title=config.ae_title,
        called="other" if not config.check_called_ae else "no other",
        count=len(config.accept.uids),
        accept=", ".join(config.accept_names),
        directory=str(config.storage_dir),
        index=config.index_db or "none",
    )
    log.info(
        "naming {naming}, duplicates {duplicate}, sync {sync}; {workers}at most {max_assoc} associations,"
        " {max_pending} connections without one; idle timeout {timeout:g} s, ARTIM {artim:g} s;"
        " PDUs up to {max_pdu} bytes",
        naming=config.naming.value,
        duplicate=config.duplicate.value,
        sync=config.sync.value,
        workers=f"{config.workers} workers, " if config.workers > 1 else "",
        max_assoc=config.max_assoc,
        max_pending=config.max_pending,
        timeout=config.timeout,
        artim=config.artim_timeout,
        max_pdu=config.max_pdu or "unlimited",
    )
    access = config.access
    if access.callers.is_open and not access.auth_required:
        log.info(
            "any caller may store{but}",
            but=f", but for {len(access.callers.known)} with rules of their own"
            if access.callers.known
            else "",
        )
    else:
        log.info(
            "{count} callers have rules of their own, others {others}; user identity {users}",
            count=len(access.callers.known),
            others="are rejected" if access.callers.only_known else "have the default ones",
            users="required" if access.auth_required else "checked" if access.checks_users else "not checked",
        )
    if config.tls is not None:
        log.info(
            "TLS: profile {profile}, certificate in {certificate}; senders' certificates: {what}, {revoked}",
            profile=config.tls.profile.value,
            certificate=str(config.tls.certificate),
            what=config.tls.client_certificate.value,
            revoked="looked up in revocation lists" if config.tls.crl else "no revocation lists",
        )
    if config.commitment is not None:
        callers = (access.callers.default, *access.callers.known)
        count = sum(caller.commitment is not None for caller in callers)
        elsewhere = ", or where {count} rules of callers say" if count else ""
        log.info("storage commitment is reported on the association that asks" + elsewhere, count=count)
    for address in addresses:
        log.info("listening on {address}", address=address)
    if web:
        log.info("metrics and page on {address}", address=web)


def farewell(log: Logger, statistics: Statistics, uptime: float) -> None:
    """Tell what it has done in *uptime* seconds."""
    if statistics.refused or statistics.dropped or statistics.slow or statistics.oversized:
        log.info(
            "limits: {refused} connections refused, {dropped} dropped without an association,"
            " {slow} associations too slow, {oversized} instances too large",
            refused=statistics.refused,
            dropped=statistics.dropped,
            slow=statistics.slow,
            oversized=statistics.oversized,
        )
    log.info(
        "stopped after {uptime:.0f} s: {associations} associations ({rejected} rejected, {aborted} aborted),"
        " {messages} messages, {stored} instances stored ({bytes_stored} bytes), {failed} failed,"
        " {bytes_received} bytes received",
        uptime=uptime,
        associations=statistics.associations,
        rejected=statistics.rejected,
        aborted=statistics.aborted,
        messages=statistics.messages,
        stored=statistics.instances_stored,
        bytes_stored=statistics.bytes_stored,
        failed=statistics.instances_failed,
        bytes_received=statistics.bytes_received,
    )
    if reasons := statistics.reasons():
        log.info("rejected for: {reasons}", reasons=reasons)
