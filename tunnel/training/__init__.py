"""One run: the corpus, the model in training, trunks and forks, packs."""
