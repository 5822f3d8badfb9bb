# SPDX-License-Identifier: Apache-2.0
"""Run verbs from the command line: fire reads the arguments, every mistake is answered in one clear line."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import fire
from fire.decorators import SetParseFns

import monai_ssl

__all__ = ["run_verbs"]

Verb = Callable[..., None]

PROGRAM = "python -m monai_ssl"
TRACEBACK = "MONAI_SSL_TRACEBACK"

_SEPARATOR = "\0"  # no argument of a command line can hold it


def run_verbs(verbs: Mapping[str, Verb], arguments: Sequence[str], introduction: str) -> int:
    """Run one verb, or show help.

    All arguments are read before the verb starts, so a misspelt flag changes nothing.

    Args:
        verbs: functions by name. Their parameters are annotated with ``str``, ``int``, ``bool`` or ``list[str]``
            (``--sources A B C``, up to the next flag), perhaps ``| None``; their docstrings are the help.
        arguments: what follows the program's name.
        introduction: first lines of the overview.

    Returns:
        The exit code: 0; 2 after a mistake or an error, printed in one line to stderr (with its whole traceback if the
        environment variable ``MONAI_SSL_TRACEBACK`` is 1); 130 after Ctrl-C.
    """
    try:
        code = _run(verbs, list(arguments), introduction)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as head, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) == "1":
            traceback.print_exc()
        else:
            print(f"error: {_message(error)}", file=sys.stderr)
        return 2


def _run(verbs: Mapping[str, Verb], arguments: list[str], introduction: str) -> int:
    wants_help = not {"-h", "--help"}.isdisjoint(arguments) or arguments[:1] == ["help"]
    if wants_help:
        arguments = [argument for argument in arguments if argument not in ("-h", "--help", "help")]
    if arguments == ["--version"]:
        print(monai_ssl.__version__)
        return 0
    if not arguments:
        print(_overview(verbs, introduction))
        return 0 if wants_help else 2
    if arguments[0].startswith("-"):
        raise ValueError(f"{arguments[0]} stands before the verb; {PROGRAM} --help shows the verbs")
    verb = arguments[0].replace("_", "-")
    _require(verb, verbs, f"there is no verb {arguments[0]!r}", f"{PROGRAM} --help shows them")
    if wants_help:
        print(_help(verb, verbs[verb]))
        return 0
    positional, named = _read(verb, verbs[verb], arguments[1:])
    verbs[verb](*positional, **named)
    return 0


def _read(verb: str, function: Verb, arguments: list[str]) -> tuple[tuple, dict[str, Any]]:
    """Let fire match the arguments with the parameters; nothing runs here."""
    signature = inspect.signature(function, eval_str=True)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    flags = {*kinds, *(f"no{name}" for name, kind in kinds.items() if kind is bool)}
    for argument in arguments:
        if argument.startswith("-") and not argument[1:2].isdigit():
            name = argument.lstrip("-").partition("=")[0].replace("-", "_")
            _require(name, flags, f"{verb} has no flag {argument!r}", _usage(verb, function), "--")
    arguments = _joined(arguments, {name for name, kind in kinds.items() if get_origin(kind) is list})
    read: list[tuple[tuple, dict[str, Any]]] = []

    @SetParseFns(**{name: functools.partial(_value, name, kind) for name, kind in kinds.items()})
    @functools.wraps(function)
    def keep(*positional: Any, **named: Any) -> None:
        read.append((positional, named))

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fire.Fire(keep, arguments, name=f"{PROGRAM} {verb}")
    except fire.core.FireExit as stop:
        # fire reads on after the call, and stops at what is left.
        required = [name.upper() for name, p in signature.parameters.items() if p.default is p.empty]
        what = f"does not take {stop.trace.elements[-1].args[0]!r}" if read else f"needs {' and '.join(required)}"
        raise ValueError(f"{verb} {what}; {_usage(verb, function)}") from None
    return read[0]


def _joined(arguments: list[str], lists: set[str]) -> list[str]:
    """Put the words that follow the flag of a list into one argument."""
    joined: list[str] = []
    inside = fresh = False
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, _ = argument[2:].partition("=")
            inside = name.replace("-", "_") in lists
            joined.append(argument)
            fresh = not equals
        elif inside and not fresh:
            joined[-1] += _SEPARATOR + argument
        else:
            joined.append(argument)
            fresh = False
    return joined


def _value(name: str, kind: Any, text: str) -> Any:
    """Turn an argument's text into its parameter's type; paths stay as they were typed."""
    if get_origin(kind) is list:
        if text == "True":  # what fire makes of a flag that nothing follows
            raise ValueError(f"--{name} needs one value or more")
        return text.split(_SEPARATOR)
    kind = next((one for one in get_args(kind) if one is not type(None)), kind)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--{name} is True or False, not {text!r}")
        return text.lower() == "true"
    if text == "True":  # what fire makes of a flag that nothing follows
        raise ValueError(f"--{name} needs a value")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{name} is a whole number, not {text!r}") from None


def _require(name: str, known: Iterable[str], problem: str, otherwise: str, prefix: str = "") -> None:
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        raise ValueError(f"{problem}; " + (f"did you mean {prefix}{near[0]}?" if near else otherwise))


def _overview(verbs: Mapping[str, Verb], introduction: str) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {inspect.getdoc(verb).splitlines()[0]}" for name, verb in verbs.items()]
    return (
        f"{introduction}\n\nusage: {PROGRAM} VERB ...\n\n" + "\n".join(lines) + f"\n\n{PROGRAM} VERB --help says more."
    )


def _help(verb: str, function: Verb) -> str:
    return f"{_usage(verb, function)}\n\n{inspect.getdoc(function)}"


def _usage(verb: str, function: Verb) -> str:
    """One line with all arguments and their defaults."""
    words = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        default = parameter.default
        if get_origin(parameter.annotation) is list:
            words.append(f"--{name} A B ..." if default is parameter.empty else f"[--{name} A B ...]")
        elif default is parameter.empty:
            words.append(f"--{name} {name.upper()}" if parameter.kind is parameter.KEYWORD_ONLY else name.upper())
        elif parameter.annotation is bool:
            words.append(f"[--{name}]")
        else:
            words.append(f"[--{name} {'...' if default is None else default}]")
    return f"usage: {PROGRAM} {verb} {' '.join(words)}"


def _message(error: Exception) -> str:
    """What to show of an error: ours in full, of others the kind and the first line."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if Path(frame.filename).is_relative_to(Path(__file__).parent):
        return str(error)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first} ({TRACEBACK}=1 shows where)"
