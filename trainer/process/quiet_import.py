"""Imports TensorFlow without its informational startup messages.

TF_CPP_MIN_LOG_LEVEL does not affect messages that TensorFlow writes before its logging is initialized. File descriptor
2 is therefore redirected during the import, and all other output is printed afterwards.
"""

import os
import re
import sys
import tempfile

_GREETING = re.compile(
    rb"I\d{4} .*|WARNING: All log messages before absl::InitializeLog\(\) is called.*|To enable the following instr.*"
)


def import_tensorflow() -> None:
    """Imports TensorFlow; warnings, errors and tracebacks of the import are still printed."""
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
