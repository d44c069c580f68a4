"""A worker's process: BentoML's service, with the models loading while BentoML is imported."""

from __future__ import annotations

import gc
import signal
import sys

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.telemetry import output
from labelcurve.serving.workers import bento
from labelcurve.serving.workers.rundir import RunDir


def main() -> None:
    """Entry point of a worker; the arguments are those of `bento.Worker`."""
    gc.disable()  # imported objects stay; the service enables it when the models are loaded
    # A closed terminal signals every process that it started: the supervisor decides.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    output.install(_count_dropped)
    bento.ignore_its_environment()
    bento.defer_unused()
    try:
        _serve()
    except LabelcurveError as error:  # the supervisor logs it, in a line
        run_dir = RunDir.from_environment()
        if run_dir is None:
            raise
        run_dir.fail(str(error))
        sys.exit(1)


def _serve() -> None:
    from labelcurve.serving.workers import loading

    serves = loading.begin()
    if serves.run_dir:
        serves.run_dir.follow_supervisor()
    from labelcurve.serving.service import Classifier
    from labelcurve.serving.telemetry import tracing

    settings = serves.settings
    named = settings.access_log or tracing.wanted(settings.otlp_endpoint)
    bento.run(Classifier, bento.Worker(*map(int, sys.argv[1:])), proxy_headers=named)


def _count_dropped(lines: int) -> None:
    from labelcurve.serving.telemetry import metrics

    metrics.LOG_LINES_DROPPED.inc(lines)


if __name__ == "__main__":
    main()
