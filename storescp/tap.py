"""The ``twistd storescp`` command: its options and how they become a service. Wiring only."""

from __future__ import annotations

from storescp import interrupts  # first, for the rest takes its time

# isort: split
import os
import sys
from types import TracebackType
from typing import NoReturn

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import AuthOptionMixin
from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from storescp import __version__
from storescp.config import OPTIONS, ConfigError, configured, gathered
from storescp.log_files import BadLog, observer_for_twistd
from storescp.priorities import complain
from storescp.reloading import Reloading
from storescp.service import CannotStart, StoreSCPService
from storescp.settings import CONFIG_VARIABLE, Settings, nearest, unknown_variables

_log = Logger(namespace=__name__)


class Options(usage.Options, AuthOptionMixin):
    """The command line. Mistakes end the process with one line and exit code 1; twistd would exit with 0."""

    # Of the mixin only --help-auth and --help-auth-type are used: our own --auth collects what the file may have, too.
    supportedInterfaces = (IUsernamePassword,)
    synopsis = "[options]"
    #: The command that these are the options of, where that is not twistd's.
    command = ""
    longdesc = (
        "A DICOM Storage SCP: receives images by C-STORE and stores them as files. "
        "Every option may stand in a YAML file under the same name, or in the environment (STORESCP_MAX_ASSOC); "
        "the command line wins, then the environment."
    )
    optParameters = [
        ["config", "c", None, f"YAML file with options; or {CONFIG_VARIABLE} in the environment"],
        *(
            [option.name, option.short or None, None, f"{option.help} [default: {option.default}]"]
            for option in OPTIONS
            if not option.is_flag and not option.is_list
        ),
    ]
    optFlags = [[option.name, option.short or None, option.help] for option in OPTIONS if option.is_flag]

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse, and load the configuration into ``self.config``."""
        self.lists: dict[str, list[str]] = {}
        self._directory = os.getcwd()  # twistd may go elsewhere
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
            settings = self.gather()
            self.config = configured(settings)
            self.reloading = Reloading(self.gather, settings, self.config)
        except (usage.UsageError, ConfigError) as error:
            text = str(error)
            if text.endswith(" not recognized"):  # getopt's words
                text += nearest(text.split()[1], (f"--{option.name}" for option in OPTIONS))
            _give_up(text)

    def parseArgs(self, *arguments: str) -> None:
        """There are none besides the options: a port is often given as one."""
        if arguments:
            given = f"--port {arguments[0]}" if arguments[0].isdecimal() else "options only"
            raise usage.UsageError(f"expected {given}, got {arguments[0]!r:.60}")

    def gather(self) -> Settings:
        """What the command line, the environment and the file say at the moment. Raises ConfigError."""
        given = {
            option.name: self[option.name]
            for option in OPTIONS
            if not option.is_list and self[option.name] not in (None, 0)
        }
        file = self["config"] or os.environ.get(CONFIG_VARIABLE)
        if file and os.getcwd() != self._directory:
            file = os.path.join(self._directory, file)
        return gathered(
            file,
            {name: bool(text) if text == 1 else text for name, text in given.items()} | self.lists,
            os.environ,
        )

    def getSynopsis(self) -> str:
        """The first line of the help."""
        return f"Usage: {self.command} {self.synopsis}" if self.command else str(super().getSynopsis())

    opt_h = usage.Options.opt_help

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        print(f"storescp {__version__}")
        sys.exit(0)


def _list_option(name: str, text: str) -> None:
    def collect(self: Options, value: str) -> None:
        self.lists.setdefault(name, []).append(value)

    collect.__doc__ = text
    setattr(Options, f"opt_{name.replace('-', '_')}", collect)


for _option in OPTIONS:
    if _option.is_list:
        _list_option(_option.name, f"{_option.help} [default: {_option.default}]")


def makeService(options: Options) -> StoreSCPService:
    """The service that *options* describe; nothing is opened yet."""
    interrupts.raise_again()
    assert isinstance(_reactor, ReactorBase)
    try:
        service = StoreSCPService(options.config, _reactor, options.reloading)
        if options.parent is not None:
            service.log_observer = observer_for_twistd(options.parent, options.config.logs, _reactor)
    except (CannotStart, BadLog) as error:
        _give_up(options.reloading.placed(str(error)))
    for line in unknown_variables(OPTIONS, os.environ):
        _log.warn("environment: {line}", line=line)
    _reactor.callWhenRunning(service.take_signals)
    daemon = options.parent is not None and not options.parent["nodaemon"]
    sys.excepthook = _excepthook_of_daemon if daemon else _excepthook
    return service


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What cannot start goes through twistd as an exception (it removes its PID file, and a daemon's parent
    learns of it) and comes out here: one line, and Python exits with 1.
    """
    if isinstance(error, CannotStart):
        complain(str(error), sys.__stderr__)
    else:
        interrupts.excepthook(kind, error, traceback)


def _excepthook_of_daemon(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A daemon has no stderr, and what twistd's parent process says there refers to the log."""
    if isinstance(error, CannotStart):
        _log.critical("{error}", error=error)
    else:
        _log.failure("cannot start", Failure(error, kind, traceback))


def _give_up(error: object) -> NoReturn:
    complain(str(error), sys.__stderr__)
    sys.exit(1)


interrupts.raise_again()
