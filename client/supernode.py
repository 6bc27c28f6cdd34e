"""Flower's SuperNode in a process of its own, which ends when its work has ended.

An error in the loop that fetches messages ends that loop but not the process: the thread of its local API keeps it
alive, deaf, while its health check says that it serves. Here the process ends with the loop, and is started again.
"""

from __future__ import annotations

import os
import sys
import traceback

from flwr.supernode.cli import flower_supernode

if __name__ == "__main__":
    code = 1
    try:
        flower_supernode()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
