"""The command `preprocess`. If it is not on the PATH, `python -m preprocess` runs it too."""

from __future__ import annotations

import gc
import signal
import sys
from typing import NoReturn

from preprocess.cli.interrupts import SIGNALS, explain, signals_as_exceptions
from preprocess.console import discard_unwritten_messages


def main() -> NoReturn:
    """Run the command in `sys.argv`, and end the process with its exit status.

    No traceback is printed if Ctrl-C arrives during the imports or while the process ends.
    """
    try:
        with signals_as_exceptions():
            from preprocess.build.engines.unused_libraries import leave_out_pandas, limit_blas_threads

            leave_out_pandas()
            limit_blas_threads()
            from preprocess.cli.main import main as run

            run(prog_name="preprocess")
    except KeyboardInterrupt as e:
        message, status = explain(e)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(status)
    finally:
        discard_unwritten_messages()
        gc.freeze()  # Python collects garbage several times while it ends, which takes 0.1 s after the imports
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    sys.exit(0)


if __name__ == "__main__":
    main()
