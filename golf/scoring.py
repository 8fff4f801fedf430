"""A run's evaluators on its split: one object that opens the stream once and scores any model with any of them."""

import numpy as np
import torch

from golf.dist import Ranks
from golf.evals.evaluator import EvalConfig, Score
from golf.models.lm import LM
from golf.tokens.prepare import Prepared
from golf.tokens.shards import open_shard
from golf.tokens.tokenizer import ByteCounter


class Scoring:
    """plain and named scores of a model on `eval.split`."""

    def __init__(self, config: EvalConfig, prepared: Prepared, ranks: Ranks):
        self.config = config
        self.ranks = ranks
        shards = [open_shard(path) for path in prepared.splits[config.split].shards]
        self.stream = shards[0] if len(shards) == 1 else np.concatenate(shards)
        self.counter = ByteCounter.from_tokenizer(prepared.tokenizer)

    def score(self, model: LM, evaluator: str = "plain") -> Score:
        """Score with a named evaluator; all ranks take part and get the same sums. Leaves no gradients."""
        with torch.no_grad():
            return self.config.evaluators[evaluator].run(model.log_probs, self.stream, self.counter, self.ranks)
