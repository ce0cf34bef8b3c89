"""What leaks from a run, measured: attacks, each with its source and what it assumes, as plain functions with plain results.

likeness.py     PSNR and SSIM of images that an attack found and the true ones, beside what other images score
perceptual.py   LPIPS, where its package and weights are at hand
inversion.py    images from a client's update
seen.py         what an attacker has of an update
neighbours.py   distilled images: are they nearer to what they were made of than to other images of the class?
attributes.py   how many images of which class a client holds, from its update, its distilled set, its messages
resampling.py   intervals of a mean, by resampling
"""
