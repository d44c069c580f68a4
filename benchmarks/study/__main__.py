"""`python -m benchmarks.study` trains what the study is missing."""

from labelcurve.benchmarks.study.run import main
from labelcurve.bundle import command

if __name__ == "__main__":
    command.enter(main, extra="train")
