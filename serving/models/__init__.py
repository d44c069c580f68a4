"""Models in memory: catalogue, engine, batcher, decoder, answers."""
