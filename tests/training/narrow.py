"""`python -m tests.training.narrow train ...`: the command in a process, with a narrow convnet.

For what does not depend on the network: each step of training takes a tenth of the time.
"""

from labelcurve.__main__ import main
from tests.training.conftest import narrowed

if __name__ == "__main__":
    with narrowed():
        main()
