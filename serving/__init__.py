"""The service, on BentoML: decoding, batching, inference with ONNX Runtime, responses."""

import os

# Before ONNX Runtime is imported: it switches its telemetry off.
from labelcurve import bundle as bundle

# Read by BentoML before its first usage report, in every process that imports this package and in
# their children.
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
