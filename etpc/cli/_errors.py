"""Whose mistake an error is."""

import os
import sysconfig
import traceback

from ..errors import Code, EtpcError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "purelib", "platlib")
)


class CommandError(EtpcError, ValueError):
    """What was typed, or what the user's own code gave, cannot be used."""

    code = Code.COMMAND


def is_of_user(error: BaseException) -> bool:
    """Whether the user's code raised an error, itself or by calling a library other than etpc."""
    frames = _frames(error)
    return bool(frames) and not _in_package(frames[-1])


def described(error: BaseException) -> str:
    """An error in a few lines, with the last line of the user's code on the way to it."""
    own_kind = isinstance(error, EtpcError)
    lines = [str(error) if own_kind else "".join(traceback.format_exception_only(error)).strip()]
    user_frames = [frame for frame in _frames(error) if not _in_package(frame)]
    if user_frames:
        path = os.path.relpath(user_frames[-1].filename)
        path = user_frames[-1].filename if path.startswith(os.pardir) else path
        lines += [
            f"  at {path}:{user_frames[-1].lineno}, in {user_frames[-1].name}:",
            f"    {user_frames[-1].line}",
        ]
    return "\n".join(lines)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Those of etpc and of the user, without those of other libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if _in_package(f) or not f.filename.startswith(("<", *_LIBRARIES))]


def _in_package(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_PACKAGE + os.sep)
