"""What a site has in a deployment, whatever brings the messages.

certs.py        a test CA, the server's certificate, a key pair a site; authority.py is the cryptography behind it
site.py         site.toml: a site's description, and its images as the federation numbers them; sizes.py reads "50 MB"
federation.py   what the federation's experiment asks of a site
messages.py     what a message holds, without its values
policy.py       what may be worked on, and what may leave
ledger.py       a line for every message
checks.py       whether all that fits together
"""
