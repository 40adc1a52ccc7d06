"""Images found by a sentence, and where in each of them the sentence is true."""
