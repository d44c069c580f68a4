"""`python -m training` is `train`; `python -m training pretrain` and so on are the others.

With `torchrun --nproc-per-node 8 -m training ...` in front, several processes train together.
"""

from __future__ import annotations

import sys

from training import cli

COMMANDS = {
    "train": cli.main,
    "pretrain": cli.pretrain,
    "sweep": cli.sweep,
    "quantize": cli.quantize,
}

if __name__ == "__main__":
    name = sys.argv.pop(1) if sys.argv[1:2] and sys.argv[1] in COMMANDS else "train"
    sys.argv[0] = name
    COMMANDS[name]()
