"""Imports TensorFlow without the lines it greets everybody with.

TF_CPP_MIN_LOG_LEVEL does not reach what TensorFlow writes before its logging is set up, so that
file descriptor 2 is caught during the import and what is no greeting is printed afterwards.
"""

import os
import re
import sys
import tempfile

_GREETING = re.compile(
    rb"I\d{4} .*|WARNING: All log messages before absl::InitializeLog\(\) is called.*|To enable the following instr.*"
)


def import_tensorflow() -> None:
    """Imports TensorFlow; warnings, errors and tracebacks of the import still come out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught.read().splitlines(keepends=True):
                if not _GREETING.match(line):
                    os.write(2, line)
