"""One answer, several at once, a conversation."""
