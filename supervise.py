"""Supervises a training job: restarts it from the last checkpoint when a worker crashes, is killed or hangs."""

import argparse
import sys

from trainer.lifecycle.errors import FAILURE, WRONG_INPUT
from trainer.process.startup import robust_stdio
from trainer.supervisor import Supervisor, say

DESCRIPTION = """\
Keeps a training job going until it is done:
  python supervise.py --max_restarts 10 -- horovodrun -np 8 python main.py --amp --model_dir M --results_dir R

COMMAND must end with main.py's flags (as does that of scripts/training_full.sh). When a worker dies, is killed or
hangs, all processes that the command has started on this host are killed, and the command is run again from the last
checkpoint. If the model_dir contains checkpoints, --use_checkpoint is added at the first start as well, so running the
same command again resumes the run."""

EPILOG = """\
SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP asks the workers to stop: they agree on a step, save and exit. A
second signal kills them at once; signals within a second of the first are part of it. If this program itself is killed,
its job is killed with it. R/supervise.jsonl is a log of events; R/workers/ records how each worker ended.

Exit codes:
  0          done
  1          failed and not restarted: --max_restarts are used up, or the same failure occurred three times without a
             new checkpoint in between; or another supervisor is running in the results_dir
  2          wrong input or arguments; not restarted
  4          no valid checkpoint; not restarted
  70         as 1, but the last failure was a hang
  75         stopped by a signal, after saving; the same command resumes
  128 + N    ended by signal N before saving; the same command resumes at the last checkpoint"""


def main(argv: list[str] | None = None) -> int:
    """Run the supervisor and return its exit code (see EPILOG)."""
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
    """Split the arguments at the first "--" into (own flags, whether there is a "--", command)."""
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
