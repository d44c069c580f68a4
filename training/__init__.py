"""The offline job: data, fractions, fine-tuning, evaluation, export."""
