"""Engines: where the clients' work is done."""
