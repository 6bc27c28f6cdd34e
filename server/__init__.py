"""The coordinator: rounds, aggregation, checkpoints, and the judgement of a run."""
