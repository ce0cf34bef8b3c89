"""What leaks from a run, measured: attacks as plain functions with plain results, each with its source and what it assumes.

Membership: was an image trained on?
    roc.py         how well scores tell members from non-members: ROC, AUC, TPR at a FPR, with intervals; what (ε, δ)-DP allows
    lira.py        the likelihood ratio of Carlini et al., offline and online
    density.py     the gradient-density ratio of FedLGD's paper
    pool.py        which images a shadow federation may train on, and which it draws
    federation.py  a federation once more, and what an attacker gets to see of it
    shadows.py     shadow federations: the same on other images, their scores kept in files
    membership.py  the membership attacks together: scores in, plain values out

Images and counts:
    inversion.py   images from a client's update
    seen.py        what an attacker has of an update
    likeness.py    PSNR and SSIM of images that an attack found and the true ones, beside what other images score
    perceptual.py  LPIPS, where its package and weights are at hand
    dealing.py     these images dealt anew, for all clients at once: what comes by chance
    neighbours.py  distilled images: are they nearer to what they were made of than to other images of the class?
    attributes.py  how many images of which class a client holds, from its update, its distilled set, its messages
    resampling.py  intervals of a mean, by resampling
"""
