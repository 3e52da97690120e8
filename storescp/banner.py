"""What the log is told of the server when it has started, and when it has stopped."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from storescp import __version__
from storescp.config import Config
from storescp.counting import Count
from storescp.statistics import Statistics


def banner(log: Logger, config: Config, addresses: Sequence[str], web: str) -> None:
    """Tell what the server is, where it listens, and where its page is: empty if it has none."""
    log.info(
        "storescp {version}: AE title {ae_title}, {called} called titles; storing {count:SOP class|SOP classes}"
        " ({accept}) in {directory}; index {index}",
        version=__version__,
        ae_title=config.ae_title,
        called="other" if not config.check_called_ae else "no other",
        count=Count(len(config.accept.uids)),
        accept=", ".join(config.accept_names),
        directory=str(config.storage_dir),
        index=config.index_db or "none",
    )
    log.info(
        "naming {naming}, duplicates {duplicate}, sync {sync}; {workers}at most {max_assoc:association},"
        " {max_pending:connection} without one; idle timeout {timeout:g} s, ARTIM {artim:g} s;"
        " PDUs up to {max_pdu} bytes",
        naming=config.naming.value,
        duplicate=config.duplicate.value,
        sync=config.sync.value,
        workers=f"{config.workers} workers, " if config.workers > 1 else "",
        max_assoc=Count(config.max_assoc),
        max_pending=Count(config.max_pending),
        timeout=config.timeout,
        artim=config.artim_timeout,
        max_pdu=config.max_pdu or "unlimited",
    )
    access = config.access
    if access.callers.is_open and not access.auth_required:
        log.info(
            "any caller may store{but}",
            but=f", but for {Count(len(access.callers.known)):with a rule of its own|with rules of their own}"
            if access.callers.known
            else "",
        )
    else:
        log.info(
            "{count:caller has a rule of its own|callers have rules of their own}, others {others};"
            " user identity {users}",
            count=Count(len(access.callers.known)),
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
        elsewhere = ", or where {count:rule of callers says|rules of callers say}" if count else ""
        log.info(
            "storage commitment is reported on the association that asks" + elsewhere, count=Count(count)
        )
    for address in addresses:
        log.info("listening on {address}", address=address)
    if web:
        log.info("metrics and page on {address}", address=web)


def farewell(log: Logger, statistics: Statistics, uptime: float) -> None:
    """Tell what it has done in *uptime* seconds."""
    if statistics.refused or statistics.dropped or statistics.slow or statistics.oversized:
        log.info(
            "limits: {refused:connection} refused, {dropped} dropped without an association,"
            " {slow:association} too slow, {oversized:instance} too large",
            refused=Count(statistics.refused),
            dropped=statistics.dropped,
            slow=Count(statistics.slow),
            oversized=Count(statistics.oversized),
        )
    log.info(
        "stopped after {uptime:.0f} s: {associations:association} ({rejected} rejected, {aborted} aborted),"
        " {messages:message}, {stored:instance} stored ({bytes_stored:byte}), {failed} failed,"
        " {bytes_received:byte} received",
        uptime=uptime,
        associations=Count(statistics.associations),
        rejected=statistics.rejected,
        aborted=statistics.aborted,
        messages=Count(statistics.messages),
        stored=Count(statistics.instances_stored),
        bytes_stored=Count(statistics.bytes_stored),
        failed=statistics.instances_failed,
        bytes_received=Count(statistics.bytes_received),
    )
    if reasons := statistics.reasons():
        log.info("rejected for: {reasons}", reasons=reasons)
