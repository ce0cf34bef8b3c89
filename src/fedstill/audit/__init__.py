"""What leaks from a run: attacks as pure functions, arrays in and scores out.

roc.py         how well scores tell members from non-members: ROC, AUC, TPR at a FPR, with intervals; what (ε, δ)-DP allows
lira.py        the likelihood ratio of Carlini et al., offline and online
density.py     the gradient-density ratio of FedLGD's paper
pool.py        which images a shadow federation may train on, and which it draws
federation.py  a federation once more, and what an attacker gets to see of it
shadows.py     shadow federations: the same on other images, their scores kept in files
membership.py  the membership attacks together: scores in, plain values out
"""
