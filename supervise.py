"""Supervises a training job: restarts it from the last checkpoint when a worker crashes, is killed or hangs."""

import argparse
import sys

from trainer.lifecycle.errors import FAILURE, WRONG_INPUT
from trainer.process.startup import robust_stdio
from trainer.supervisor import Supervisor, say

DESCRIPTION = """\
Keeps a training job going until it is done:
  python supervise.py --max_restarts 10 -- horovodrun -np 8 python main.py --amp --model_dir M --results_dir R

The last words of the command are main.py's flags (so do those of scripts/training_full.sh). When a worker dies, is
killed or hangs, everything that the command has started on this host is killed, and the command runs again from the
last checkpoint. Where the model_dir holds checkpoints, --use_checkpoint is added from the first start on: the same
command, given again, goes on."""

EPILOG = """\
SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP asks the workers to stop: they agree on a step, save and end. A second
one kills them at once; signals within a second of the first count as the first. When this program itself is killed, its
job is killed with it. R/supervise.jsonl records what happened and when, R/workers/ how each worker ended.

Exit codes:
  0          done
  1          failed, and not started again: --max_restarts are made, or the same cause came three times without a new
             checkpoint in between; or another supervisor is at work in the results_dir
  2          wrong input or arguments; not started again
  4          no valid checkpoint; not started again
  70         as 1, and the last failure was a hang
  75         stopped by a signal, with all saved; the same command goes on
  128 + N    ended by signal N before all was saved; the same command goes on from the last checkpoint"""


def main(argv: list[str] | None = None) -> int:
    """Runs the supervisor and returns its exit code (see EPILOG)."""
    words = sys.argv[1:] if argv is None else argv
    own, dashes, command = _split(words)
    parser = _parser()
    arguments = parser.parse_args(own)
    if not dashes or not command:
        parser.error("expected a command after two dashes, as in: supervise.py -- horovodrun -np 8 python main.py ...")
    supervisor = Supervisor(command, max_restarts=arguments.max_restarts, grace_seconds=arguments.grace_seconds)
    try:
        return supervisor.run()
    except (FileNotFoundError, PermissionError) as error:
        say(f"{command[0]}: cannot be started ({error.strerror}); expected a command after the two dashes")
        return WRONG_INPUT
    except OSError as error:
        say(f"{command[0]}: cannot be started ({error.strerror})")
        return FAILURE


def _split(words: list[str]) -> tuple[list[str], bool, list[str]]:
    """Splits the arguments at the first "--" into (own flags, whether there is a "--", command)."""
    if "--" not in words:
        return words, False, []
    position = words.index("--")
    return words[:position], True, words[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="supervise.py",
        usage="supervise.py [--max_restarts K] [--grace_seconds S] -- COMMAND [ARGUMENT ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--max_restarts", type=_count, default=3, metavar="K", help="restarts in all (default: 3)")
    parser.add_argument(
        "--grace_seconds",
        type=_seconds,
        metavar="S",
        help="kill the job S seconds after the first signal (default: wait for as long as it takes to save)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return seconds


if __name__ == "__main__":
    robust_stdio()
    sys.exit(main())
