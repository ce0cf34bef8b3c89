"""What a run is worth: scores of its rounds, and what is measured afterwards.

scoring.py        every round: models on the clean test images; the received model on the clients' own images
theory.py         every round, on request: the synthetic union's gradient beside the gradient on all real data
convergence.py    rounds, bytes and seconds to reach an accuracy
heterogeneity.py  how unequal clients are, from who holds what
mmd.py            how unequal samples of features are, with a standard error
embedding.py      t-SNE of features
features.py       the spaces in which clients' images are compared
clients.py        clients' images compared and mapped, by the two above
distilled.py      clients' real and virtual images compared alike: what distilling them changed
fresh.py          fresh networks trained on a saved synthetic set
networks.py       networks as the command line names them
"""
