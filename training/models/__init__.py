"""Networks, pretrained weights, export and quantization."""
