"""The service: bytes, decode, batch, ONNX Runtime, answer. BentoML underneath."""

import os
import signal

import bundle as bundle  # before ONNX Runtime is imported: it switches its telemetry off

# Read by BentoML when it first thinks of reporting, in every process that imports this package
# and in those that they start.
os.environ["BENTOML_DO_NOT_TRACK"] = "True"

if os.getpid() == 1:  # as `bundle` does, with the exit status that `serve` has for SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
