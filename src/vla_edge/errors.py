# SPDX-License-Identifier: Apache-2.0
"""Every exception a user can meet.

Each message is one line: the fact, the limit, the next step. A command turns a `VlaEdgeError` into that line on stderr
and exit code 2; a failed check (the work was done and its result is "no") is a `CheckFailed` and exit code 1.
"""

from __future__ import annotations


class VlaEdgeError(Exception):
    """Base of all errors a user can meet; `str(error)` is one line."""


class UsageError(VlaEdgeError):
    """A command line that no command takes: an unknown word, a value out of range, something missing."""


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
    """A dataset is missing, damaged or of another version."""


class TrainingError(VlaEdgeError):
    """A training run cannot start or had to stop."""


class CheckFailed(VlaEdgeError):
    """The work was done and the answer is no: exit code 1."""
