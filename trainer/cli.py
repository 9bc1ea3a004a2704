"""Parses the command line into Options, with one flag per dataclass field."""

import argparse
import difflib
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from data.command_line import Parser
from data.errors import DataError
from trainer.checkpoint.saved_config import saved_model_flags
from trainer.config import GROUPS, Options, RunOptions, default_of

# The folders of the public recipe, used if they exist and are writable, and those in the current directory otherwise.
DEFAULT_PLACES = {
    "dataset_path": ("/outbrain/data", "outbrain/data"),
    "model_dir": ("/outbrain/checkpoints", "outbrain/checkpoints"),
    "results_dir": ("/results", "results"),
}


def default_place(name: str) -> Path:
    """Return the default folder of a flag."""
    public, local = DEFAULT_PLACES[name]
    return Path(public) if os.access(public, os.W_OK) else Path(local)


def place_in(words: Sequence[str], name: str) -> Path:
    """Return the folder that a command passes for a flag, or the default.

    The command's other words are not parsed, since they may be invalid.

    Args:
        words: a command line that ends with flags of main.py.
        name: name of the flag without dashes, a key of DEFAULT_PLACES.
    """
    flag, found = f"--{name}", None
    for position, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and position + 1 < len(words):
            found = words[position + 1]
    return default_place(name) if found is None else Path(found)


DESCRIPTION = """Trains, evaluates and measures a ranking model on the dataset that a feature specification describes.
One worker: python main.py. Several: horovodrun -np N sh hvd_wrapper.sh python main.py."""


class _Parser(Parser):
    """A parser that raises an error instead of exiting, so that a worker can record it in its status file."""

    def error(self, message: str) -> NoReturn:
        hint = self.nearest_flag(message)
        raise DataError(f"{message}{hint} (python {self.prog} --help lists every flag)")


def make_parser() -> Parser:
    """Build the parser of main.py, with one flag per field of the option groups."""
    parser = _Parser("main.py", DESCRIPTION, argparse.RawTextHelpFormatter)
    for group in GROUPS.values():
        # The first line of a group's docstring is its title in the help text.
        section = parser.add_argument_group(str(group.__doc__).splitlines()[0].rstrip("."))
        hints = typing.get_type_hints(group)
        for item in fields(group):
            default = DEFAULT_PLACES[item.name] if item.name in DEFAULT_PLACES else default_of(item)
            section.add_argument(
                f"--{item.name}",
                default=None,  # tells flags that were given from those that were not; the dataclass has the default
                help=_help(item.metadata["help"], default),
                **_kind(hints[item.name], item.metadata["parse"]),
            )
    return parser


def parse(
    argv: Sequence[str] | None, workers: int, model_names: Sequence[str], *, reads_checkpoint: bool = True
) -> Options:
    """Parse arguments into options.

    Args:
        argv: arguments without the program name; None for those of the process.
        workers: number of workers.
        model_names: names that --model accepts.
        reads_checkpoint: whether to take the model's flags from the checkpoint, if the run restores one.

    Raises:
        DataError: a flag is unknown, a value is out of range, or flags contradict each other or the checkpoint.
        NoCheckpointError: there is no checkpoint to restore.
    """
    given = {name: value for name, value in vars(make_parser().parse(argv)).items() if value is not None}
    for name in DEFAULT_PLACES.keys() - given.keys():
        given[name] = default_place(name)
    run = RunOptions(**_of(RunOptions, given))
    if run.restores and reads_checkpoint:
        given |= saved_model_flags(given, given["model_dir"], run.which_checkpoint, model_names)
    options = Options(**{key: group(**_of(group, given)) for key, group in GROUPS.items()})
    options.run.check_workers(workers, os.environ)
    if options.model.model not in model_names:
        near = difflib.get_close_matches(options.model.model, model_names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"--model {options.model.model!r} is not one of {', '.join(model_names)}{hint}")
    return options


def _of(group: type, given: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: given[item.name] for item in fields(group) if item.name in given}


def _kind(hint: Any, parse: Callable[[Sequence[str]], Any] | None = None) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field's type.

    Args:
        hint: type hint of the field.
        parse: function that makes the value from the given words, for types that the hint does not describe.
    """
    if parse is not None:
        return {"nargs": "*", "action": _Parsed, "const": parse, "metavar": "N"}
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _kind(members[0])
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": members}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "*", "type": members[0], "action": _Tuple, "metavar": "N" if members[0] is int else "NAME"}
    if hint is bool:
        return {"action": "store_const", "const": True}
    return {"type": hint, "metavar": hint.__name__.upper()}


class _Parsed(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, self.const(values))


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _help(text: str, default: Any) -> str:
    if default is None or default is False or default == ():
        return text
    if isinstance(default, tuple):
        joint = " or ./" if isinstance(default[0], str) else " "
        default = joint.join(str(part) for part in default)
    return f"{text} (default: {default})"
