"""The attacks of :mod:`fedstill.audit` on a run's folder: what each needs is taken from a Target, what it finds is plain values.

membership.py   was an image trained on?
attributes.py   how many images of which class does a client hold?
neighbours.py   are distilled images copies?
inversion.py    what of its images does a client's update show?
updates.py      an exchange with a client, as an attacker reads it
"""
