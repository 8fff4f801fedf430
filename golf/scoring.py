"""A run's evaluators on its split: one object that opens the stream when it scores, with any model and any of them."""

import numpy as np

from golf.dist import Ranks
from golf.evals.book import Book, Score
from golf.evals.evaluator import EvalConfig, Note, quietly
from golf.keeping import EvalFiles, FileResume, Keeping
from golf.models.lm import LM
from golf.tokens.prepare import Prepared
from golf.tokens.shards import TokenStream
from golf.tokens.tokenizer import ByteCounter


class Scoring:
    """plain and named scores of a model on `eval.split`. keeping: who is told of each pass; None: nobody."""

    def __init__(self, config: EvalConfig, prepared: Prepared, ranks: Ranks, keeping: Keeping | None = None):
        self.config, self.prepared, self.ranks, self.keeping = config, prepared, ranks, keeping
        self.counter = ByteCounter.from_tokenizer(prepared.tokenizer)

    def stream(self) -> np.ndarray:
        """The split's tokens, opened now."""
        stream = TokenStream(self.prepared.splits[self.config.split].shards, len(self.counter.base_V))
        return stream.read(0, len(stream))

    def score(self, model: LM, evaluator: str = "plain", files: EvalFiles | None = None) -> Score:
        """Score with a named evaluator; all ranks take part and get the same sums. Leaves no gradients.

        files: where its trace is written and where it goes on if it is cut off; None: neither.
        """
        book = Book(self.stream(), self.counter, self.ranks)
        chosen, split = self.config.evaluators[evaluator], self.config.split
        note: Note | None = None
        resume: FileResume | None = None
        if files is not None:
            note, resume = files.open(evaluator, chosen, (self.prepared.digest, split), self.ranks)
        score = chosen.run(model, book, self.prepared.bos_id, note or quietly, resume)
        if resume is not None:
            resume.done()
        if self.keeping is not None and self.ranks.first:
            self.keeping.scored(split, evaluator, score)
        return score
