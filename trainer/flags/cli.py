"""Command line -> Options. Flags are made from the dataclasses' fields."""

import argparse
import difflib
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from data.command_line import Parser
from data.errors import DataError
from trainer.flags.model_flags import saved_model_flags
from trainer.flags.options import GROUPS, Options, default_of
from trainer.flags.places import DEFAULT_PLACES, default_place
from trainer.flags.run_options import RunOptions

DESCRIPTION = """Trains, evaluates and measures a ranking model on the dataset that a feature specification describes.
One worker: python main.py. Several: horovodrun -np N sh hvd_wrapper.sh python main.py."""


class _Parser(Parser):
    """Raises instead of exiting: a worker's record tells the mistake, too."""

    def error(self, message: str) -> NoReturn:
        hint = self.nearest_flag(message)
        raise DataError(f"{message}{hint} (python {self.prog} --help lists every flag)")


def make_parser() -> Parser:
    """One flag per field of the option groups."""
    parser = _Parser("main.py", DESCRIPTION, argparse.RawTextHelpFormatter)
    for group in GROUPS.values():
        section = parser.add_argument_group(str(group.__doc__).splitlines()[0].rstrip("."))
        hints = typing.get_type_hints(group)
        for item in fields(group):
            default = DEFAULT_PLACES[item.name] if item.name in DEFAULT_PLACES else default_of(item)
            section.add_argument(
                f"--{item.name}",
                default=None,
                help=_help(item.metadata["help"], default),
                **_kind(hints[item.name], item.metadata["parse"]),
            )
    return parser


def parse(
    argv: Sequence[str] | None, workers: int, model_names: Sequence[str], *, reads_checkpoint: bool = True
) -> Options:
    """The options that `argv` asks for.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        workers: number of workers.
        model_names: what --model accepts.
        reads_checkpoint: whether the model's flags that are not stated are those of the checkpoint, if one is restored.

    Raises:
        DataError: an unknown flag, a value out of range, or flags that contradict each other or the checkpoint.
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
    """argparse's description of a field's type."""
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
