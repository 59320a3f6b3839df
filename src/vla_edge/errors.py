"""Every exception a user can meet.

Each message is one line: the fact, the limit, the next step. A command turns a
`VlaEdgeError` into that line on stderr and exit code 2; a failed check (the
work was done and its result is "no") is a `CheckFailed` and exit code 1.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class VlaEdgeError(Exception):
    """Base of all errors a user can meet; `str(error)` is one line."""


class CheckpointError(VlaEdgeError):
    """A checkpoint folder is incomplete, damaged or not a policy we know."""


class ConfigError(VlaEdgeError):
    """A configuration field or a flag has a value that is not supported."""


class BundleError(VlaEdgeError):
    """A bundle is damaged, of another schema, or does not hold what was asked."""


class ExportError(VlaEdgeError):
    """An export did not reach its tolerance or cannot be written."""


class CoreError(VlaEdgeError):
    """The C extension is not there."""


class EngineError(VlaEdgeError):
    """A backend is missing or refused a graph."""


class ObservationError(VlaEdgeError):
    """A camera image, joint state or instruction is not what the policy takes."""


class CameraError(VlaEdgeError):
    """A camera is missing, frozen or delivers the wrong format."""


class BusError(VlaEdgeError):
    """The servo bus cannot be opened, or a servo is not what it should be."""


class JointCalibrationError(VlaEdgeError):
    """A joint calibration is unreadable or disagrees with the servos."""


class ControlError(VlaEdgeError):
    """The control process cannot start, or its files and socket cannot be used."""


class IdentityError(VlaEdgeError):
    """Bundle, robot, calibration and cameras do not describe the same thing."""


class WireError(VlaEdgeError):
    """A client's message or request is not what the protocol allows."""


class ServeError(VlaEdgeError):
    """The service cannot start: its address, certificate or token."""


class RecordError(VlaEdgeError):
    """A record of inferences or of the flight is missing, damaged or not complete enough for what was asked."""


class DatasetError(VlaEdgeError):
    """A data set is missing, damaged or of another version."""


class TrainingError(VlaEdgeError):
    """A training run cannot start or had to stop."""


class CheckFailed(VlaEdgeError):
    """The work was done and the answer is no: exit code 1."""


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and turn errors a user can meet into one line on stderr.

    Returns the exit code: 0 done, 1 a check failed, 2 bad input or environment,
    130 interrupted. A full disk, a refused permission and a path that is none are the
    environment's errors and are told in one line too; anything else is our bug and keeps its
    traceback.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return main(arguments)
    except CheckFailed as error:
        print(f"failed: {_one_line(error)}", file=sys.stderr)
        return 1
    except VlaEdgeError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(
                f"error: no space left on the disk while writing {error.filename or 'output'}; free some and run again",
                file=sys.stderr,
            )
            return 2
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            print(
                f"error: no permission for {error.filename}: {error.strerror}; check its owner and mode",
                file=sys.stderr,
            )
            return 2
        if error.errno in _ENVIRONMENT:
            print(
                f"error: {error.filename or 'output'}: {error.strerror}; {_ENVIRONMENT[error.errno]}", file=sys.stderr
            )
            return 2
        raise


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside the block, so that both ways to stop a command clean up alike.

    For the main thread of a command; elsewhere it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_ENVIRONMENT = {
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EEXIST: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a file is needed there; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EFBIG: "larger than this file system or `ulimit -f` allows; raise the limit or write elsewhere",
    errno.EIO: "the disk does not answer; check it and run again",
}
"""Errors of the operating system that are not our bug, and the next step for each."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
