"""The command `synoptic`: one verb, then `key=value`. What is slow to import waits for the verb that needs it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from rich.console import Console

import synoptic
from synoptic.apps.arguments import Verb, print_help, split, two_columns
from synoptic.apps.bars import fetching_bars
from synoptic.apps.finding import DETECT
from synoptic.apps.piloting import PILOT
from synoptic.apps.segmenting import SEGMENT
from synoptic.apps.training import Train
from synoptic.apps.verbs import SIMPLE_VERBS
from synoptic.config import nearest
from synoptic.machine import is_out_of_memory

DONE, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
VERBOSE = "--verbose"  # lists what a mistake's one line only counts, such as all keys that a file lacks

VERBS: dict[str, Verb] = {
    verb.name: verb for verb in (SIMPLE_VERBS[0], Train(), *SIMPLE_VERBS[1:], DETECT, SEGMENT, PILOT)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after `synoptic`; None takes those of this process.
    Returns:
        Exit code: 0 done; 1 a fault of ours, with a traceback, or nobody read our output to its end; 2 the user's
        mistake, with one line on stderr (behind it, with `--verbose`, the lists that it counts); 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = VERBOSE in words
    try:
        _run([word for word in words if word != VERBOSE])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails again when it ends
        return FAULT
    except KeyboardInterrupt as interrupt:
        return _say(str(interrupt) or "interrupted", INTERRUPTED)
    except (ValueError, OSError) as error:  # a disk that is full, a folder that cannot be made
        notes = getattr(error, "__notes__", [])
        code = _say(f"{error} ({VERBOSE} lists all)" if notes and not verbose else str(error), MISTAKE)
        sys.stderr.writelines(f"{note}\n" for note in notes if verbose)
        return code
    except Exception as error:
        if is_out_of_memory(error):
            return _say("out of memory: what was asked for is too large for this machine; give smaller sizes", MISTAKE)
        traceback.print_exc()
        return FAULT
    return DONE


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _print_verbs(Console())
    name, rest = arguments[0], arguments[1:]
    if name in ("-V", "--version"):
        return print(f"synoptic {synoptic.__version__}")
    if name not in VERBS:
        raise ValueError(f"unknown verb {name!r}{nearest(name, VERBS)}")
    verb = VERBS[name]
    words = split(rest, verb.flags)
    if "help" in words.flags:
        print_help(Console(), *verb.help(words))
    else:
        with fetching_bars():
            verb.run(words)


def _say(message: str, code: int) -> int:
    print("synoptic:", " ".join(message.split()), file=sys.stderr)
    return code


def _print_verbs(console: Console) -> None:
    verbs = two_columns((verb.name, verb.line) for verb in VERBS.values())
    usage = "synoptic VERB [WORDS] [key=value ...]"
    what = "Many eyes, one model: trains vision models, merges them into one, and puts the result to work."
    more = (
        "synoptic VERB --help lists the keys of a verb, synoptic train METHOD --help those of a method; "
        f"{VERBOSE} lists what a message only counts."
    )
    print_help(console, usage, what, verbs, more)
