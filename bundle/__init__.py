"""What training writes and serving reads: the manifest, the preprocessing and the store."""

import os
import signal

# ONNX Runtime would report to its makers, and keep a device id in the user's cache folder. Every
# room imports this one before it imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The kernel drops a signal to the first process of a container that has no handler for it, and
# the imports of a command take longer than somebody may wait who has changed his mind.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
