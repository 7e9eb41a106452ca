"""Answers to many callers from one model: a queue, a loop over the decoder, and counters."""
