"""Questions that code asks of a model: what they may cost, who answers them, and what an answer has to be like."""
