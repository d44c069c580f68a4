"""The offline job: data, fractions, fine-tuning, evaluation, export."""

import bundle as bundle  # before ONNX Runtime is imported: it switches its telemetry off
